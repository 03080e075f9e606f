"""What sharpness awareness costs: time and memory of training steps, variants side by side."""
