"""Handwritten digits of 8 x 8 pixels with their exact score: nothing to download, nothing to train."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration already describes the digits."""
    return load_config("default")
