"""Masks on a model's weights, the rules that move them, and the training that keeps them."""
