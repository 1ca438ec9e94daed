"""CelebA at 64 x 64, VP: the baseline of the original repository."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The celeba64 configuration with what differs."""
    config = load_config("celeba64")
    config.model.ch_mult = (1, 2, 2, 2, 4)
    config.model.num_res_blocks = 2
    config.model.progressive_input = "none"
    config.model.fir = False
    config.model.embedding_type = "positional"
    config.model.in_ch = config.model.out_ch = 3
    config.sde.name = "vpsde"
    config.sde.beta_min, config.sde.beta_max = 0.1, 20.0
    config.sde.jitter = 0.0
    config.sampler.nfe = 1000
    config.sampler.grid = "uniform"
    return config
