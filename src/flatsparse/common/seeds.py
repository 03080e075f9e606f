"""Seeds that are derived, never drawn, so that any number of processes and any resume agree on them."""

from __future__ import annotations

import hashlib

import torch


def derive(*path: int | str) -> int:
    """A 63-bit seed derived from a path, such as ``derive(run_seed, step, layer_index)``.

    Ours, because Python's ``hash`` differs from process to process and nearby integer seeds are correlated.

    >>> derive(0, 100, 3) == derive(0, 100, 3), derive(0, 100, 3) == derive(0, 100, 4)
    (True, False)
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in path)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big") >> 1


def generator(*path: int | str) -> torch.Generator:
    """A generator with a derived seed. On the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(derive(*path))
