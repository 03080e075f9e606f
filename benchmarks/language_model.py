"""The table of docs/language-models.md: a small GPT-2 trained here, pruned, and fine-tuned by examples/language_model.py's parts.

python benchmarks/language_model.py --text-dir DIR --out STORE   # runs what results/ lacks, a line each, and writes the table
python benchmarks/language_model.py                              # writes the table anew

DIR holds Multi30k's train.en, val.en and test_2016_flickr.en; STORE keeps the dense model. One thread, about 20 minutes.
The learning rate is chosen for AdamW, and ρ for S²-SAM at that rate, on val.en with a seed of its own; the table is of the test
file.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import judged
import torch
from reproduced import with_table

import flatsparse as fs
from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json_lines, with_checksum
from flatsparse.experiments.stats import mean_interval, paired_difference

ROOT = Path(__file__).parent.parent
DATA, PAGE = ROOT / "results" / "language_model.jsonl", ROOT / "docs" / "language-models.md"
VOCABULARY, CONTEXT, CALIBRATION = 2048, 64, 128
SIZES = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT}
DENSE = {"steps": 3500, "batch_size": 16, "lr": 2e-3}
TUNED = {"steps": 60, "batch_size": 8}
SETTINGS = {"50 %": (0.5, None), "80 %": (0.8, None), "2:4": (0.5, "2:4")}
SCORES, SEEDS, TUNING_SEED = ("magnitude", "wanda"), range(5), 100
RATES, RADII = (1e-4, 3e-4, 1e-3, 3e-3), (0.02, 0.05, 0.1, 0.2)
ARMS = NONE, SHARP, UNMASKED = "none", "s2sam", "no masks"
Line = dict[str, Any]


class Lines:
    """The lines in results/: one is added when its run is done, and found again by what it is of."""

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.all = [dict(line) for line in lines]

    def of(self, **place: Any) -> list[Line]:
        return [line for line in self.all if place.items() <= line.items()]

    def add(self, line: Line) -> None:
        self.all.append(line)
        write_atomic(DATA, "".join(json.dumps(with_checksum(line)) + "\n" for line in self.all).encode())
        print(json.dumps(line), file=sys.stderr)


class Bench:
    """The model, its texts, and what is pruned of it."""

    def __init__(self, lines: Lines, texts: Path, store: Path) -> None:
        sys.path.insert(0, str(ROOT / "examples"))
        import language_model_parts as parts

        self.parts, self.lines, self.folder = parts, lines, store / "dense"
        self._pruned: dict[tuple[str, str], tuple[torch.nn.Module, Any]] = {}
        if not (self.folder / "model.safetensors").is_file():
            self._train(texts / "train.en")
        self.model, tokenizer = parts.load(str(self.folder), "float32", "cpu")
        files = {"train": "train.en", "validation": "val.en", "test": "test_2016_flickr.en"}
        self.texts = {n: parts.windows(texts / f, tokenizer, CONTEXT, VOCABULARY) for n, f in files.items()}
        if not lines.of(kind="dense"):
            lines.add(
                {
                    "kind": "dense",
                    **DENSE,
                    "parameters": sum(p.numel() for p in self.model.parameters()),
                    "tokens": {name: parts.predicted(text) for name, text in self.texts.items()},
                    "context": CONTEXT,
                    "perplexity": self.measured(self.model, "test"),
                    "versions": {
                        "flatsparse": fs.__version__,
                        "torch": torch.__version__,
                        "python": platform.python_version(),
                    },
                }
            )

    def _train(self, file: Path) -> None:
        """Train a tokenizer and a model on a text, and save both."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

        pairs = Tokenizer(models.BPE())
        pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        pairs.train(
            [str(file)], trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=letters, show_progress=False)
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs)
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **SIZES))
        text = self.parts.windows(file, tokenizer, CONTEXT, VOCABULARY)
        plain, chosen = self.parts.Arm("dense", masked=False), self.parts.Training(**DENSE)
        self.parts.fine_tune(model, {}, plain, chosen, text, 0, lambda: None)
        for part in (tokenizer, model):
            part.save_pretrained(self.folder)

    def measured(self, model: torch.nn.Module, text: str) -> float:
        """Return a model's perplexity on a text."""
        return self.parts.perplexity(model, self.texts[text], 16)

    def pruned(self, setting: str, score: str) -> tuple[torch.nn.Module, Any]:
        """Return a pruned model and its masks."""
        if (setting, score) not in self._pruned:
            self._pruned[setting, score] = self._prune(setting, score)
        return self._pruned[setting, score]

    def _prune(self, setting: str, score: str) -> tuple[torch.nn.Module, Any]:
        model, train = copy.deepcopy(self.model), self.texts["train"]
        chosen = torch.linspace(0, len(train) - 1, CALIBRATION).round().long()
        masks = self.parts.prune(model, self.parts.Pruning(score, *SETTINGS[setting]), train[chosen].split(16))
        if not self.lines.of(kind="pruned", setting=setting, score=score):
            line = {
                "kind": "pruned",
                "setting": setting,
                "score": score,
                "pruned": sum(int((~m).sum()) for m in masks.values()),
            }
            self.lines.add(line | {"perplexity": self.measured(model, "test")})
        return model, masks

    def run(self, text: str, place: Line) -> None:
        """Fine-tune and measure on a text, unless there is a line of it."""
        if self.lines.of(**place):
            return
        pruned, masks = self.pruned(place["setting"], place["score"])
        model, began = copy.deepcopy(pruned), time.thread_time()
        arm = self.parts.Arm(place["arm"], place["rho"], masked=place["arm"] != UNMASKED)
        chosen = self.parts.Training(**TUNED, lr=place["lr"])
        self.parts.fine_tune(model, masks, arm, chosen, self.texts["train"], place["seed"], lambda: None)
        seconds = round(time.thread_time() - began, 2)
        lost = self.parts.lost_zeros(model, masks)
        self.lines.add(place | {"perplexity": self.measured(model, text), "zeros_lost": lost, "seconds": seconds})


