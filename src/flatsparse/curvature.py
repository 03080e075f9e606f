"""Hessians of models; ``flatsparse.measure.hessian`` by its public name."""

from flatsparse.measure.hessian import Estimate, Hessian, Spectrum, eigenvalues, extremes, spectrum, trace

__all__ = ["Estimate", "Hessian", "Spectrum", "eigenvalues", "extremes", "spectrum", "trace"]
