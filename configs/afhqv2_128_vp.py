"""AFHQv2 at 128 x 128, VP: the PSLD network on positions alone."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The afhqv2_128 configuration with what differs."""
    config = load_config("afhqv2_128")
    config.model.in_ch = config.model.out_ch = 3
    config.sde.name = "vpsde"
    config.sde.beta_min, config.sde.beta_max = 0.1, 20.0
    config.sde.jitter = 0.0
    return config
