"""AFHQv2 at 64 x 64, EDM: DDPM++ (Karras et al., 2022), 61.8 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The edm_ffhq64 configuration with what differs."""
    config = load_config("edm_ffhq64")
    config.model.dropout = 0.25
    return config
