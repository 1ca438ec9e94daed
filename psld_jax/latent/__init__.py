"""The probability-flow ODE the other way: codes of images, interpolation, likelihood."""
