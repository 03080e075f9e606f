"""The measurements of ``flatsparse bench``: what is chosen, and how it is measured."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from flatsparse.common.errors import InputError, check_count, check_fraction, check_sparsity, unknown
from flatsparse.experiments.bench.cases import CASES, QUICK_CASES, Batch, Case, images
from flatsparse.experiments.bench.results import (
    Table,
    memory_table,
    step_table,
    there,
    throughput_table,
    timed,
    updates,
)
from flatsparse.experiments.bench.sparse import RUNS, SMALL, TARGET, Thinned, csr, drawn, sparse_table, trained
from flatsparse.experiments.bench.timing import WARM_UP
from flatsparse.experiments.bench.trainer import Trainer
from flatsparse.experiments.bench.variants import BASE, BASES, CONTROL, VARIANTS, variants_for
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.stats import FEWEST
from flatsparse.experiments.tasks.classification import Classification
from flatsparse.experiments.terminal import Console
from flatsparse.models import IMAGES, MODELS

WHAT = ("step", "throughput", "memory", "sparse")
NOTES = {
    "step": "Ratios to the base alone, medians over rounds with bootstrap intervals. Implied: from the time inside the"
    " optimizer alone, without the noise of forward and backward; wall: of whole steps.",
    "throughput": "Ratios to plain training with the same method, medians over rounds with bootstrap intervals. Steps that"
    " change the masks are timed apart, and make the others longer by their share of the paper's run on CIFAR.",
    "memory": "Live tensors, counted to the byte; kept: between steps. Extra: over SGD on the same net, in buffers of the"
    " parameters' size.",
    "sparse": "How many times as fast as the dense net, medians over rounds with bootstrap intervals. Masked: zeros are"
    " multiplied like other weights. Gone: an ordinary net of narrower layers. CSR: patches, multiplied by active weights alone.",
}


@dataclass(frozen=True)
class Bench:
    """The choice of a measurement, its networks and its length."""

    what: tyro.conf.Positional[str]
    """step, throughput, memory or sparse."""
    case: tuple[str, ...] = ()
    """Networks: resnet32, resnet50, transformer, mlp. By default all, and resnet32 for throughput. Not for sparse."""
    base: str = "sgd"
    """For step: the optimizer that is alone in the first row and inside of the others, sgd or adamw."""
    model: str | None = None
    """For sparse: the network, by a name that train takes. By default resnet32."""
    channels: float | None = None
    """For sparse: the fraction of each group of channels to remove. By default 0.5."""
    run: Path | None = None
    """For sparse: the folder of a finished run whose method removes channels, instead of --model and random channels."""
    data_dir: Path | None = None
    """For --run: folder of local copies of data sets. By default that of the run."""
    batch_size: int | None = None
    """For sparse: images in a batch. By default 64."""
    rounds: int = 20
    """Number of timed steps of each variant."""
    sparsity: float | None = None
    """Fraction of prunable weights that are zero. By default 0 for step, 0.9 for throughput, memory and the CSR form of
    sparse, which 0 leaves out."""
    threads: int | None = None
    """Number of torch threads. By default torch's choice; sparse measures with one and with that many."""
    device: str = "auto"
    """Device to measure on: cpu, cuda, or auto (cuda if there is one)."""
    quick: bool = False
    """Tiny networks and few rounds, to check that everything works; the figures mean nothing."""

    def check_nets(self) -> None:
        """Raise InputError for a network that cannot be as sparse as requested."""
        assert self.sparsity is not None  # resolved
        for case in self.cases().values():
            if self.what == "sparse":
                csr(case.model(), self.sparsity)
            else:
                Trainer(case, VARIANTS[BASE], sparsity=self.sparsity)

    def resolved(self) -> Bench:
        """Return the settings with defaults filled in. Raises InputError for anything that cannot be measured."""
        if self.what not in WHAT:
            raise unknown("bench", self.what, WHAT)
        for name in self.case:
            if name not in CASES:
                raise unknown("case", name, CASES)
        if self.base not in BASES:
            raise unknown("base", self.base, BASES)
        if self.base != "sgd" and self.what != "step":
            raise InputError(f"--base is for step, not for {self.what}: leave it out")
        check_count("--rounds", self.rounds, minimum=FEWEST)
        if self.threads is not None:
            check_count("--threads", self.threads)
        if self.what == "sparse":
            return self._resolved_sparse()
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
            rounds=FEWEST if self.quick else self.rounds,
            sparsity=sparsity,
            device=usable_device(self.device),
        )

    def _resolved_sparse(self) -> Bench:
        if self.case:
            raise InputError("--case is not for sparse: choose a network with --model")
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
            rounds=FEWEST if self.quick else self.rounds,
            sparsity=0.9 if self.sparsity is None else check_sparsity(self.sparsity),
            device=usable_device(self.device),
        )

    def cases(self) -> dict[str, Case]:
        """The chosen networks by name."""
        if self.what == "sparse":
            return dict([self.subject()[:2]])
        return {name: (QUICK_CASES if self.quick else CASES)[name] for name in self.case}

    def subject(self) -> tuple[str, Case, Thinned]:
        """The network that sparse measures, by name. Raises InputError for a run that cannot be read, or removed no channels."""
        assert self.batch_size is not None  # resolved
        count = 4 if self.quick else self.batch_size
        if self.run is not None:
            finished = load_run(self.run, device=self.device, data_dir=self.data_dir)
            if not isinstance(finished.task, Classification):
                raise InputError(f"'{self.run}' is a run of a task of its own: give one on images")
            train, name = finished.task.splits.train, str(finished.run.model)
            title = f"{name}, {finished.run.pruning.method} on {finished.run.dataset.title}, {count} samples"

            def batch(source: torch.Generator) -> Batch:
                drawn = int(torch.randint(2**31, (), generator=source))
                inputs, targets = next(train.batches(count, seed=drawn)).content
                return inputs, targets

            thinned = trained(finished)
            targets = {SMALL: TARGET} if round(thinned.channels, 2) == 0.5 else {}
            return name, Case(title, lambda: finished.model, batch, targets), thinned
        assert self.model is not None  # resolved
        assert self.channels is not None
        name = "digitnet" if self.quick else self.model
        height = IMAGES[name][1]
        make = functools.partial(MODELS[name], in_channels=3)
        targets = {SMALL: TARGET} if self.channels == 0.5 and not self.quick else {}
        case = Case(f"{name}, {count} images of {height}×{height}", make, images(count, height, 10), targets)
        return name, case, drawn(case, self.channels)

    def as_dict(self) -> dict[str, object]:
        """The settings as plain values."""
        settings = {n: v for n, v in dataclasses.asdict(self).items() if n != "data_dir"}
        return {**settings, "case": " ".join(self.case), "run": None if self.run is None else self.run.name}


