"""Tiny causal language models of Hugging Face with a tokenizer and a text, and plain forms of perplexity and pruning."""

import functools
import math

import torch

CONTEXT, WORDS = 16, 40
SIZES = {"vocab_size": WORDS, "bos_token_id": None, "eos_token_id": None}


def gpt2():
    """Conv1D layers, and an output layer tied to the embeddings."""
    import transformers

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **sizes))


def llama():
    """Linear layers, an output layer of its own, and a checkpoint in bfloat16."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **sizes, **more)).to(torch.bfloat16)


def qwen():
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True, "head_dim": 4}
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, **sizes, **more))


def opt():
    import transformers

    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"max_position_embeddings": CONTEXT, "word_embed_proj_dim": 16, "pad_token_id": 0}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**SIZES, **sizes, **more))


MODELS = {"gpt2": gpt2, "llama": llama, "qwen": qwen, "opt": opt}


def written(folder, kind):
    """A folder with a model and its tokenizer, of one token a word."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    model = MODELS[kind]()
    with torch.no_grad():  # outputs that differ, and inputs of different sizes
        for name, p in model.named_parameters():
            p.mul_(5 * torch.rand_like(p) if p.ndim > 1 and "emb" not in name and "wte" not in name else 1)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for part in (model, transformers.PreTrainedTokenizerFast(tokenizer_object=words)):
        part.save_pretrained(folder)
    return folder


def text(file, windows, seed):
    """A file of words that repeat each other with a rule, and three words more than some windows."""
    draw, words = torch.Generator().manual_seed(seed), [0]
    for _ in range(windows * CONTEXT + 2):
        words.append((3 * words[-1] + int(torch.randint(4, (), generator=draw))) % WORDS)
    file.write_text(" ".join(f"w{word}" for word in words), encoding="utf-8")
    return torch.tensor(words[: windows * CONTEXT]).view(windows, CONTEXT)


def loaded(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def plain_perplexity(model, windows):
    """A window and a token at a time."""
    total, count = 0.0, 0
    for ids in windows:
        chances = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for place in range(CONTEXT - 1):
            total, count = total - float(chances[place, ids[place + 1]]), count + 1
    return math.exp(total / count), count


def plain_layers(model):
    """The layers that are pruned, in blocks, each with whether its weight stores the inputs first."""
    body = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    kinds = ("Conv1D", "Linear")
    return [
        {name: (m, type(m).__name__ == "Conv1D") for name, m in block.named_modules() if type(m).__name__ in kinds}
        for block in body
    ]


def half(scores):
    """The lower half of some scores; of equals the first are the larger."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], -i))[: len(scores) // 2]


@torch.no_grad()
def plain_pruned(model, score, calibration):
    """Half of a model's weights set to zero, of layers by magnitude or of rows by Wanda, with no code of the library."""
    for block in plain_layers(model):
        norms, handles = {}, []
        for name, (layer, _) in block.items():
            note = functools.partial(
                lambda norms, name, _, args: norms.update({name: args[0].flatten(0, -2).norm(dim=0)}), norms, name
            )
            handles.append(layer.register_forward_pre_hook(note))
        model(input_ids=calibration)
        for handle in handles:
            handle.remove()
        for name, (layer, turned) in block.items():
            if score == "wanda":
                for row in layer.weight.T if turned else layer.weight:
                    row[half((row.abs() * norms[name]).tolist())] = 0
            else:
                layer.weight.view(-1)[half(layer.weight.abs().flatten().tolist())] = 0
    return model


def zeros(model):
    return {name: p == 0 for name, p in model.named_parameters() if p.ndim == 2 and (p == 0).float().mean() > 0.1}
