"""The noise-conditional classifier of MNIST at 32 x 32 for ``configs/mnist.py``. Set config.data.path."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The configuration of the score network with what differs."""
    config = load_config("mnist")
    config.model.name = "ncsnpp_clf"
    config.model.n_classes = 10
    config.model.data_std = 0.0
    config.model.ch_mult = (1, 2, 4, 4)

    config.train.steps = 1500
    config.train.batch_size = 64
    config.train.grad_clip = 0.0
    config.train.ema_decay = 0.999
    return config
