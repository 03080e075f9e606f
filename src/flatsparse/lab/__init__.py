"""The laboratory: data, training runs, comparisons and the command line. Needs the extra ``flatsparse[lab]``."""
