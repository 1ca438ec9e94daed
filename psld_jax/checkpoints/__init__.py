"""Reading and writing weights: directories of this package, and PyTorch checkpoints, of which nothing is executed."""
