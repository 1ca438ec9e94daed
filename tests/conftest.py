"""Tests run in float64 where they ask for it: the network side is exercised in float32 explicitly."""

import jax

jax.config.update("jax_enable_x64", True)
