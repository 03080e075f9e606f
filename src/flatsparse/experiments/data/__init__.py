"""Data sets: where they come from, and how a run splits them."""
