"""The measurements of ``flatsparse bench``: what is chosen, and how it is measured."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from flatsparse.common.errors import InputError, check_count, check_fraction, check_sparsity, unknown
from flatsparse.experiments.bench.cases import CASES, QUICK_CASES, Case
from flatsparse.experiments.bench.channels import RUNS, Thinned, channels_table, csr
from flatsparse.experiments.bench.channels_subject import of_model, of_run
from flatsparse.experiments.bench.results import (
    Table,
    memory_table,
    step_table,
    there,
    throughput_table,
    timed,
    updates,
)
from flatsparse.experiments.bench.sparse import Survey, survey
from flatsparse.experiments.bench.timing import WARM_UP
from flatsparse.experiments.bench.trainer import Trainer
from flatsparse.experiments.bench.variants import BASE, BASES, CONTROL, VARIANTS, variants_for
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.stats import FEWEST
from flatsparse.experiments.terminal import Console
from flatsparse.models import MODELS

WHAT = ("step", "throughput", "memory", "sparse")
ROUNDS = 20
NOTES = {
    "step": "Ratios to the base alone, medians over rounds with bootstrap intervals. Implied: from the time inside the"
    " optimizer alone, without the noise of forward and backward; wall: of whole steps.",
    "throughput": "Ratios to plain training with the same method, medians over rounds with bootstrap intervals. Steps that"
    " change the masks are timed apart, and make the others longer by their share of the paper's run on CIFAR.",
    "memory": "Live tensors, counted to the byte; kept: between steps. Extra: over SGD on the same net, in buffers of the"
    " parameters' size.",
    "sparse": "How many times as fast as the dense form in its faster layout, medians over rounds with bootstrap intervals; all"
    " is measured, nothing computed. Masked: zeros are multiplied like other weights. Accelerated: fs.accelerate. Small: an"
    " ordinary dense model with fewer channels and about as many weights. CSR: torch's sparse rows. Training is forward and"
    " backward of layers, and a step with SGD of networks. Break-even: from where on a form is faster, interpolated.",
    "channels": "How many times as fast as the dense net, medians over rounds with bootstrap intervals. Masked: zeros are"
    " multiplied like other weights. Gone: an ordinary net of narrower layers. CSR: patches, multiplied by active weights alone.",
}


@dataclass(frozen=True)
class Bench:
    """The choice of a measurement, its networks and its length."""

    what: tyro.conf.Positional[str]
    """step, throughput, memory or sparse."""
    case: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--cases"])] = ()
    """Networks: resnet32, resnet50, transformer, mlp. By default all, and resnet32 for throughput. For sparse: layers and
    networks by name or pattern, such as 'linear*' or resnet20; by default all."""
    sparsities: tuple[float, ...] = ()
    """For sparse: the fractions of zeros to measure at. By default 0.5 0.8 0.9 0.95 0.98."""
    base: str = "sgd"
    """For step: the optimizer that is alone in the first row and inside of the others, sgd or adamw."""
    model: str | None = None
    """For sparse: measure one network without some of its channels instead, by a name that train takes; resnet32 where only
    --channels is given."""
    channels: float | None = None
    """With --model: the fraction of each group of channels to remove. By default 0.5."""
    run: Path | None = None
    """For sparse: the folder of a finished run whose method removes channels, instead of --model and random channels."""
    data_dir: Path | None = None
    """For --run: folder of local copies of data sets. By default that of the run."""
    batch_size: int | None = None
    """With --model or --run: images in a batch. By default 64."""
    rounds: int | None = None
    """Number of timed steps of each variant. By default 20; for sparse as many as fit some seconds, 6 to 40."""
    sparsity: float | None = None
    """Fraction of prunable weights that are zero. By default 0 for step, 0.9 for throughput, memory and, with --model or --run,
    the CSR form of sparse, which 0 leaves out."""
    threads: int | None = None
    """Number of torch threads. By default torch's choice; sparse takes one, and with --model or --run both."""
    device: str = "auto"
    """Device to measure on: cpu, cuda, or auto (cuda if there is one)."""
    quick: bool = False
    """Tiny networks and few rounds, to check that everything works; the figures mean nothing."""

    @property
    def kind(self) -> str:
        """What is measured: ``what``, or channels for a network that loses some."""
        of_channels = (self.run, self.model, self.channels, self.batch_size)
        return "channels" if self.what == "sparse" and any(value is not None for value in of_channels) else self.what

    def survey(self) -> Survey:
        """What sparse measures, unless it is of channels. Raises InputError for what cannot be measured."""
        chosen = self.sparsities or (() if self.sparsity is None else (self.sparsity,))
        return survey(self.case, chosen, device=self.device, rounds=self.rounds, quick=self.quick)

    def check_nets(self) -> None:
        """Raise InputError for a network that cannot be as sparse as requested."""
        if self.kind == "sparse":
            self.survey().check()
            return
        assert self.sparsity is not None  # resolved
        for case in self.cases().values():
            if self.kind == "channels":
                csr(case.model(), self.sparsity)
            else:
                Trainer(case, VARIANTS[BASE], sparsity=self.sparsity)

    def resolved(self) -> Bench:
        """Return the settings with defaults filled in. Raises InputError for anything that cannot be measured."""
        if self.what not in WHAT:
            raise unknown("bench", self.what, WHAT)
        if self.rounds is not None:
            check_count("--rounds", self.rounds, minimum=FEWEST)
        if self.threads is not None:
            check_count("--threads", self.threads)
        if self.base not in BASES:
            raise unknown("base", self.base, BASES)
        if self.base != "sgd" and self.what != "step":
            raise InputError(f"--base is for step, not for {self.what}: leave it out")
        if self.kind == "sparse":
            return self._resolved_survey()
        if self.sparsities:
            raise InputError("--sparsities is for sparse, without --model and --run: give one --sparsity")
        if self.kind == "channels":
            return self._resolved_channels()
        for name in self.case:
            if name not in CASES:
                raise unknown("case", name, CASES)
        if any(value is not None for value in (self.model, self.channels, self.run, self.batch_size)):
            raise InputError(
                f"--model, --channels, --run and --batch-size are for sparse, not for {self.what}: choose with --case"
            )
        default = 0.0 if self.what == "step" else 0.9
        sparsity = default if self.sparsity is None else check_sparsity(self.sparsity)
        if self.what == "throughput" and not sparsity:
            raise InputError("--sparsity 0 is not usable: throughput compares sparse methods; give e.g. 0.9")
        return dataclasses.replace(
            self,
            case=tuple(dict.fromkeys(self.case)) or (("resnet32",) if self.what == "throughput" else tuple(CASES)),
            rounds=FEWEST if self.quick else self.rounds or ROUNDS,
            sparsity=sparsity,
            device=usable_device(self.device),
        )

    def _resolved_survey(self) -> Bench:
        resolved = dataclasses.replace(
            self,
            device=usable_device(self.device),
            rounds=FEWEST if self.quick else self.rounds,
            threads=self.threads or 1,
        )
        chosen = resolved.survey()
        return dataclasses.replace(resolved, case=tuple(chosen.cases), sparsities=chosen.sparsities, sparsity=None)

    def _resolved_channels(self) -> Bench:
        if self.case:
            raise InputError("--case is not for a network without some channels: choose it with --model alone")
        if self.run is not None and (self.model is not None or self.channels is not None):
            raise InputError("--run brings its own network and channels: leave out --model and --channels")
        model = "resnet32" if self.model is None else self.model
        if model not in MODELS:
            raise unknown("model", model, MODELS)
        channels = 0.5 if self.channels is None else check_fraction("--channels", self.channels)
        if channels in (0, 1):
            raise InputError(f"--channels {channels:g} is not usable: give the fraction that is removed, e.g. 0.5")
        return dataclasses.replace(
            self,
            model=model if self.run is None else None,
            channels=channels if self.run is None else None,
            batch_size=check_count("--batch-size", 64 if self.batch_size is None else self.batch_size, minimum=2),
            rounds=FEWEST if self.quick else self.rounds or ROUNDS,
            sparsity=0.9 if self.sparsity is None else check_sparsity(self.sparsity),
            device=usable_device(self.device),
        )

    def cases(self) -> dict[str, Case]:
        """The chosen networks by name."""
        if self.kind == "channels":
            return dict([self.subject()[:2]])
        return {name: (QUICK_CASES if self.quick else CASES)[name] for name in self.case}

    def subject(self) -> tuple[str, Case, Thinned]:
        """The network that loses channels, by name. Raises InputError for a run that cannot be read, or removed no channels."""
        assert self.batch_size is not None  # resolved
        if self.run is not None:
            return of_run(self.run, 4 if self.quick else self.batch_size, device=self.device, data_dir=self.data_dir)
        assert self.model is not None  # resolved
        assert self.channels is not None
        return of_model(self.model, self.channels, self.batch_size, quick=self.quick)

    def as_dict(self) -> dict[str, object]:
        """The settings as plain values."""
        settings = {n: v for n, v in dataclasses.asdict(self).items() if n != "data_dir"}
        words = {"case": " ".join(self.case), "sparsities": " ".join(map(str, self.sparsities))}
        return {**settings, **words, "run": None if self.run is None else self.run.name}