def measure(bench: Bench, console: Console) -> list[Table]:
    """Measure every case, one after the other, with a bar, or a line now and then."""
    assert bench.sparsity is not None  # resolved
    cases = bench.cases()
    variants = sum(len(set(variants_for(s, bench.device)) - {CONTROL}) for s in dict.fromkeys((0.0, bench.sparsity)))
    counts = dict.fromkeys((1, torch.get_num_threads()) if bench.threads is None else (bench.threads,))
    rounds = bench.rounds + WARM_UP
    steps = {
        "step": rounds,
        "throughput": sum(WARM_UP + timed(bench.rounds, updates(method, bench.sparsity)) for method in there()),
        "memory": variants,
        "sparse": len(counts) * len(RUNS) * rounds,
    }
    tables = []
    with Progress(console, f"bench {bench.what}", len(cases) * steps[bench.what]) as progress:
        for name, case in cases.items():
            progress.update(title=name)
            for threads in counts if bench.what == "sparse" else (None,):
                with torch_threads(threads):
                    tables.append(_table(bench, name, case, progress.advance))
    return tables


def _table(bench: Bench, name: str, case: Case, tell: Callable[[], None]) -> Table:
    assert bench.sparsity is not None  # resolved
    if bench.what == "memory":
        return memory_table(name, case, sparsity=bench.sparsity, device=bench.device, tell=tell)
    if bench.what == "sparse":
        return sparse_table(
            *bench.subject(),
            sparsity=bench.sparsity,
            rounds=bench.rounds,
            device=bench.device,
            tell=tell,
        )
    make = functools.partial(step_table, base=bench.base) if bench.what == "step" else throughput_table
    return make(name, case, rounds=bench.rounds, sparsity=bench.sparsity, device=bench.device, tell=tell)


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """A context in which torch uses this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
