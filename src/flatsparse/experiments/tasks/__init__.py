"""Tasks of runs: the built-in data sets, one file each, and the user's own."""
