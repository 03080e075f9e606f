"""Checks of the objects of a loop as they are now."""
