"""Trackers, which show runs elsewhere: TensorBoard, trackio and Weights & Biases."""
