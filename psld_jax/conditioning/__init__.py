"""Conditions on samples: guidance, known pixels, linear measurements, and their checks."""
