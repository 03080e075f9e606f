"""The cost of sharpness awareness: time and memory of training steps, variants side by side."""
