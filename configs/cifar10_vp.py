"""CIFAR-10, VP: the baseline of Pandey & Mandt (2023)."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The cifar10 configuration with what differs."""
    config = load_config("cifar10")
    config.model.num_res_blocks = 4
    config.model.in_ch = config.model.out_ch = 3
    config.sde.name = "vpsde"
    config.sde.beta_min, config.sde.beta_max = 0.1, 20.0
    config.sde.jitter = 0.0
    return config
