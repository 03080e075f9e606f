"""The configuration of a run: all settings that decide its outcome, as requested and as resolved.

Settings are grouped (``run.optim.lr``). Their names are unique, so that the command line and ``config.json`` name
them flat (``--lr``): see ``settings``, ``RunConfig.of`` and ``change``.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from flatsparse.experiments.run.sharpness import Sharpness
from flatsparse.experiments.tasks.settings import Dataset, without
from flatsparse.methods import DEFAULT, methods_with
from flatsparse.methods.presets import PRESETS

SomeSetting = TypeVar("SomeSetting", bound="Setting")


def _for_methods(option: str, text: str) -> Any:
    """Return the help of an option that only some methods have."""
    return tyro.conf.arg(help=f"For {names_of_methods(option)}: {text}")


def names_of_methods(option: str, conjunction: str = "and") -> str:
    """Return the names of the methods that have an option, as a phrase."""
    *others, last = methods_with(option)
    return f"{', '.join(others)} {conjunction} {last}" if others else last


CHANNELS = "fraction of channels to remove. By default the method's own."
SUMS = "also remove channels shared through residual additions, and all others that can be removed, whatever --explore says."
EXPLORE = "which channels: those that the authors' code removes, or all that one layer writes and that can be removed."
LATE_SHARE, STALE_SHARE = 0.2, 0.25
FIRST_PHASE = (
    "the scope in which weights are ranked while channels are removed. By default net, as in the authors' CIFAR script;"
    " their ImageNet script has layer."
)
CHANNEL_OFFSET = (
    "time from channel removal to the next mask update, as a fraction of --every. By default 0.5; 0: in the same step."
)
PENALTY = (
    "strength λ of the pull towards a sparse copy of the weights, where it is strongest. By default 0.001, for some 78,000 steps;"
    " a short run needs more."
)
REWIND = "step of the first round whose weights later rounds start from. By default 0, the initial weights."
PATTERN = (
    "what masks keep to, in every layer made sparse (--exclude the others): block:16x1 for whole blocks of 16 outputs and 1"
    " input, or N of each M inputs active, e.g. 2 4."
)
LAYERS = f"Convention for what is left dense: {', '.join(PRESETS)}; `flatsparse list layers` shows the result."


@dataclass(frozen=True)
class Pruning:
    """The sparse-training method, and what it makes sparse."""

    method: str = DEFAULT
    """Sparse-training method, by name (`flatsparse list methods`) or as path/to/file.py:Name, whose code is then run."""
    sparsity: float | None = None
    """Fraction of the prunable weights that are zero. By default the method's own, mostly 0.9; none for
    methods that take only --channels."""
    channels: Annotated[float | None, _for_methods("channels", CHANNELS)] = None
    sums: Annotated[bool, _for_methods("sums", SUMS)] = False
    explore: Annotated[Literal["published", "removable"] | None, _for_methods("explore", EXPLORE)] = None
    first_phase: Annotated[Literal["net", "layer"] | None, _for_methods("first_phase", FIRST_PHASE)] = None
    last_phase: Annotated[Literal["net", "layer"] | None, _for_methods("last_phase", "the same afterwards.")] = None
    channel_offset: Annotated[float | None, _for_methods("channel_offset", CHANNEL_OFFSET)] = None
    distribution: str | None = None
    """Allocation of active weights to layers: uniform, er, erk or global. By default the method's own."""
    every: int | None = None
    """Steps between updates of the masks. By default the method's own, shortened so that there are at least ten."""
    until: float | None = None
    """Share of the run after which masks no longer change. By default the method's own."""
    drop_fraction: float | None = None
    """Fraction of active weights moved at an update, or pruned after a round. By default the method's own."""
    penalty: Annotated[float | None, _for_methods("penalty", PENALTY)] = None
    rewind: Annotated[int | None, _for_methods("rewind", REWIND)] = None
    pattern: Annotated[tuple[int, int] | str | None, _for_methods("pattern", PATTERN)] = None
    include: tuple[str, ...] = ()
    """Only make layers sparse whose names or kinds (Conv2d) match one of these patterns."""
    exclude: tuple[str, ...] = ()
    """Leave layers dense whose names or kinds (Linear) match one of these patterns."""
    layers: Annotated[str, tyro.conf.arg(help=LAYERS)] = "all"


