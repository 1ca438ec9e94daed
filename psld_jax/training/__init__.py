"""Training of networks: losses, optimisers, one step, the loop, and the watch over a run."""
