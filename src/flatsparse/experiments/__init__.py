"""Experiments: runs, grids of runs, and reports on them. Needs the extra `lab`."""
