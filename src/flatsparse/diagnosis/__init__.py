"""What is wrong with a training loop: checks of its objects as they are, and of what happens in its steps."""
