"""The paper's comparison on MNIST, with the network that ships and the features of a small classifier.

Set config.data.path. With 10,000 samples for each of some 180 cells it is work for an accelerator; on a CPU set
config.evaluate.num_samples=256.
"""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The table of the paper with what differs."""
    config = load_config("paper_table")
    config.model.checkpoint = "mnist"
    config.data.name = "mnist"
    config.data.fit = "pad"
    config.evaluate.features = "mnist"
    config.evaluate.seeds = (0,)
    config.evaluate.published = ()  # FIDs on CIFAR-10 are no measure of these distances
    config.sampling.batch_size = 64
    return config
