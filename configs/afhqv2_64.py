"""AFHQv2 at 64 x 64, PSLD, as sampled by Pandey, Rudolph & Mandt (2024).

The published sources give the SDE but not the network at this size; here it is that of CelebA at 64 x 64. Convert a
checkpoint with ``--config auto`` to see what it really is.
"""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The celeba64 configuration with what differs."""
    config = load_config("celeba64")
    config.data.center_crop = 0
    config.model.dropout = 0.2
    config.sde.gamma, config.sde.nu = 0.01, 4.01
    return config
