"""CIFAR-10 without labels, EDM: NCSN++ (Karras et al., 2022), 56.4 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The edm_cifar10_uncond_vp configuration with what differs."""
    config = load_config("edm_cifar10_uncond_vp")
    e = config.model.edm
    e.embedding_type, e.encoder_type, e.channel_mult_noise = "fourier", "residual", 2
    e.resample_filter = (1, 3, 3, 1)
    return config
