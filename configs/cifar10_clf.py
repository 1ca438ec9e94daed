"""The time-dependent classifier of CIFAR-10 in phase space (Pandey & Mandt, 2023), CLD (gamma = 0)."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name, config.data.flip = "cifar10", True
    config.train.grad_clip = config.train.ema_decay = 0.0
    config.model.name = "ncsnpp_clf"
    config.model.n_classes = 10
    config.model.ch_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = 4
    config.model.attn_resolutions = (16, 8)
    config.sde.gamma, config.sde.nu = 0.0, 4.0
    return config
