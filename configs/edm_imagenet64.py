"""ImageNet at 64 x 64 with labels, EDM: ADM (Karras et al., 2022), 295.9 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The edm_ffhq64 configuration with what differs."""
    config = load_config("edm_ffhq64")
    config.data.flip = False
    config.model.image_size = config.model.edm.image_size = 64
    config.model.dropout = 0.1
    e = config.model.edm
    e.architecture, e.channels_per_head = "dhariwal", 64
    e.model_channels, e.channel_mult, e.num_blocks, e.attn_resolutions = 192, (1, 2, 3, 4), 3, (32, 16, 8)
    e.augment_dim = 0
    e.label_dim = config.model.num_labels = 1000
    config.train.batch_size, config.train.steps = 4096, 610_352
    config.train.lr, config.train.warmup = 1e-4, 2441
    return config
