"""Emoji at 16 x 16 in colour, PSLD with labels: a network of 3.0 million parameters. Set config.data.path."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name = "folder"  # benchmarks/emoji.py of the repository makes it
    config.data.flip = True
    config.data.holdout = 0.05

    config.model.name = "ncsnpp"
    config.model.image_size = 16
    config.model.data_std = 0.787  # root mean square of the images in [-1, 1]
    config.model.in_ch, config.model.out_ch = 6, 3
    config.model.nf = 32
    config.model.ch_mult = (1, 2, 4)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (4,)
    config.model.dropout = 0.0
    config.model.embedding_type = "fourier"
    config.model.fourier_scale = 1.0
    config.model.num_labels = 9  # categories

    config.train.steps = 7500
    config.train.batch_size = 64
    config.train.noise = "log_normal"  # half of the levels between 0.17 and 1.2
    config.train.noise_mean = -0.8
    config.train.noise_std = 1.4
    config.train.time_sampling = "stratified"
    config.train.label_dropout = 0.15
    config.train.lr = 1e-3
    config.train.warmup = 300
    config.train.schedule = "cosine"
    config.train.ema_decay = 0.999
    config.train.ema_warmup = True
    config.train.eval_every = 1000
    config.train.sample_every = 1000
    config.train.checkpoint_every = 250
    return config
