"""Measurements of a model: FLOPs, topology, Hessian, loss surface, sharpness."""
