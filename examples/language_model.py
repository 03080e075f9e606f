"""Prune a causal language model, fine-tune it sparse with and without S²-SAM, and report perplexities at equal steps.

python examples/language_model.py --model FOLDER_OR_HUB_ID --text train.txt --held-out test.txt --sparsity 0.5

Embeddings and the output layer stay dense. Beside the sparse arms stands fine-tuning without masks, and the zeros it loses.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from language_model_options import Choice, parsed
from language_model_parts import (
    Pruning,
    Training,
    context_of,
    fine_tune,
    load,
    lost_zeros,
    perplexity,
    predicted,
    prune,
    windows,
)
from torch import Tensor, nn

from flatsparse import InputError
from flatsparse.common.json_files import write_json
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.stats import mean_interval, paired_difference
from flatsparse.experiments.terminal import Console

HELD_OUT = 10  # without a held-out file, the last of this many parts of the windows


def study(choice: Choice, console: Console) -> dict[str, Any]:
    """Run every arm of every score with every seed, and return what was measured."""
    model, tokenizer = load(choice.model, choice.dtype, choice.device)
    text, held_out = texts(choice, model, tokenizer)
    calibrated = text[torch.linspace(0, len(text) - 1, min(len(text), choice.calibration)).round().long()]
    found: dict[str, Any] = {
        "dense": perplexity(model, held_out, choice.batch_size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": held_out.shape[1],
        "tokens": {"text": text.numel(), "predicted": predicted(held_out), "calibration": calibrated.numel()},
        "pruned": {},
        "runs": [],
    }
    training = Training(choice.steps, choice.batch_size, choice.lr)
    whole = len(choice.scores) * len(choice.seeds) * len(choice.arms) * choice.steps
    with Progress(console, "fine-tuning", whole) as progress:
        for score in choice.scores:
            pruned, chosen = copy.deepcopy(model), Pruning(score, choice.sparsity, choice.pattern, choice.exclude)
            masks = prune(pruned, chosen, calibrated.to(model.device).split(choice.batch_size))
            found["layers"] = {name: mask.numel() for name, mask in masks.items()}
            found["pruned"][score] = perplexity(pruned, held_out, choice.batch_size)
            for seed, arm in itertools.product(choice.seeds, choice.arms):
                progress.update(note=f"{score}, {arm.name}, seed {seed}")
                tuned = copy.deepcopy(pruned)
                fine_tune(tuned, masks, arm, training, text, seed, progress.advance)
                run = {"score": score, "arm": arm.name, "rho": arm.rho, "seed": seed}
                run["perplexity"] = perplexity(tuned, held_out, choice.batch_size)
                found["runs"].append(run | {"zeros_lost": lost_zeros(tuned, masks)})
                for part in (tuned, tokenizer) if choice.save is not None else ():
                    part.save_pretrained(choice.save / f"{score}-{arm.name.replace(' ', '-')}-{seed}")
    return found


def texts(choice: Choice, model: nn.Module, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return the windows to train on and those to measure on."""
    shape = context_of(model, choice.context), model.get_input_embeddings().num_embeddings
    text = windows(choice.text, tokenizer, *shape)
    if choice.held_out is not None:
        return text, windows(choice.held_out, tokenizer, *shape)
    if len(text) < HELD_OUT:
        raise InputError(f"'{choice.text}' has {len(text)} windows, too few to hold some out: give --held-out")
    return text[: -(len(text) // HELD_OUT)], text[-(len(text) // HELD_OUT) :]


def table(found: Mapping[str, Any]) -> str:
    """Return the perplexities as text: means over seeds with 95 % intervals, and paired differences to 'none'."""
    lines = [f"{'pruned by':<11} {'fine-tuned':<12} {'perplexity':<26} {'difference to AdamW':<26} zeros lost"]
    lines.append(f"{'not pruned':<11} {'not':<12} {found['dense']:.2f}")
    for score, pruned in found["pruned"].items():
        lines.append(f"{score:<11} {'not':<12} {pruned:.2f}")
        arms: dict[str, list[Mapping[str, Any]]] = {}
        for run in found["runs"]:
            if run["score"] == score:
                arms.setdefault(run["arm"], []).append(run)
        values = {arm: [run["perplexity"] for run in runs] for arm, runs in arms.items()}
        for arm, own in values.items():
            gap = f"{paired_difference(own, values['none']):+.2f}" if arm != "none" and "none" in values else ""
            lost = max(run["zeros_lost"] for run in arms[arm])
            lines.append(f"{score:<11} {arm:<12} {f'{mean_interval(own):.2f}':<26} {gap:<26} {lost:.1%}")
    return "\n".join(lines)


def notes(choice: Choice, found: Mapping[str, Any]) -> str:
    """Return what a reader of the table must know."""
    kept = f"pattern {choice.pattern}" if choice.pattern else f"{choice.sparsity:.0%} zeros"
    weights, tokens = sum(found["layers"].values()), found["tokens"]["predicted"]
    return (
        f"{len(found['layers'])} matrices with {weights:,} of {found['parameters']:,} weights have {kept} each; embeddings and"
        f" the output layer stay dense.\nPerplexity over {tokens:,} tokens: windows of {found['context']} without overlap, the"
        f" first token of each not predicted.\n{choice.steps} steps of {choice.batch_size} windows, AdamW, learning rate"
        f" {choice.lr:g}, dropout as the model's configuration says; {len(choice.seeds)} seeds, the same for all arms."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exit status 2 with a line on standard error for what cannot be used."""
    try:
        choice = parsed(arguments, __doc__ or "")
        found = study(choice, Console(stderr=True))
        print(table(found), notes(choice, found), sep="\n\n")
        if choice.out is not None:
            chosen = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(choice).items()}
            write_json(choice.out, {"choice": chosen, **found})
    except InputError as problem:
        print(f"language_model: error: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
