"""Tiny pruned language models with low-rank adapters, their batches, and what is asked of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

TOKENS, LENGTH = 32, 12
KINDS = ("llama", "gpt2")
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


def causal(kind: str = "llama", seed: int = 0) -> Any:
    """Return a dense causal model: of linear layers (llama) or of the Conv1D of transformers (gpt2)."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
        config = GPT2Config(**sizes, initializer_range=0.2, **ends, **dropout)
        return GPT2LMHeadModel(config)
    sizes = {"vocab_size": TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2))


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the matrices to prune, by name: all but embeddings, the classifier and adapters."""
    for name, p in model.named_parameters():
        chosen = any(layer in name for layer in ("_proj.", "c_attn.", "c_proj.", "c_fc.")) and "lora_" not in name
        if chosen and p.ndim == 2:
            yield name, p


@torch.no_grad()
def prune(model: nn.Module, sparsity: float = 0.5) -> dict[str, Tensor]:
    """Set each matrix's smallest weights to zero; return the masks."""
    masks = {}
    for name, p in matrices(model):
        masks[name] = torch.ones_like(p, dtype=torch.bool)
        masks[name].view(-1)[p.abs().flatten().argsort()[: round(sparsity * p.numel())]] = False
        p[~masks[name]] = 0
    return masks


@torch.no_grad()
def prune_two_of_four(model: nn.Module) -> dict[str, Tensor]:
    """Set the two smallest of every four weights in a row to zero; return the masks."""
    masks = {}
    for name, p in matrices(model):
        largest = p.abs().reshape(-1, 4).topk(2, dim=1).indices
        masks[name] = torch.zeros(p.numel() // 4, 4, dtype=torch.bool).scatter_(1, largest, True).view(p.shape)
        p[~masks[name]] = 0
    return masks


def pruned(kind: str = "llama", sparsity: float = 0.5, seed: int = 0) -> tuple[Any, dict[str, Tensor]]:
    model = causal(kind, seed)
    return model, prune(model, sparsity)


def adapted(model: Any, **options: Any) -> Any:
    """Return a PEFT model around a copy, whose updates are not zero even before they are trained."""
    targets = next(
        targets for targets in TARGETS.values() if any(targets[0] in name for name, _ in model.named_modules())
    )
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": targets, "init_lora_weights": False, **options}
    torch.manual_seed(1)
    return get_peft_model(copy.deepcopy(model), LoraConfig(**chosen))


def tokens(step: int = 0) -> Tensor:
    """Return one of four batches of sentences, which can be learned by heart."""
    return torch.randint(TOKENS, (4, LENGTH), generator=torch.Generator().manual_seed(step % 4))


def loss_at(model: nn.Module, step: int = 0) -> Tensor:
    return model(input_ids=tokens(step), labels=tokens(step)).loss


@torch.no_grad()
def evaluated(model: nn.Module) -> float:
    """Return the mean loss over all batches."""
    was, _ = model.training, model.eval()
    mean = torch.stack([loss_at(model, step) for step in range(4)]).mean().item()
    model.train(was)
    return mean


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=tokens()).logits


def adapters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def train(model: nn.Module, steps: int = 40, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    optimizer = optimizer or torch.optim.AdamW(adapters(model), lr=1e-2)
    model.train()
    for step in range(steps):
        loss_at(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def filled(model: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Return the number of weights outside the masks that are not zero."""
    weights = dict(model.named_parameters())
    return sum(int(weights[name].detach()[~mask].count_nonzero()) for name, mask in masks.items())


def sparsity_of(model: nn.Module) -> float:
    """Return the fraction of the pruned matrices' weights that are zero."""
    weights = [p.detach() for _, p in matrices(model)]
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
