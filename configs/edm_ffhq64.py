"""FFHQ at 64 x 64, EDM: DDPM++ (Karras et al., 2022), 61.8 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The edm_cifar10_uncond_vp configuration with what differs."""
    config = load_config("edm_cifar10_uncond_vp")
    config.data.name, config.data.fit = "folder", "crop"
    config.model.image_size = config.model.edm.image_size = 64
    config.model.edm.channel_mult = (1, 2, 2, 2)
    config.model.dropout = 0.05
    config.sampler.nfe = 79  # 39 steps of Heun and one of Euler
    config.train.batch_size, config.train.steps = 256, 781_250
    config.train.lr, config.train.warmup = 2e-4, 39_062
    return config
