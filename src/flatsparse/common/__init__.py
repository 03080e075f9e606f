"""What every package needs: errors, seeds, files, tensors of several processes."""
