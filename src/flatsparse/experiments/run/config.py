"""A run, as data: everything that decides how it comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from flatsparse.common.errors import InputError, check_count, check_finite, check_fraction, check_sparsity, unknown
from flatsparse.common.plugins import errors_of
from flatsparse.experiments.run.task import NETWORKS
from flatsparse.methods import METHODS, kind_of, methods_with, name_of_kind, named, options_of, traits_of
from flatsparse.schedules import Cosine, InverseSqrt, Linear, Schedule
from flatsparse.sparse.distributions import DISTRIBUTIONS
from flatsparse.sparse.layers import PRESETS
from flatsparse.sparse.plan import Plan

Sharpness = Literal["none", "sam", "s2sam", "random", "momentum", "average", "looksam"]
SHARPNESS: dict[Sharpness, str] = {
    "none": "the gradient at the weights",
    "sam": "the gradient at a neighbour along this batch's own gradient; two gradients a step (Foret et al. 2021)",
    "s2sam": "along the previous step's gradient; one gradient a step (Ji et al. 2024)",
    "random": "along noise, one gradient a step: the control",
    "momentum": "down the momentum, one gradient a step (Becker et al. 2024)",
    "average": "along a running average of past gradients, one gradient a step (after Li & Giannakis 2023)",
    "looksam": "SAM every few steps, and in between what it has taught; 1 + 1/k gradients a step (Liu et al. 2022)",
}
RHO_SCHEDULES: dict[str, Callable[[float, int], float | Schedule]] = {
    "constant": lambda rho, steps: rho,
    "inverse-sqrt": lambda rho, steps: InverseSqrt(rho),
    "linear": lambda rho, steps: Linear(rho, 0.0, until=steps + 1),
    "cosine": lambda rho, steps: Cosine(rho, 0.0, until=steps + 1),
}
# Choices of what is done to channels.
OF_CHANNELS = ("explore", "first_phase", "last_phase", "channel_offset")
# What the methods that have them did before there was a choice.
ONCE = {"explore": "removable", "first_phase": "net", "last_phase": "layer", "channel_offset": 0.0}


def _with(option: str) -> str:
    """Return the names of the methods that have an option, as a phrase."""
    return " or ".join(methods_with(option))


def _without(told: str) -> Any:
    """What the flag --no-… of an option that is on by default does, as --help shall tell it."""
    return tyro.conf.arg(help=told, help_behavior_hint="")


METHOD_OPTIONS = ("channels", *OF_CHANNELS, "distribution", "every", "until", "drop_fraction", "pattern", "rewind")
AMPLE = 10**6  # steps: no method finds such a run too short


@dataclass(frozen=True)
class Setting:
    """What runs that are compared with each other have in common."""

    data: str = "digits"
    """Data set: digits or pairs (embedded), cifar10, cifar100, a folder or a hub id."""
    data_dir: Path | None = None
    """Where local copies of data sets lie (or set FLATSPARSE_DATA)."""
    model: str | None = None
    """Network, by name (`flatsparse list models`). By default what suits the data."""
    method: str = "rigl"
    """Sparse-training method, by name (`flatsparse list methods`) or as path/to/file.py:Name, whose code is then run."""
    sparsity: float | None = None
    """Fraction of the prunable weights that are zero. By default 0.9, and 0 for dense and for chex, of which it comes out."""
    channels: float | None = None
    """Fraction of the channels that are removed, for chex, which takes no sparsity, and chase. By default the method's own."""
    sums: bool = False
    """For chex and chase, remove all channels that can go, whatever --explore says, as those of a residual stream, too."""
    explore: Literal["published", "removable"] | None = None
    """For chex and chase, which channels: those that the authors' code removes, or all that one layer writes and that can go."""
    first_phase: Literal["net", "layer"] | None = None
    """For chase, what weights are ranked in while channels go. By default net, as on CIFAR; its ImageNet script has layer."""
    last_phase: Literal["net", "layer"] | None = None
    """For chase, the same afterwards."""
    channel_offset: float | None = None
    """For chase, how long before an update of the masks channels go, in shares of --every. By default 0.5; 0 is together."""
    distribution: str | None = None
    """How live weights are shared out between layers: uniform, er, erk or global. By default the method's own."""
    every: int | None = None
    """Steps between updates of the masks. By default the method's own, shortened so that there are at least ten."""
    until: float | None = None
    """Share of the run after which masks no longer change. By default the method's own."""
    drop_fraction: float | None = None
    """Fraction of live weights moved at an update, or pruned after a round. By default the method's own."""
    rewind: int | None = None
    """Step of the first round to whose weights lth goes back. By default 0, the initial weights."""
    include: tuple[str, ...] = ()
    """Only make layers sparse whose names or kinds (Conv2d) match one of these patterns."""
    exclude: tuple[str, ...] = ()
    """Leave layers dense whose names or kinds (Linear) match one of these patterns."""
    layers: str = "all"
    """What to leave dense, by whose convention: all, grasp, rigl, dsr or mest; `flatsparse list layers` shows the outcome."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The base optimizer."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's momentum for SGD."""
    epochs: int = 30
    """Passes over the training images, in each round of lth and lrr."""
    multiplier: float = 1.0
    """Train so many times as long: epochs, learning-rate schedule and the last mask update scale, a period in steps does not."""
    pattern: tuple[int, int] | None = None
    """Keep N of each M inputs live, e.g. 2 4, in every layer made sparse (--exclude the others); for static, set and rigl."""
    batch_size: int = 128
    """Images a step."""
    lr: float = 0.1
    """Learning rate at the start."""
    lr_schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls: to 0 along half a cosine, to a tenth at each of --milestones, or not."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the run after which --lr-schedule step goes down to a tenth; RigL's: 0.3 0.7 0.9, and 5 epochs of warm-up."""
    warmup: int = 0
    """Epochs over which the learning rate rises linearly to where its schedule has it; --multiplier stretches them too."""
    weight_decay: float = 5e-4
    """Weight decay, the same for every sharpness."""
    label_smoothing: float = 0.0
    """Share of each training label that is spread over all classes; evaluations are without it."""
    train_size: int | None = None
    """Use so many training images. By default all that are not held out."""
    validation_size: int | None = None
    """Hold out so many images for choices. By default 300 of digits and 5,000 of cifar10."""
    validate_every: int = 1
    """Epochs from one look at the images held out to the next; there is always one at the end."""
    augmentation: Annotated[bool, _without("Take training images as they are, neither cropped nor flipped.")] = True
    """Crop and flip training images, of every data set but digits and pairs; without it they are taken as they are."""
    adaptive: bool = False
    """Scale each weight's share of the perturbation by the weight (ASAM); --rho is then about ten times as large."""
    rho_schedule: Literal["constant", "inverse-sqrt", "linear", "cosine"] = "constant"
    """How ρ changes over the run: not, as 1/√step, or down to 0."""
    look_every: int = 5
    """Steps from one SAM step of looksam to the next, k."""
    look_alpha: float = 0.7
    """How much of the kept direction looksam adds in between, α, in lengths of the gradient."""
    mask_perturbation: Annotated[bool, _without("Perturb pruned weights too, as in the released code of S²-SAM.")] = (
        True
    )
    """Perturb live weights only; without it pruned ones move too, as in the released code of Ji et al. (2024)."""
    batch_norm: Literal["training", "final"] = "training"
    """Running statistics of the trained net: as training left them (taken at w + e), or taken anew at the final weights."""
    device: str = "auto"
    """Where to train: cpu, cuda, or auto (cuda if there is one)."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs forward and backward under autocast; weights stay float32."""
    eval_batch_size: int | None = None
    """Images computed at once in evaluations; a quarter with gradients. By default 1,000, fewer if larger than 64x64."""
    channels_last: bool = False
    """Keep convolutions' weights channels-last, as the images are; faster, above all with bf16."""
    compile: bool = False
    """Train through torch.compile; the first steps take minutes, and results differ in the last bits. Evaluations run plain."""

    @property
    def removal(self) -> str:
        """What the method takes away, in words; of a setting that is resolved."""
        if not traits_of(kind_of(self.method)).takes_sparsity:
            return f"{self.channels:.0%} of its channels removed"
        return f"{self.sparsity:.0%} of its weights zero"


