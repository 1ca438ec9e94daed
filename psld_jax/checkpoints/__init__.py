"""Files of weights: directories of this package, and checkpoints of PyTorch, read without executing anything."""
