"""CIFAR-10, CLD: the network of Dockhorn et al. (2022), 108 million parameters, with its mixed score."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The cifar10 configuration with what differs."""
    config = load_config("cifar10_sota")
    config.model.out_ch = 3  # of the velocity
    config.model.ch_mult = (1, 2, 2, 2)
    config.model.dropout = 0.1
    config.sde.name = "cld"
    config.sde.mass_inv, config.sde.kappa = 4.0, 0.04
    config.sde.beta_min, config.sde.beta_max = 8.0, 8.0  # twice the rate of CLD-SGM
    config.sde.mixed = True
    return config
