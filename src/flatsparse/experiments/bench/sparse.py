"""``flatsparse bench sparse``: where the speed of sparsity is, by case, form and share of zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flatsparse.common.errors import InputError, check_sparsity
from flatsparse.experiments.bench import sparse_gpu
from flatsparse.experiments.bench.results import Table
from flatsparse.experiments.bench.sparse_cases import CASES, KINDS, QUICK_CASES, Kind, SpeedCase, chosen
from flatsparse.experiments.bench.sparse_curves import BATCH, SPARSITY, Axis
from flatsparse.experiments.bench.sparse_forms import masked_at
from flatsparse.experiments.bench.sparse_gpu import GPUCase
from flatsparse.experiments.bench.sparse_tables import Points, not_installed, speed_table
from flatsparse.experiments.bench.sparse_timing import measured
from flatsparse.experiments.bench.variants import fused_sgd

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Survey:
    """What is measured of the speed of sparsity.

    Attributes:
        cases: by name: on a CPU layers and networks, on a GPU linear layers with 2:4 sparsity.
        sparsities: at which those on a CPU are measured.
        device: cpu or cuda.
        rounds: of each measurement; None: as many as fit its time.
    """

    cases: Mapping[str, SpeedCase | GPUCase]
    sparsities: tuple[float, ...]
    device: str
    rounds: int | None = None

    @property
    def axis(self) -> Axis:
        """What speeds are measured along."""
        return BATCH if any(isinstance(case, GPUCase) for case in self.cases.values()) else SPARSITY

    @property
    def pieces(self) -> int:
        """The number of measurements."""
        return len(KINDS) * sum(len(self._along(case)) for case in self.cases.values())

    def check(self) -> None:
        """Raise InputError where a case cannot be as sparse as requested."""
        for case in self.cases.values():
            if isinstance(case, SpeedCase):
                model = case.model()
                masked_at(model, fused_sgd(model), max(self.sparsities))

    def tables(
        self, tell: Callable[[float], None], begin: Callable[[str], None] = lambda name: None
    ) -> Iterator[Table]:
        """Yield each case's table when it is measured, on torch's current number of threads.

        Args:
            tell: called with the number of pieces, or the part of one, that was done.
            begin: called with the name of each case before it is measured.
        """
        said: list[str] | None = None
        for name, case in self.cases.items():
            begin(name)
            points: Points = {
                kind: {at: self._measured(case, at, kind, tell) for at in self._along(case)} for kind in KINDS
            }
            said = not_installed(points) if said is None else []  # once for all cases
            threads = None if isinstance(case, GPUCase) else torch.get_num_threads()
            yield speed_table(name, case.title, points, threads=threads, said=said, axis=self.axis)

    def _along(self, case: SpeedCase | GPUCase) -> tuple[float, ...]:
        return case.batches if isinstance(case, GPUCase) else self.sparsities

    def _measured(
        self, case: SpeedCase | GPUCase, at: float, kind: Kind, tell: Callable[[float], None]
    ) -> dict[str, Any]:
        if isinstance(case, GPUCase):
            return sparse_gpu.measured(case, int(at), kind, self.device, rounds=self.rounds, tell=tell)
        return measured(case, at, kind, threads=torch.get_num_threads(), rounds=self.rounds, tell=tell)


def survey(
    patterns: Sequence[str], sparsities: Sequence[float], *, device: str, rounds: int | None, quick: bool
) -> Survey:
    """Return what is to be measured.

    Args:
        patterns: of the names of cases; none for all.
        sparsities: none for the usual ones.
        device, rounds: as the survey's.
        quick: take tiny cases.

    Raises: InputError for a choice that cannot be measured.
    """
    if device != "cpu":
        sparse_gpu.check_device(device)
        if sparsities:
            raise InputError(
                f"--sparsities is for --device cpu: on {device} half of the weights are zero; leave it out"
            )
        return _survey(patterns, sparse_gpu.QUICK_CASES if quick else sparse_gpu.CASES, (), device, rounds)
    checked = tuple(sorted({check_sparsity(sparsity) for sparsity in sparsities})) or SPARSITIES
    if not checked[0]:
        raise InputError("sparsity 0 is not usable: the dense form is measured anyway; give e.g. 0.5 0.9")
    return _survey(patterns, QUICK_CASES if quick else CASES, checked, device, rounds)


def _survey(
    patterns: Sequence[str], cases: Mapping[str, Any], sparsities: tuple[float, ...], device: str, rounds: int | None
) -> Survey:
    return Survey({name: cases[name] for name in chosen(patterns, cases)}, sparsities, device, rounds)
