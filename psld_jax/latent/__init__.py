"""The probability-flow ODE from data to noise: codes of images, interpolation, likelihood."""