@dataclass(frozen=True)
class Optim:
    """The base optimizer and the loss it takes the gradient of."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The base optimizer."""
    lr: float = 0.1
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum of SGD."""
    betas: tuple[float, float] | None = None
    """Decay rates of the two averages of AdamW. By default 0.9 0.999; for a Transformer often 0.9 0.98."""
    nesterov: bool = False
    """Nesterov's momentum for SGD."""
    weight_decay: float = 5e-4
    """Weight decay, the same for every sharpness."""
    label_smoothing: float = 0.0
    """Share of each training label that is spread over all classes; evaluations are without it."""
    ema: float | None = None
    """Decay of a moving average of the weights, often 0.9999 on ImageNet: it is what is evaluated and saved. By default none."""
    batch_size: int = 128
    """Samples in a step; of text, tokens of the longer side, padding included."""
    accumulate: int | None = None
    """Number of parts that a batch is computed in, one after the other, where all at once is too much for the memory.
    Gradients add up to that of the batch; batch norm takes its statistics of a part. By default one."""

    @property
    def parts(self) -> int:
        """The number of parts of a batch."""
        return self.accumulate or 1

    @property
    def part_size(self) -> int:
        """Samples, or tokens, that are computed at once."""
        return self.batch_size // self.parts


@dataclass(frozen=True)
class Schedule:
    """The length of a run, and its learning-rate schedule."""

    epochs: int = 30
    """Passes over the training samples; for methods with rounds, in each round."""
    multiplier: float = 1.0
    """Train this many times as long: epochs, schedule and the last mask update scale, a period in steps does not."""
    lr_schedule: Literal["cosine", "step", "constant", "inverse-sqrt"] = "cosine"
    """Learning-rate schedule: to 0 along half a cosine, to a tenth at each of --milestones, constant, or as 1/√step after
    the warm-up (Vaswani et al. 2017)."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of the run after which --lr-schedule step divides by ten. On ImageNet often 0.3 0.7 0.9, with --warmup 5."""
    warmup: int | float = 0
    """Epochs of linear warm-up to the learning rate of the schedule, or a fraction of one; --multiplier scales them too."""

    @property
    def whole_epochs(self) -> int:
        """Passes over the training images, with the multiplier."""
        return round(self.multiplier * self.epochs)


@dataclass(frozen=True)
class Perturbation:
    """Options of the perturbation that do not differ between compared runs."""

    adaptive: bool = False
    """Scale each weight's share of the perturbation by the weight (ASAM); --rho is then about ten times as large."""
    rho_schedule: Literal["constant", "inverse-sqrt", "linear", "cosine", "late"] = "constant"
    """Schedule of ρ over the run: constant, as 1/√step, down to 0, or 0 until late in the run and constant then."""
    late_share: float | None = None
    """Share of the steps, the last, in which --rho-schedule late perturbs; in methods with rounds, of each round's. By default
    0.2."""
    loss_budget: float | None = None
    """For sam and s2sam: the loss that a perturbation may add to first order, σ; --rho is then the largest radius (LE-SAM)."""
    look_every: int = 5
    """Steps from one SAM step of looksam to the next, k."""
    look_alpha: float = 0.7
    """Weight α of the stored direction that looksam adds in between, relative to the gradient's norm."""
    stale_share: float | None = None
    """Share of a batch whose gradient at the weights stale takes, for the step after. By default 0.25."""
    mask_perturbation: Annotated[bool, without("Perturb pruned weights too, as in the released code of S²-SAM.")] = True
    """Perturb active weights only; without it pruned ones move too, as in the released code of Ji et al. (2024)."""

    @property
    def share(self) -> float:
        """The share of the steps, the last, in which ρ may be over 0."""
        if self.rho_schedule != "late":
            return 1.0
        return LATE_SHARE if self.late_share is None else self.late_share

    @property
    def part(self) -> float:
        """The share of a batch whose gradient a stale direction is."""
        return STALE_SHARE if self.stale_share is None else self.stale_share


@dataclass(frozen=True)
class Runtime:
    """The computation and the evaluations of a run."""

    validate_every: int = 1
    """Epochs between evaluations on the validation samples; there is always one at the end."""
    batch_norm: Literal["training", "final"] = "training"
    """Running statistics of the trained net: as training left them (taken at w + e), or recomputed at the final weights."""
    device: str = "auto"
    """Device to train on: cpu, cuda, or auto (cuda if there is one)."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs forward and backward under autocast; weights stay float32."""
    eval_batch_size: int | None = None
    """Samples computed at once in evaluations; a quarter with gradients. By default 1,000, fewer of large images."""
    memory: str | None = None
    """Memory that evaluations may take, such as 8GB: fewer samples at once where they would need more. By default half of what
    is free."""
    channels_last: bool = False
    """Keep convolutions' weights channels-last, as the images are; faster, especially with bf16."""
    accelerate: bool = False
    """Compute sparse layers over their active weights on a CPU, where that is faster; results differ in the last bits."""
    compile: bool = False
    """Train through torch.compile; first steps take minutes, and results differ in the last bits. Evaluations run uncompiled."""


