"""AFHQv2 at 128 x 128, PSLD: the network of Pandey & Mandt (2023) and their sampling."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name, config.data.holdout, config.data.flip = "folder", 0.02, True
    config.data.fit = "crop"
    config.model.name = "ncsnpp"
    config.model.image_size = 128
    config.model.nf = 160
    config.model.ch_mult = (1, 2, 2, 3, 3)
    config.model.attn_resolutions = (8, 16)
    config.model.dropout = 0.2
    config.sde.gamma, config.sde.nu = 0.01, 4.01
    config.sampler.name = "euler_maruyama"
    config.sampler.nfe = 250
    config.sampler.grid = "quadratic"
    return config
