"""``flatsparse landscape``: the loss around finished runs, measured, drawn and described."""
