"""Small models as others have pruned them, loops of somebody's own, and those loops with our two lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import flatsparse as fs
from tests.trainers.hugging_face import transformers

Masks = dict[str, Tensor]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STEPS = 6


def cut(model: nn.Module, amount: float | Callable[[str], float] = 0.7) -> Any:
    """Set a share of each linear layer's weights to zero, the smallest."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            prune.l1_unstructured(module, "weight", amount=amount(name) if callable(amount) else amount)
            prune.remove(module, "weight")
    return model


def llama(kind: str = "Llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32, num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, **SIZES
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def block() -> nn.Sequential:
    """Two layers of half of their 256 weights: 128 zeros."""
    torch.manual_seed(0)
    return cut(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), 0.5)


def bert(head: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, f"BertFor{head}")(transformers.BertConfig(vocab_size=32, **{**SIZES, **more}))


def block_loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda ids: F.mse_loss(model(ids.float() / 32), (ids.flip(1)).float() / 32)


def texts(steps: int = STEPS) -> Iterator[Tensor]:
    source = torch.Generator().manual_seed(2)
    return (torch.randint(1, 32, (4, 8), generator=source) for _ in range(steps))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def tune(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor], Tensor] | None = None) -> None:
    """A loop of somebody's own."""
    model.train()
    for ids in texts():
        (model(input_ids=ids, labels=ids).loss if loss is None else loss(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()


def tune_sparse(model: nn.Module, masks: Masks, loss: Callable[[Tensor], Tensor] | None = None) -> fs.SparseTraining:
    """The same, with our two lines."""
    optimizer = fs.S2SAM(adamw(model), rho=0.05)
    training = fs.sparsify(model, optimizer, "static", masks=masks, steps=STEPS)
    tune(model, optimizer, loss)
    return training


def zeros(masks: Masks) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def is_2_of_4(weight: Tensor) -> bool:
    return bool((weight.unflatten(1, (-1, 4)).ne(0).sum(2) <= 2).all())
