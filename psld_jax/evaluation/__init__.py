"""Measuring samplers: sweeps over samplers and budgets, errors to the exact solution, stability, pictures."""