def chosen(lines: Lines, cell: Line, name: str, **place: Any) -> float:
    """Return the learning rate or ρ of the lowest perplexity on the validation sentences."""
    return min(lines.of(kind="tuning", **cell, **place), key=lambda line: line["perplexity"])[name]


def cells() -> Iterator[Line]:
    for setting in SETTINGS:
        for score in SCORES:
            yield {"setting": setting, "score": score}


def measure(bench: Bench, lines: Lines) -> None:
    """Run what has no line yet."""
    for cell in cells():
        tuning = {"kind": "tuning", **cell, "seed": TUNING_SEED}
        for rate in RATES:
            bench.run("validation", {**tuning, "arm": NONE, "lr": rate, "rho": 0.0})
        rate = chosen(lines, cell, "lr", arm=NONE)
        for rho in RADII:
            bench.run("validation", {**tuning, "arm": SHARP, "lr": rate, "rho": rho})
        radius = chosen(lines, cell, "rho", arm=SHARP)
        for seed in SEEDS:
            for arm, rho in {NONE: 0.0, SHARP: radius, UNMASKED: 0.0}.items():
                bench.run("test", {"kind": "run", **cell, "arm": arm, "lr": rate, "rho": rho, "seed": seed})


def table(all_lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the page: perplexities, means over seeds, and paired differences with 95 % intervals."""
    lines = Lines(all_lines)
    (dense,) = lines.of(kind="dense")
    rows = [
        "| zeros | pruned by | pruned | fine-tuned sparse | with S²-SAM | difference | ρ | without masks | zeros lost |"
    ]
    rows.append("| --- " * 9 + "|")
    gaps = []
    for cell in cells():
        (pruned,) = lines.of(kind="pruned", **cell)
        runs = {arm: sorted(lines.of(kind="run", **cell, arm=arm), key=lambda r: r["seed"]) for arm in ARMS}
        values = {arm: [run["perplexity"] for run in own] for arm, own in runs.items()}
        gaps.append(paired_difference(values[SHARP], values[NONE]))
        none, sharp, unmasked = (f"{mean_interval(values[arm]).mean:.2f}" for arm in ARMS)
        gap, rho = judged.signed(gaps[-1], 3), f"{runs[SHARP][0]['rho']:g}"
        lost = f"{max(run['zeros_lost'] for run in runs[UNMASKED]):.1%}"
        parts = [*cell.values(), f"{pruned['perplexity']:.2f}", none, sharp, gap, rho, unmasked, lost]
        rows.append(f"| {' | '.join(parts)} |")
    largest = max(abs(gap.mean) for gap in gaps) / dense["perplexity"]
    lower, higher = sum(gap.high < 0 for gap in gaps), sum(gap.low > 0 for gap in gaps)
    words = (
        f"Dense, the model has {dense['parameters']:,} parameters and a perplexity of {dense['perplexity']:.2f}, over"
        f" {dense['tokens']['test']:,} tokens. {len(SEEDS)} seeds, {TUNED['steps']} steps of {TUNED['batch_size']} windows of"
        f" {dense['context']} tokens;\nlearning rates tried: {_listed(RATES)}; ρ: {_listed(RADII)}. {lower} of {len(gaps)}"
        f" intervals are below zero, {higher} above; the largest difference is {largest:.2%} of the dense perplexity."
    )
    return "\n".join([*rows, "", words])


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def page() -> str:
    """Return the page with its table made of the lines."""
    return with_table(PAGE.read_text(encoding="utf-8"), table(read_json_lines(DATA)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-dir", type=Path, help="where Multi30k's English files lie")
    parser.add_argument("--out", type=Path, help="folder for the dense model")
    options = parser.parse_args()
    if options.text_dir is not None and options.out is not None:
        torch.set_num_threads(1)
        lines = Lines(read_json_lines(DATA) if DATA.is_file() else [])
        measure(Bench(lines, options.text_dir, options.out), lines)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
