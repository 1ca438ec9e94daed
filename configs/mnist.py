"""MNIST at 32 x 32, PSLD: a network of 2.8 million parameters, preconditioned in phase space. Set config.data.path."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The default configuration with what differs."""
    config = load_config("default")
    config.data.name = "mnist"
    config.data.fit = "pad"

    config.model.name = "ncsnpp"
    config.model.data_std = 0.97  # root mean square of MNIST in [-1, 1], padded to 32 x 32
    config.model.in_ch, config.model.out_ch = 2, 1
    config.model.nf = 16
    config.model.ch_mult = (1, 2, 4, 8)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()
    config.model.dropout = 0.0
    config.model.embedding_type = "fourier"
    config.model.fourier_scale = 1.0

    config.train.steps = 20000
    config.train.batch_size = 32
    config.train.time_sampling = "stratified"
    config.train.lr = 1e-3
    config.train.warmup = 500
    config.train.schedule = "cosine"
    config.train.ema_decay = 0.999
    config.train.ema_warmup = True
    config.train.eval_every = 1000
    config.train.sample_every = 2000
    config.train.checkpoint_every = 500
    config.train.keep_every = 2000
    return config
