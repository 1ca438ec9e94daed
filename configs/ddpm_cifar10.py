"""CIFAR-10, DDPM (Ho et al., 2020) as diffusers has it: google/ddpm-cifar10-32, 35.7 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name, config.data.flip = "cifar10", True
    config.model.name = "unet2d"
    config.model.image_size, config.model.in_ch, config.model.out_ch = 32, 3, 3
    config.model.dropout = 0.1  # in training; theirs says 0.0
    u = config.model.unet2d
    u.sample_size, u.in_channels, u.out_channels = (32, 32), 3, 3
    u.block_out_channels, u.layers_per_block = (128, 256, 256, 256), 2
    u.down_block_types = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    u.up_block_types = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    u.downsample_padding, u.flip_sin_to_cos, u.freq_shift = 0, False, 1.0
    u.attention_head_dim, u.norm_eps = 0, 1e-6
    config.sde.name = "discrete"
    config.sde.schedule, config.sde.beta_start, config.sde.beta_end = "linear", 1e-4, 0.02
    config.sde.num_steps = 1000
    config.sampler.name, config.sampler.nfe = "ddim", 50
    config.sampler.grid = "uniform"
    config.train.lr, config.train.steps = 2e-4, 800_000
    return config
