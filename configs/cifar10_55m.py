"""CIFAR-10, PSLD: the default network of the original repository, 55 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The cifar10 configuration with what differs."""
    config = load_config("cifar10")
    config.model.num_res_blocks = 4
    config.sde.gamma, config.sde.nu = 0.01, 4.01
    return config
