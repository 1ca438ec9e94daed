"""CelebA at 64 x 64, PSLD: the network of Pandey & Mandt (2023) and their sampling."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name, config.data.holdout, config.data.flip = "folder", 0.02, True
    config.data.center_crop, config.data.fit = 140, "crop"
    config.model.name = "ncsnpp"
    config.model.image_size = 64
    config.model.num_res_blocks = 4
    config.model.progressive_input = "residual"
    config.model.fir = True
    config.model.embedding_type = "fourier"
    config.sde.gamma, config.sde.nu = 0.005, 4.005
    config.sampler.name = "euler_maruyama"
    config.sampler.nfe = 250
    config.sampler.grid = "quadratic"
    return config
