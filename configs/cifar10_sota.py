"""CIFAR-10, PSLD: the largest network of Pandey & Mandt (2023), 97,627,910 parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The cifar10 configuration with what differs."""
    config = load_config("cifar10")
    config.model.ch_mult = (2, 2, 2)
    config.model.num_res_blocks = 8
    config.model.dropout = 0.15
    config.model.progressive_input = "residual"
    config.model.fir = True
    config.model.embedding_type = "fourier"
    config.sde.gamma, config.sde.nu = 0.01, 4.01  # the other published one: 0.02, 4.02
    return config
