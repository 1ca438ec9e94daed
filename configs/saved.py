"""Whatever network and SDE the directory in ``config.model.checkpoint`` holds; the sampler is chosen here."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.model.name = "saved"
    return config
