"""Structured surgery on any model: its graph, its groups of channels, and a model without some of them."""
