"""What a mask on the update of LoRA is worth: a pruned language model's test loss after tuning and merging.

A tiny Llama learns the letters of Python's own help texts, is pruned by magnitude, and is tuned with LoRA of rank 8 on every
projection for equal steps: masked; plain and masked again after merging; plain and merged dense. Each with the learning rate
that is best for it on validation text, chosen on a seed that is not counted. About
half an hour: `python benchmarks/adapters.py [SEEDS]`.
"""

import copy
import statistics
import sys
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import flatsparse as fs

SEEDS, TUNED_ON = (0, 1, 2), 99
SPARSITIES, RATES = (0.5, 0.8), (1e-3, 3e-3, 1e-2)
DENSE_STEPS, STEPS, BATCH, LENGTH = 600, 200, 16, 64
ARMS = ("masked", "masked after merging", "dense")

TEXT = torch.tensor(list("".join(topics.values()).encode("ascii", "replace")))
TRAIN, VALIDATION, TEST = TEXT[: len(TEXT) * 8 // 10], *TEXT[len(TEXT) * 8 // 10 :].chunk(2)


def sentences(text, count, generator):
    starts = torch.randint(len(text) - LENGTH, (count,), generator=generator)
    return torch.stack([text[start : start + LENGTH] for start in starts])


def train(model, steps, rate, seed):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = sentences(TRAIN, BATCH, generator)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def loss(model, text):
    batches = sentences(text, 512, torch.Generator().manual_seed(0)).split(64)
    return statistics.mean(model(input_ids=batch, labels=batch).loss.item() for batch in batches)


def dense(seed):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4))
    train(model, DENSE_STEPS, 3e-3, seed)
    return model


@torch.no_grad()
def pruned(model, sparsity):
    model = copy.deepcopy(model)
    for name, p in model.named_parameters():
        if "proj" in name:
            p[p.abs() <= p.abs().quantile(sparsity)] = 0
    return model, {name: p != 0 for name, p in model.named_parameters() if "proj" in name}


def tuned(base, masks, arm, rate, seed):
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    if arm == "masked":
        fs.mask_adapters(model, masks)
    train(model, STEPS, rate, seed + 1000)
    merged = model.merge_and_unload()
    if arm == "masked after merging":
        with torch.no_grad():
            for name, mask in masks.items():
                merged.get_parameter(name)[~mask] = 0
    return merged


def row(name, values):
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    print(f"| {name} | {statistics.mean(values):.3f}{spread} |", flush=True)


def main():
    seeds = SEEDS[: int(sys.argv[1])] if sys.argv[1:] else SEEDS
    models = {seed: dense(seed) for seed in (TUNED_ON, *seeds)}
    row("dense, before", [loss(models[seed], TEST) for seed in seeds])
    for sparsity in SPARSITIES:
        bases = {seed: pruned(model, sparsity) for seed, model in models.items()}
        row(f"{sparsity:.0%}, pruned", [loss(bases[seed][0], TEST) for seed in seeds])
        for arm in ARMS:
            chosen = min(RATES, key=lambda r: loss(tuned(*bases[TUNED_ON], arm, r, TUNED_ON), VALIDATION))
            values = [loss(tuned(*bases[seed], arm, chosen, seed), TEST) for seed in seeds]
            row(f"{sparsity:.0%}, LoRA {arm} (learning rate {chosen:g})", values)


if __name__ == "__main__":
    main()
