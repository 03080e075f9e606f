"""The options of language_model.py."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from language_model_parts import Arm

from flatsparse import InputError
from flatsparse.common.errors import check_count, check_finite, check_sparsity

HELP = {
    "model": "a folder that save_pretrained wrote, or a hub id",
    "text": "UTF-8 file to fine-tune and calibrate on",
    "held_out": "UTF-8 file to measure on; else the last tenth of the text",
    "scores": "what is pruned by",
    "sharpness": "what is fine-tuned with",
    "rho": "S²-SAM's radius; several are several arms",
    "sparsity": "of each matrix",
    "pattern": "such as 2:4; the sparsity must be its own",
    "exclude": "patterns of names to leave dense besides",
    "calibration": "windows that Wanda reads",
    "steps": "of fine-tuning, in every arm",
    "batch_size": "windows of a step",
    "lr": "learning rate of every arm",
    "context": "tokens of a window; else the model's, at most 1024",
    "seeds": "of the order of data, and of dropout",
    "dtype": "that the model is loaded and trained in",
    "device": "such as cuda",
    "save": "folder for the fine-tuned models",
    "out": "JSON file for all that was measured",
}


@dataclass(frozen=True)
class Choice:
    """What is compared, and on what; an option of the command each."""

    model: str
    text: Path
    held_out: Path | None = None
    scores: tuple[Literal["magnitude", "wanda"], ...] = ("magnitude", "wanda")
    sharpness: tuple[Literal["none", "s2sam"], ...] = ("none", "s2sam")
    rho: tuple[float, ...] = (0.05,)
    sparsity: float = 0.5
    pattern: str | None = None
    exclude: tuple[str, ...] = ()
    calibration: int = 128
    steps: int = 200
    batch_size: int = 8
    lr: float = 1e-4
    context: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    save: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for name in ("calibration", "steps", "batch_size"):
            check_count(f"--{name.replace('_', '-')}", getattr(self, name))
        check_sparsity(self.sparsity)
        for file in (self.text, self.held_out):
            if file is not None and not file.is_file():
                raise InputError(f"there is no file '{file}'")
        if self.out is not None and not self.out.parent.is_dir():
            raise InputError(f"there is no folder '{self.out.parent}' to write '{self.out.name}' to")
        for name, values in {"lr": [self.lr], "rho": self.rho}.items():
            for value in values:
                check_finite(f"--{name}", value, above=True)
        for name in ("scores", "sharpness", "rho", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"--{name} has something twice: give it once")

    @property
    def arms(self) -> list[Arm]:
        arms = [Arm("none")] if "none" in self.sharpness else []
        arms += [Arm(f"s2sam {rho:g}", rho) for rho in self.rho if "s2sam" in self.sharpness]
        return [*arms, Arm("no masks", masked=False)]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message}; --help lists the options")


def parsed(arguments: Sequence[str] | None, about: str) -> Choice:
    """Return the choice of a command line."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(Choice)
    for own in dataclasses.fields(Choice):
        hint, needed = hints[own.name], own.default is dataclasses.MISSING
        settings: dict[str, Any] = {"required": True} if needed else {"default": own.default}
        if get_origin(hint) is tuple:
            settings["nargs"] = "+"
        if get_origin(hint) is not Literal:
            hint = next(iter(get_args(hint)), hint)  # of each in a tuple, or where it is given
        settings |= {"choices": get_args(hint)} if get_origin(hint) is Literal else {"type": hint}
        usual = (
            own.default if isinstance(own.default, tuple) else (own.default,) * (own.default is not None and not needed)
        )
        shown = f" (default: {' '.join(map(str, usual))})" if usual else ""
        parser.add_argument(f"--{own.name.replace('_', '-')}", help=HELP[own.name] + shown, **settings)
    given = vars(parser.parse_args(arguments))
    return Choice(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
