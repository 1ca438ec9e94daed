"""What psld_jax costs: ``python -m benchmarks --output FILE.json`` measures, ``python -m benchmarks.compare`` compares.

The other files here are experiments behind docs/results.md, each with its own usage line.
"""
