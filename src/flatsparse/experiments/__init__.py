"""Experiments: runs, grids of runs, and what is reported of them. Needs the extra `lab`."""
