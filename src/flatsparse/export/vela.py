"""Vela's estimate of what a program costs on an Ethos-U. Needs the extra ``edge``."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from flatsparse.common.errors import InputError
from flatsparse.export.extras import needed, quiet, reason

AREAS = ("sram", "dram", "on_chip_flash", "off_chip_flash")


@dataclass(frozen=True)
class Traffic:
    """Bytes that pass between the processor and a kind of memory in one inference, and how much of it is used.

    Attributes:
        read: weights and feature maps.
        written: weights and feature maps.
        whole: all traffic; what is neither weights nor feature maps is in it too.
        used: bytes that a program occupies in this memory, at its peak; of several programs the largest, in flash all.
    """

    read: int
    written: int
    whole: int
    used: int


@dataclass(frozen=True)
class Estimate:
    """Vela's estimate of one inference, of the part of a network that runs on the NPU.

    Attributes:
        system: Vela's name of the system (memories, clocks), a setting of ``vela.ini``.
        memory_mode: where weights and feature maps lie.
        clock: cycles a second.
        cycles: of the NPU with its memory.
        macs: multiplications that the NPU does; with 2:4 weights an Ethos-U85 does half of them.
        weight_bytes: of the int8 weights and biases before Vela encodes them.
        encoded_weight_bytes: as they are stored and read by the NPU, with scales.
        traffic: by kind of memory (``AREAS``); kinds that are not used are not there.
    """

    system: str
    memory_mode: str
    clock: float
    cycles: int
    macs: int
    weight_bytes: int
    encoded_weight_bytes: int
    traffic: dict[str, Traffic]

    @property
    def inferences_per_second(self) -> float:
        """How often the NPU computes its part in a second."""
        return self.clock / self.cycles


def estimate(programs: Iterable[bytes], options: Iterable[str], folder: Path) -> Estimate:
    """Compile TOSA programs by Vela, as executorch's Ethos-U backend does, and add what its summaries say.

    Args:
        programs: TOSA flatbuffers, one for each part of a network that runs on the NPU; they run one after another.
        options: of Vela, as ``EthosUCompileSpec.compiler_flags`` has them.
        folder: an existing one for its files, whose path has no space.

    Raises: InputError when Vela refuses a program, and without any.
    """
    vela = needed("executorch.backends.arm.arm_vela", "edge")
    found = []
    for number, program in enumerate(programs):
        place = folder / f"vela-{number}"
        place.mkdir()
        try:
            with quiet():
                vela.vela_compile(program, list(options), intermediate_path=str(place))
        except (Exception, SystemExit) as problem:
            raise InputError(f"Vela cannot compile this network ({reason(problem)})") from problem
        found += [read_summary(file) for file in place.glob("output/*_summary_*.csv")]
    if not found:
        raise InputError("no part of this network can run on an Ethos-U, so that Vela has nothing to estimate")
    return total(found)


def read_summary(file: Path) -> Estimate:
    """Return what a summary of Vela (``*_summary_*.csv``) says of one program."""
    with file.open(newline="", encoding="utf-8") as lines:
        (row,) = csv.DictReader(lines)

    def number(name: str) -> int:
        return round(float(row[name]))

    traffic = {
        area: Traffic(
            read=number(f"{area}_feature_map_read_bytes") + number(f"{area}_weight_read_bytes"),
            written=number(f"{area}_feature_map_write_bytes") + number(f"{area}_weight_write_bytes"),
            whole=number(f"{area}_total_bytes"),
            used=round(1024 * float(row[f"{area}_memory_used"])),
        )
        for area in AREAS
    }
    return Estimate(
        system=row["system_config"],
        memory_mode=row["memory_mode"],
        clock=float(row["core_clock"]),
        cycles=number("cycles_total"),
        macs=number("nn_macs"),
        weight_bytes=number("total_original_weights"),
        encoded_weight_bytes=number("total_npu_encoded_weights"),
        traffic={area: each for area, each in traffic.items() if each.whole or each.used},
    )


def total(parts: list[Estimate]) -> Estimate:
    """Return the estimate of programs that run one after another: all adds up, but that they take turns in RAM."""
    traffic = {}
    for area in AREAS:
        if each := [part.traffic[area] for part in parts if area in part.traffic]:
            traffic[area] = Traffic(
                read=sum(t.read for t in each),
                written=sum(t.written for t in each),
                whole=sum(t.whole for t in each),
                used=(sum if area.endswith("flash") else max)(t.used for t in each),
            )
    return replace(
        parts[0],
        cycles=sum(part.cycles for part in parts),
        macs=sum(part.macs for part in parts),
        weight_bytes=sum(part.weight_bytes for part in parts),
        encoded_weight_bytes=sum(part.encoded_weight_bytes for part in parts),
        traffic=traffic,
    )
