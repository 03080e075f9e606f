"""Accelerated layers: the same model, computed by sparse kernels where that is faster."""
