"""CIFAR-10, PSLD: the 55-million-parameter network of Pandey & Mandt (2023).

The paper gives the size, not the options: of the family that its scripts span, this member has 55.7 million. Convert a
checkpoint with ``--config auto`` to see what it really is.
"""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The cifar10 configuration with what differs."""
    config = load_config("cifar10")
    config.model.ch_mult = (2, 2, 2)
    config.model.num_res_blocks = 4
    config.sde.gamma, config.sde.nu = 0.01, 4.01
    return config
