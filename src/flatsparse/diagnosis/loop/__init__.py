"""Checks of what happens in a loop, step by step."""
