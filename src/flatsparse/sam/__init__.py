"""SAM and S²-SAM: optimizers that take the gradient at perturbed weights."""
