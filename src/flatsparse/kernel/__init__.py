"""A compiled pass that takes SGD's step and makes the next neighbour at once, where a C compiler is at hand.

It is plain C, called through ``ctypes``: built in a second, bound to no version of torch. It runs on torch's own threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatsparse.errors import InputError

SOURCE = Path(__file__).with_name("step.c")
FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-fopenmp")


def suits(base: Optimizer) -> bool:
    """Whether the pass can stand in for an optimizer: plain SGD with momentum."""
    return type(base) is SGD and all(group["momentum"] != 0 and not group["maximize"] for group in base.param_groups)


def takes(p: Tensor, *others: Tensor) -> bool:
    """Whether the pass can work on a parameter and what belongs to it: float32 on the CPU, without gaps, laid out alike."""
    layout = p.stride()
    return (
        type(p) is nn.Parameter
        and p.dtype == torch.float32
        and p.device.type == "cpu"
        and (p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last))
        and all(t.stride() == layout and t.dtype == p.dtype for t in others)
    )


def square(tensors: Sequence[Tensor]) -> float:
    """The sum of the squares of all entries."""
    return library().flatsparse_square(len(tensors), _pointers(tensors), _sizes(tensors), torch.get_num_threads())


def step(
    group: dict[str, float],
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    neighbours: Sequence[Tensor],
    scale: float,
) -> None:
    """Take SGD's step with a group's settings, and write ``w + scale g`` into the neighbours."""
    library().flatsparse_step(
        len(weights),
        *map(_pointers, (weights, gradients, momenta, neighbours)),
        _sizes(weights),
        float(group["lr"]),
        group["momentum"],
        1 - group["dampening"],
        group["weight_decay"],
        int(group["nesterov"]),
        scale,
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version([*weights, *momenta, *neighbours])  # as a write by torch itself would


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled pass; built at the first call on a machine and kept in the user's cache.

    Raises: InputError when it cannot be built or loaded.
    """
    try:
        found = ctypes.CDLL(str(_built()))
        found.flatsparse_square.restype = ctypes.c_double
        found.flatsparse_square.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        numbers: list[Any] = [*[ctypes.c_float] * 4, ctypes.c_int, ctypes.c_float, ctypes.c_int]
        found.flatsparse_step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5, *numbers]
        found.flatsparse_step.restype = None
    except (OSError, subprocess.SubprocessError, AttributeError) as problem:
        said = getattr(problem, "stderr", None) or str(problem)
        raise InputError(
            f"the compiled step cannot be built here ({said.strip().splitlines()[-1]}): install a C compiler (set CC), or"
            " leave kernel=True out"
        ) from None
    return found


def _built() -> Path:
    """The shared library for this source and processor, compiled if it is not there yet."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + _processor()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flatsparse"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:  # no place of the user's own
        cache = Path(tempfile.mkdtemp(prefix="flatsparse-"))
    file = cache / f"step-{key}{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
    if file.is_file():
        return file
    compiler = (
        shlex.split(os.environ.get("CC", ""))
        or [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))][:1]
    )
    if not compiler:
        raise OSError("no C compiler")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        part, whole = Path(folder, "step.o"), Path(folder, file.name)
        # Linked without OpenMP's library: that which torch has loaded serves, so both share one pool of threads.
        for call in ([*FLAGS, "-c", str(SOURCE), "-o", str(part)], ["-shared", str(part), "-o", str(whole)]):
            subprocess.run([*compiler, *call], check=True, capture_output=True, text=True, timeout=120)
        whole.replace(file)
    return file


def _processor() -> bytes:
    """What tells one kind of processor from another, as -march=native does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine()).encode()


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _sizes(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(tensors))(*(t.numel() for t in tensors))
