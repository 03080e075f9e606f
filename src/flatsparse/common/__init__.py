"""Shared by all packages: errors, seeds, files, sharded tensors, chains of optimizers."""
