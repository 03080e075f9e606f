"""Evaluations of finished runs on their test samples, and on corrupted ones."""