@dataclass(frozen=True)
class Run(Setting):
    """One training run. On one CPU, with as many threads, two runs with equal fields come out equal, bit for bit."""

    sharpness: Sharpness = "none"
    """Where the gradient is taken; `flatsparse list sharpness` describes each."""
    rho: float = 0.05
    """Radius of the neighbourhood."""
    label_noise: float = 0.0
    """Fraction of training labels that are made wrong."""
    seed: int = 0
    """Decides initial weights, masks, data order, augmentation and noise."""
    probe: str | None = None
    """every=N: look at curvature and at what each direction gains every N steps; changes no weight. By default never."""

    def resolved(self) -> Run:
        """The run with its defaults filled in.

        Raises: InputError for anything that cannot be run.
        """
        method = self.method if ".py:" in self.method else name_of_kind(kind_of(self.method))
        usual = {"digits": "digitnet", "pairs": "pair_transformer"}.get(self.data, "resnet20")
        model = usual if self.model is None else self.model
        if model not in NETWORKS:
            raise unknown("model", model, NETWORKS)
        if self.layers not in PRESETS:
            raise unknown("choice of layers", self.layers, PRESETS)
        if self.distribution is not None and self.distribution not in DISTRIBUTIONS:
            raise unknown("distribution", self.distribution, DISTRIBUTIONS)
        kind = kind_of(method)
        traits, options = traits_of(kind), options_of(kind)
        if not traits.takes_sparsity and self.sparsity:
            raise InputError(
                f"--sparsity {self.sparsity} cannot be asked of '{method}', which removes channels: give --channels, e.g. 0.5"
            )
        if self.channels is not None and "channels" not in options:
            raise InputError(
                f"--channels cannot be asked of '{method}', which removes none: give --method {_with('channels')}"
            )
        if self.sums and "sums" not in options:
            raise InputError(
                f"--sums cannot be asked of '{method}', which removes no channels: give --method {_with('sums')}"
            )
        for name in OF_CHANNELS:
            if getattr(self, name) is not None and name not in options:
                flag = name.replace("_", "-")
                raise InputError(
                    f"--{flag} cannot be asked of '{method}', which has no such choice: give --method {_with(name)}"
                )
        own: dict[str, Any] = {n: getattr(kind, n, None) for n in OF_CHANNELS if getattr(self, n) is None}
        default = traits.default_sparsity if traits.takes_sparsity else 0.0
        sparsity = default if self.sparsity is None else check_sparsity(self.sparsity)
        for name in ("epochs", "batch_size"):
            check_count(f"--{name.replace('_', '-')}", getattr(self, name))
        if self.probe is not None and self.probe_every is None:
            raise InputError(f"--probe '{self.probe}' is not every=N with N at least 1: give e.g. every=100")
        for name in ("train_size", "every", "eval_batch_size"):
            if getattr(self, name) is not None:
                check_count(f"--{name.replace('_', '-')}", getattr(self, name))
        check_finite("--multiplier", self.multiplier, above=True)
        if self.whole_epochs < 1:
            raise InputError(f"--multiplier {self.multiplier} leaves no epoch of {self.epochs}: give more --epochs")
        check_finite("--rho", self.rho)
        check_finite("--lr", self.lr, above=True)
        check_finite("--weight-decay", self.weight_decay)
        self._check_training()
        if self.until is not None and not 0 < self.until <= 1:
            raise InputError(f"--until {self.until} is not in (0, 1]: give the share of the run in which masks change")
        if self.drop_fraction is not None:
            check_fraction("--drop-fraction", self.drop_fraction)
        if self.validation_size is not None:
            check_count("--validation-size", self.validation_size, minimum=0)
        if not 0 <= self.label_noise < 1:
            raise InputError(f"--label-noise {self.label_noise} is not in [0, 1): give the fraction of wrong labels")
        found = dataclasses.replace(
            self,
            method=method,
            model=model,
            sparsity=sparsity,
            channels=getattr(kind, "channels", None) if self.channels is None else self.channels,
            **own,
            device=usable_device(self.device),
        )
        found.plan()
        return found

    def _check_training(self) -> None:
        check_finite("--momentum", self.momentum)
        check_fraction("--label-smoothing", self.label_smoothing)
        check_count("--warmup", self.warmup, minimum=0)
        if self.warmup >= self.epochs:
            raise InputError(
                f"--warmup {self.warmup} leaves none of {self.epochs} epochs at the full learning rate: give less"
            )
        check_count("--look-every", self.look_every)
        check_count("--validate-every", self.validate_every)
        check_finite("--look-alpha", self.look_alpha)
        if self.optimizer != "sgd" and (self.nesterov or self.momentum != Run.momentum):
            raise InputError(f"--optimizer {self.optimizer} has no --momentum or --nesterov: leave them out")
        if self.nesterov and self.momentum == 0:
            raise InputError("--nesterov needs momentum: give --momentum over 0")
        if list(self.milestones) != sorted(set(self.milestones)) or any(not 0 < m < 1 for m in self.milestones):
            given = " ".join(f"{m:g}" for m in self.milestones)
            raise InputError(f"--milestones {given} are not rising shares in (0, 1): give e.g. 0.5 0.75")

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {**dataclasses.asdict(self), "data_dir": None if self.data_dir is None else str(self.data_dir)}

    @property
    def whole_epochs(self) -> int:
        """Passes over the training images, the multiplier taken in."""
        return round(self.multiplier * self.epochs)

    @property
    def probe_every(self) -> int | None:
        """Steps between looks."""
        told = re.fullmatch(r"every=([1-9]\d*)", self.probe or "")
        return int(told[1]) if told else None

    @property
    def passes(self) -> float:
        """Gradients taken in a step, on average."""
        if self.rho == 0:
            return 1
        return {"sam": 2.0, "looksam": 1 + 1 / self.look_every}.get(self.sharpness, 1.0)

    def plan(self) -> Plan:
        """What the method of a resolved run does, told before the length of the run is known; its rounds do not hang on that.

        Raises: InputError for options that the method refuses, and when its own code does not run.
        """
        own = options_of(kind_of(self.method))
        chosen = {n: value for n in METHOD_OPTIONS if n in own and (value := getattr(self, n)) is not None}
        assert self.sparsity is not None  # resolved
        with contextlib.ExitStack() as around:
            if ".py:" in self.method:
                around.enter_context(errors_of(Path(self.method.rpartition(":")[0])))
            around.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # they are of this length, and the plan of the true one has its own
            return named(self.method, chosen).plan(self.sparsity, max(AMPLE, self.rewind or 0))

    @property
    def rounds(self) -> int:
        """Rounds of a run that is resolved."""
        rounds = self.plan().rounds
        return rounds.count if rounds else 1


def once(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the method of recorded settings did where they do not say, because there was no choice yet."""
    kind = METHODS.get(str(settings.get("method")))
    return {name: value for name, value in ONCE.items() if name not in settings and hasattr(kind, name)}


def usable_device(name: str) -> str:
    """A device by its name, ``auto`` made definite. Raises InputError for one that cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = re.split(r"[.:] ", str(problem).splitlines()[0])[0].rstrip(".")
        raise InputError(f"--device {name} cannot be used ({reason}): give cpu, cuda or auto") from None
    return name
