"""CIFAR-10 with labels, EDM: DDPM++ (Karras et al., 2022), 55.7 million parameters."""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The edm_cifar10_uncond_vp configuration with what differs."""
    config = load_config("edm_cifar10_uncond_vp")
    config.model.edm.label_dim = config.model.num_labels = 10
    config.train.label_dropout = 0.0
    return config
