"""The comparison of arms of a user's own training script: what ``flatsparse compare FILE.py:FUNCTION`` runs."""