def measure(bench: Bench, console: Console, save: Callable[[list[Table]], None] = lambda tables: None) -> list[Table]:
    """Measure every case, one after the other, with a bar, or a line now and then.

    Args:
        bench: resolved.
        console: for the bar.
        save: called with the tables so far after each.
    """
    tables: list[Table] = []
    with Progress(console, f"bench {bench.what}", _steps(bench)) as progress:
        for table in _tables(bench, progress):
            tables.append(table)
            save(tables)
    return tables


def _steps(bench: Bench) -> int:
    """The number of times that the bar advances."""
    if bench.kind == "sparse":
        return bench.survey().pieces
    assert bench.rounds is not None  # resolved
    assert bench.sparsity is not None
    rounds = bench.rounds + WARM_UP
    if bench.kind == "channels":
        return len(_thread_counts(bench)) * len(RUNS) * rounds
    if bench.kind == "memory":
        dense_and_sparse = dict.fromkeys((0.0, bench.sparsity))
        return len(bench.case) * sum(len(set(variants_for(s, bench.device)) - {CONTROL}) for s in dense_and_sparse)
    if bench.kind == "step":
        return len(bench.case) * rounds
    methods = [WARM_UP + timed(bench.rounds, updates(method, bench.sparsity)) for method in there()]
    return len(bench.case) * sum(methods)


def _thread_counts(bench: Bench) -> tuple[int, ...]:
    """The numbers of threads that a network without channels is measured on."""
    return tuple(dict.fromkeys((1, torch.get_num_threads()) if bench.threads is None else (bench.threads,)))


def _tables(bench: Bench, progress: Progress) -> Iterator[Table]:
    if bench.kind == "sparse":
        yield from bench.survey().tables(progress.advance, lambda name: progress.update(title=name))
        return
    assert bench.rounds is not None  # resolved
    assert bench.sparsity is not None
    options: dict[str, Any] = {
        "rounds": bench.rounds,
        "sparsity": bench.sparsity,
        "device": bench.device,
        "tell": progress.advance,
    }
    for name, case in bench.cases().items():
        progress.update(title=name)
        if bench.kind == "channels":
            for threads in _thread_counts(bench):
                with torch_threads(threads):
                    yield channels_table(*bench.subject(), **options)
        elif bench.kind == "memory":
            yield memory_table(name, case, sparsity=bench.sparsity, device=bench.device, tell=progress.advance)
        else:
            make = functools.partial(step_table, base=bench.base) if bench.kind == "step" else throughput_table
            yield make(name, case, **options)


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """A context in which torch uses this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
