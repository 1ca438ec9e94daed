"""Measuring samplers: sweeps over samplers and budgets, errors against the exact solution, stability, pictures."""
