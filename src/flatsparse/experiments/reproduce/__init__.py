"""Recipes reproduced: run, compared with what was printed, judged."""
