"""Lanczos' method for a symmetric operator: its tridiagonal form, and its eigenvalues at the ends of the spectrum.

Every basis vector is made orthogonal to all before it, without which large eigenvalues appear several times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]  # (n,) -> (n,), symmetric

SUBSPACE = 20  # basis vectors at least, as in ARPACK; on a GPU they are in its memory
RESTARTS = 1000  # about 10,000 products
EXHAUSTED = 1e-6  # a residual so short, relative to the operator, ends the tridiagonal form


def tridiagonal(times: Operator, start: Tensor, steps: int) -> Tensor:
    """The operator on the span of ``start, A start, A² start, …``, as a tridiagonal matrix (at most steps, steps)."""
    steps = min(steps, len(start))
    basis = start.new_empty(steps, len(start))
    basis[0] = start / start.norm()
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for index in range(steps):
        residual, coefficients = _split(times(basis[index]), basis[: index + 1])
        diagonal.append(coefficients[-1])
        length = residual.norm()
        if index + 1 == steps or length <= EXHAUSTED * torch.stack(diagonal).abs().max():
            break
        beside.append(length)
        basis[index + 1] = residual / length
    off = torch.stack(beside) if beside else diagonal[0].new_zeros(0)
    return torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)


def extreme_eigenvalues(
    times: Operator, draw: Callable[[], Tensor], low: int, high: int, *, tolerance: float, precision: float
) -> Tensor | None:
    """The ``low`` smallest and ``high`` largest eigenvalues, in rising order; None when they do not converge.

    Lanczos with thick restarts (Wu & Simon 2000): when the subspace is full, its best approximations of eigenvectors at the
    wanted ends are kept, and the residual that they share is the next basis vector. Equal in theory to ARPACK's implicit
    restarts.

    Args:
        times: the product of the operator with a vector.
        draw: a random vector (n,), in double precision: the start, and one more for each invariant subspace met.
        tolerance: the largest residual ``‖Av − λv‖`` of a result, relative to ``|λ|``.
        precision: that of a product, relative to the operator's norm; no residual needs to be smaller.
    """
    space = _Subspace.around(draw(), max(2 * (low + high) + 1, SUBSPACE))
    for _ in range(RESTARTS):
        space.fill(times, draw, precision)
        values, vectors = torch.linalg.eigh(space.matrix)
        wanted = _ends(len(values), low, high)
        allowed = (tolerance * values[wanted].abs()).clamp(min=precision * float(values.abs().max()))
        if bool((space.residual * vectors[-1, wanted].abs() <= allowed).all()):
            return values[wanted]
        spare = (len(values) - low - high) // 2  # half of the room: fewer restarts than with none, by measurement
        more = spare * high // (low + high)
        space.restart(values, vectors, _ends(len(values), low + spare - more, high + more))
    return None


@dataclass
class _Subspace:
    """A growing orthonormal basis, and the operator on its span.

    Attributes:
        basis: (k + 1, n), as rows; the last is the direction of the residual once the others are there.
        matrix: (k, k), the operator in the first k of them, on the CPU.
        filled: the basis vectors whose products are in the matrix.
        residual: the length of the last product's part outside the span.
    """

    basis: Tensor
    matrix: Tensor
    filled: int = 0
    residual: float = 0.0

    @classmethod
    def around(cls, start: Tensor, length: int) -> _Subspace:
        length = min(length, len(start))
        basis = start.new_zeros(length + 1, len(start))
        basis[0] = start / start.norm()
        return cls(basis, torch.zeros(length, length, dtype=start.dtype))

    def fill(self, times: Operator, draw: Callable[[], Tensor], precision: float) -> None:
        """Add basis vectors until there are k, and the residual's direction."""
        for index in range(self.filled, len(self.matrix)):
            known = self.basis[: index + 1]
            residual, coefficients = _split(times(known[-1]), known)
            self.matrix[index, : index + 1] = self.matrix[: index + 1, index] = coefficients.cpu()
            self.residual = float(residual.norm())
            if len(known) == known.shape[1]:  # the whole space
                self.residual = 0.0
            elif self.residual <= precision * float(self.matrix.abs().max()):  # an invariant subspace: go on outside it
                self.residual = 0.0
                self.basis[index + 1] = torch.nn.functional.normalize(_split(draw(), known)[0], dim=0)
            else:
                self.basis[index + 1] = residual / self.residual
        self.filled = len(self.matrix)

    def restart(self, values: Tensor, vectors: Tensor, chosen: Tensor) -> None:
        """Keep the chosen eigenvectors of the matrix, and the residual's direction, as the first basis vectors."""
        self.filled = len(chosen)
        self.basis[: self.filled] = vectors[:, chosen].T.to(self.basis) @ self.basis[:-1]
        self.basis[self.filled] = self.basis[-1]
        self.matrix.zero_()
        self.matrix.diagonal()[: self.filled] = values[chosen]


def _ends(length: int, low: int, high: int) -> Tensor:
    """The first and last indices of a sequence."""
    return torch.cat([torch.arange(low), torch.arange(length - high, length)])


def _split(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a vector (n,) orthogonal to an orthonormal basis (k, n), and its coefficients (k,) in the basis."""
    first = basis @ vector
    vector = vector - first @ basis
    second = basis @ vector  # twice, for what rounding left
    return vector - second @ basis, first + second
