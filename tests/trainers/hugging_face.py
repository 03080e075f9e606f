"""A pruned Hugging Face model that is small, its data, and Trainers of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import flatsparse as fs

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS = 8
KINDS: tuple[Any, ...] = (fs.S2SAM, None)
kinds = pytest.mark.parametrize("kind", KINDS, ids=["s2sam", "base"])
CONFIG = {"vocab_size": 17, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 3}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def pruned_gpt2(seed: int = 0, dropout: float = 0.1) -> Any:
    """A classifier of token sequences, of whose matrices two thirds are zero, as somebody else has pruned it."""
    torch.manual_seed(seed)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**CONFIG, **SPECIAL, **rates))
    for module in model.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            prune.l1_unstructured(module, "weight", amount=2 / 3)
            prune.remove(module, "weight")
    return model


def sequences(count: int = 40) -> list[dict[str, Tensor]]:
    source = torch.Generator().manual_seed(5)
    tokens = [torch.randint(1, 17, (8,), generator=source) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids[-1] % 3} for ids in tokens]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


class Run(NamedTuple):
    model: Any
    optimizer: Any
    training: fs.SparseTraining
    trainer: Any


def settings(folder: Path, **options: Any) -> Any:
    """Arguments of a Trainer that is quiet, on a CPU, and saves at steps 3 and 6."""
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    saving = {"save_strategy": "steps", "save_steps": 3}
    chosen = {"max_steps": STEPS, "per_device_train_batch_size": 4, "seed": 3, **saving, **quiet, **options}
    return transformers.TrainingArguments(str(folder), **chosen)


def sparse(model: nn.Module, optimizer: Any, method: str) -> fs.SparseTraining:
    options = {} if method == "static" else {"every": 2, "until": STEPS, "drop_fraction": 0.5}
    return fs.sparsify(model, optimizer, method, masks=fs.masks_from(model), steps=STEPS, **options)


def made(
    folder: Path,
    method: str = "static",
    kind: Any = fs.S2SAM,
    *,
    dropout: float = 0.1,
    with_trainer: Any = None,
    **options: Any,
) -> Run:
    """The two lines and a Trainer, as in the examples."""
    model = pruned_gpt2(dropout=dropout)
    optimizer = adamw(model) if kind is None else kind(adamw(model), rho=0.3)
    training = sparse(model, optimizer, method)
    data = {"train_dataset": sequences(), "eval_dataset": sequences(8)}
    given = {**data, **(with_trainer or {})}
    trainer = transformers.Trainer(model, settings(folder, **options), optimizers=(optimizer, None), **given)
    return Run(model, optimizer, training, trainer)


def revived(model: nn.Module, masks: dict[str, Tensor]) -> int:
    """How many weights outside masks are not zero."""
    weights = dict(model.named_parameters())
    return sum(int(weights[name].detach()[~mask].count_nonzero()) for name, mask in masks.items())


def watching(events: dict[str, Callable[..., None]]) -> Any:
    """A callback that calls a function at each of some events, with all that a Trainer gives."""
    told = {name: (lambda self, *args, act=act, **kwargs: act(*args, **kwargs)) for name, act in events.items()}
    return type("Watching", (transformers.TrainerCallback,), told)()
