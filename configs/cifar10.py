"""CIFAR-10, PSLD: the ablation network of Pandey & Mandt (2023), 39 million parameters, and their sampling."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name, config.data.flip = "cifar10", True
    config.model.name = "ncsnpp"
    config.sde.gamma, config.sde.nu = 0.02, 4.02
    config.sampler.name = "euler_maruyama"
    config.sampler.nfe = 1000
    config.sampler.grid = "uniform"
    return config
