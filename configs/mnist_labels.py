"""MNIST with labels: the network that ships, trained a little further while it is told the class."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The mnist configuration with what differs."""
    config = load_config("mnist")
    config.model.num_labels = 10
    config.train.init = "mnist"
    config.train.label_dropout = 0.15
    config.train.steps = 1500
    config.train.warmup = 100
    config.train.lr = 3e-4
    config.train.eval_every = 500
    config.train.sample_every = 500
    return config
