"""Training: losses, optimisers, one step, the loop, and what is watched of it."""
