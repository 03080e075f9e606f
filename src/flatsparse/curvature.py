"""The Hessian of a model's loss and its spectrum: the public name of ``measure.hessian`` and ``measure.spectral``."""

from flatsparse.measure.hessian import Hessian
from flatsparse.measure.spectral import Estimate, Spectrum, eigenvalues, extremes, spectrum, trace

__all__ = ["Estimate", "Hessian", "Spectrum", "eigenvalues", "extremes", "spectrum", "trace"]
