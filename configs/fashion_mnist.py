"""Fashion-MNIST at 32 x 32: the network and the training of ``configs/mnist.py``. Set config.data.path."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The configuration for MNIST with what differs."""
    config = load_config("mnist")
    config.data.name = "fashion_mnist"
    config.data.flip = True
    config.model.data_std = 0.87  # root mean square of Fashion-MNIST in [-1, 1], padded to 32 x 32
    return config
