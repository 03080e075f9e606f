"""Many runs in one store, some at a time."""