@dataclass(frozen=True)
class Setting:
    """The settings that compared runs have in common."""

    model: str | None = None
    """Network, by name (`flatsparse list models`), timm:NAME, torchvision:NAME, or as path/to/file.py:function, whose code is
    then run. By default one that suits the data."""
    init: Path | None = None
    """Weights to start from in place of random ones: the folder of a finished run, or a .safetensors file."""
    dataset: Annotated[Dataset, tyro.conf.arg(name="data")] = field(default_factory=Dataset)
    pruning: Annotated[Pruning, tyro.conf.arg(name="pruning")] = Pruning()
    optim: Annotated[Optim, tyro.conf.arg(name="optimizer")] = Optim()
    schedule: Annotated[Schedule, tyro.conf.arg(name="schedule")] = Schedule()
    perturbation: Annotated[Perturbation, tyro.conf.arg(name="perturbation")] = Perturbation()
    runtime: Annotated[Runtime, tyro.conf.arg(name="runtime")] = Runtime()

    @classmethod
    def of(cls: type[SomeSetting], **settings: Any) -> SomeSetting:
        """Return a configuration with some settings, by their flat names.

        >>> RunConfig.of(epochs=2, lr=0.05).optim.lr
        0.05
        """
        return change(cls(), **settings)


@dataclass(frozen=True)
class RunConfig(Setting):
    """One training run, as requested. On one CPU, with as many threads, equal runs give equal results, bit for bit."""

    sharpness: Sharpness = "none"
    """The weights at which the gradient is taken; `flatsparse list sharpness` describes each."""
    rho: float = 0.05
    """Radius of the perturbation, ρ."""
    label_noise: float = 0.0
    """Fraction of training labels to make wrong."""
    seed: int = 0
    """Seed of initial weights, masks, data order, augmentation and noise."""
    probe: str | None = None
    """every=N: measure curvature and what each direction gains every N steps; changes no weight. By default never."""

    @property
    def probe_every(self) -> int | None:
        """Steps between probes; None for a run without."""
        match = re.fullmatch(r"every=([1-9]\d*)", self.probe or "")
        return int(match[1]) if match else None

    @property
    def passes(self) -> float:
        """Gradients taken in a step, on average."""
        chosen = self.perturbation
        if self.rho == 0 or chosen.loss_budget == 0:
            return 1
        more = {"sam": 1.0, "looksam": 1 / chosen.look_every, "stale": chosen.part}.get(self.sharpness, 0.0)
        return 1 + more * chosen.share


@dataclass(frozen=True)
class ResolvedPruning(Pruning):
    """``Pruning`` with a method by its full name and a definite sparsity."""

    sparsity: float = 0.9


@dataclass(frozen=True)
class ResolvedRun(RunConfig):
    """One training run with its defaults filled in and everything checked: what ``resolve`` returns, and all that trains."""

    model: str = "digitnet"
    pruning: ResolvedPruning = ResolvedPruning()
    init_sha256: str | None = None
    """The SHA-256 of the file of the weights to start from."""


# Settings that change no result. Of weights to start from, their hash says which they are.
FREE = ("data_dir", "init", "workers", "memory")
GROUPS: dict[str, Any] = {
    name: kind for name, kind in get_type_hints(Setting).items() if dataclasses.is_dataclass(kind)
}
GROUP_OF = {field.name: name for name, kind in GROUPS.items() for field in dataclasses.fields(kind)}


def settings(config: Any) -> dict[str, Any]:
    """Return the settings of a configuration, or of one of its groups, by their flat names."""
    flat: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        flat |= (
            {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            if one.name in GROUPS
            else {one.name: value}
        )
    return flat


def change(config: SomeSetting, **settings: Any) -> SomeSetting:
    """Return a configuration with some settings changed, by their flat names.

    >>> change(RunConfig(), seed=3, epochs=2).schedule.epochs
    2
    """
    groups: dict[str, dict[str, Any]] = {}
    for name in [name for name in settings if name in GROUP_OF]:
        groups.setdefault(GROUP_OF[name], {})[name] = settings.pop(name)
    changed = {group: dataclasses.replace(getattr(config, group), **values) for group, values in groups.items()}
    return dataclasses.replace(config, **changed, **settings)


def as_json(config: Setting) -> dict[str, Any]:
    """Return the settings by their flat names, as values that JSON has."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings(config).items()}


def kinds_of_settings(kind: type[Setting]) -> dict[str, Any]:
    """Return the type of each setting of a configuration by its flat name."""
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        hints |= get_type_hints(GROUPS[name]) if name in GROUPS else {name: hint}
    return hints


def unasked(config: Any) -> Any:
    """Return the defaults of a configuration, or of a group of one."""
    kind = RunConfig if isinstance(config, RunConfig) else Pruning if isinstance(config, Pruning) else type(config)
    return kind()
