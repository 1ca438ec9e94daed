"""CIFAR-10 without labels, EDM: DDPM++ (Karras et al., 2022), 55.7 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name, config.data.flip = "cifar10", True
    config.model.name = "edm"
    config.model.image_size, config.model.in_ch, config.model.out_ch = 32, 3, 3
    config.model.dropout = 0.13
    e = config.model.edm
    e.image_size, e.channels = 32, 3
    e.architecture, e.embedding_type, e.encoder_type, e.channel_mult_noise = "song", "positional", "standard", 1
    e.resample_filter = (1, 1)
    e.model_channels, e.channel_mult, e.num_blocks, e.attn_resolutions = 128, (2, 2, 2), 4, (16,)
    e.augment_dim = 9  # of their augmentation, which nothing here applies: the released weights have it
    config.sde.name = "edm"
    config.sde.sigma_min, config.sde.sigma_max, config.sde.data_std = 0.002, 80.0, 0.5
    # Theirs: 17 steps of Heun and one of Euler, to the data.
    config.sampler.name, config.sampler.nfe = "heun", 35
    config.sampler.grid, config.sampler.rho = "power", 7.0
    config.train.batch_size, config.train.steps = 512, 390_625  # 200 million images
    config.train.lr, config.train.warmup = 1e-3, 19_531  # 10 million images
    config.train.grad_clip = 0.0
    config.train.noise = "log_normal"
    return config
