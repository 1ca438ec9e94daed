"""Pictures: what importing and drawing them leaves alone."""

import importlib

import matplotlib

from psld_jax.evaluation import plots


def test_a_notebook_keeps_its_backend():
    before = matplotlib.get_backend()
    try:
        matplotlib.use("svg")
        importlib.reload(plots)
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
