"""Reports: figures, text and HTML."""
