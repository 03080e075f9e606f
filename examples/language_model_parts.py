"""The parts of language_model.py: a model and its text, perplexity, pruning and fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup
from transformers.utils import logging

import flatsparse as fs
from flatsparse.methods import Static, Wanda
from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.scores import magnitude

Masks = Mapping[str, Tensor]
LONGEST = 1024  # tokens of a window, where the model takes more and none are named
WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class Pruning:
    """How a model is pruned: every matrix of its blocks to the same sparsity, as in Wanda's paper.

    Attributes:
        score: "magnitude", compared within a layer; or "wanda", within a row.
        sparsity: of every matrix.
        pattern: such as "2:4", in place of a free choice within a layer or row.
        exclude: patterns of names to leave dense besides embeddings and the head.
    """

    score: str
    sparsity: float = 0.5
    pattern: str | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """A way to fine-tune. ``rho`` is S²-SAM's radius, 0 for AdamW alone; without ``masked`` nothing keeps the zeros."""

    name: str
    rho: float = 0.0
    masked: bool = True


@dataclass(frozen=True)
class Training:
    """AdamW without weight decay; its learning rate rises over a tenth of the steps and falls to 0, both linearly."""

    steps: int = 200
    batch_size: int = 8
    lr: float = 1e-4


def load(name: str, dtype: str, device: str) -> tuple[nn.Module, Any]:
    """Return a causal model of a folder or hub id, and its tokenizer. Raises InputError when there is none."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
        return model.to(device), AutoTokenizer.from_pretrained(name)
    except (
        OSError,
        ValueError,
        ImportError,
        RuntimeError,
        AssertionError,
        SafetensorError,
    ) as problem:  # of a device too
        why = str(problem).strip().split("\n")[0]
        raise fs.InputError(
            f"cannot load '{name}' as a causal language model with its tokenizer on {device} ({why}): give a folder that"
            " save_pretrained wrote, or a hub id"
        ) from None


def windows(file: Path, tokenizer: Any, context: int, vocabulary: int) -> Tensor:
    """Return the tokens of a text file, (windows, context): one stream, cut without overlap; a rest at the end is left out.

    Raises: InputError for a file that is no text, or too short for a window, and for tokens that the model does not know.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise fs.InputError(f"cannot read '{file}' as UTF-8 text ({problem})") from None
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
    if not len(ids):
        raise fs.InputError(
            f"the tokenizer makes no token of '{file}': give text, and a model whose folder has its tokenizer"
        )
    if len(ids) < context:
        raise fs.InputError(
            f"'{file}' has {len(ids)} tokens, less than one window of {context}: give more text, or --context"
        )
    if int(ids.max()) >= vocabulary:
        raise fs.InputError(
            f"the tokenizer gives token {int(ids.max())}, and the model knows {vocabulary}: they do not fit"
        )
    return ids[: len(ids) // context * context].view(-1, context)


def context_of(model: nn.Module, wanted: int | None) -> int:
    """Return the length of a window. Raises InputError when the model has no so many positions."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if wanted is None:
        return min(LONGEST, most or LONGEST)
    if most is not None and not 2 <= wanted <= most:
        raise fs.InputError(f"--context {wanted} is not usable: give 2 to {most}, the model's positions")
    return wanted


@torch.no_grad()
def perplexity(model: nn.Module, text: Tensor, batch_size: int) -> float:
    """Return e to the mean negative log-likelihood of every token but the first of each window, dropout off.

    Each window is read by itself, so that its first tokens have little before them; that is the convention of the pruning papers.

    Raises: InputError for one that is not finite.
    """
    model.eval()
    total = 0.0
    for ids in text.split(batch_size):
        ids = ids.to(model.device)
        logits = _forward(model, ids)[:, :-1].float()
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
    if not total / predicted(text) < 700:
        raise fs.InputError(
            "the perplexity is not finite: if training diverged give a smaller --lr or --rho, else the model itself is broken"
        )
    return math.exp(total / predicted(text))


def predicted(text: Tensor) -> int:
    """Return the number of tokens that a perplexity is the mean over."""
    return len(text) * (text.shape[1] - 1)


def dense_heads(model: nn.Module) -> list[str]:
    """Return the names of output layers that are matrices of their own; one tied to the embeddings is dense with them."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        return []
    return [name for name, module in model.named_modules() if module is head]


def _forward(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def prune(model: nn.Module, chosen: Pruning, calibration: Sequence[Tensor]) -> dict[str, Tensor]:
    """Prune a model in place, and return its masks. Raises InputError for one that is sparser already."""
    zeros = {name: int((p == 0).sum()) for name, p in model.named_parameters()}
    if chosen.score == "wanda":
        method = Wanda(calibration, model_loss=_forward, pattern=chosen.pattern)
    else:
        method = Static(magnitude, uniform, chosen.pattern)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # takes no step
    exclude = [*dense_heads(model), *chosen.exclude]
    training = fs.sparsify(model, optimizer, method, sparsity=chosen.sparsity, steps=1, exclude=exclude)
    masks = {name: mask.clone() for name, mask in training.masks.items()}
    training.detach()
    for name, mask in masks.items():
        if zeros.get(name, 0) > int((~mask).sum()):
            raise fs.InputError(
                f"'{name}' has {zeros[name] / mask.numel():.0%} zeros already, and --sparsity {chosen.sparsity:g} would"
                " train some of them: give a larger one"
            )
    return masks


def fine_tune(
    model: nn.Module, masks: Masks, arm: Arm, chosen: Training, text: Tensor, seed: int, stepped: Callable[[], None]
) -> None:
    """Fine-tune a pruned model in place, with the dropout of its own configuration, the same draws for every arm."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.lr, weight_decay=0.0)
    if arm.rho:
        optimizer = fs.S2SAM(optimizer, rho=arm.rho)
    if arm.masked:
        fs.sparsify(model, optimizer, "static", masks=masks, steps=chosen.steps)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARM_UP * chosen.steps), chosen.steps)
    torch.manual_seed(seed)
    model.train()
    for rows in order(len(text), chosen, seed):
        ids = text[rows].to(model.device)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        stepped()
    model.eval()


def order(count: int, chosen: Training, seed: int) -> Iterator[Tensor]:
    """Yield the windows of each step: all in an order of the seed's, then all in another."""
    generator, rows = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(chosen.steps):
        while len(rows) < chosen.batch_size:
            rows = torch.cat([rows, torch.randperm(count, generator=generator)])
        yield rows[: chosen.batch_size]
        rows = rows[chosen.batch_size :]


@torch.no_grad()
def lost_zeros(model: nn.Module, masks: Masks) -> float:
    """Return the share of the pruned weights that are zero no more."""
    weights = dict(model.named_parameters())
    lost = sum(int(weights[name][~mask].count_nonzero()) for name, mask in masks.items())
    return lost / sum(int((~mask).sum()) for mask in masks.values())
