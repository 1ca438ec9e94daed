"""CIFAR-10, VP: DDPM++ of Song et al. (2021), continuous, 61,804,419 parameters, as score_sde_pytorch trains it.

Others of that code differ by what ``--set`` of the converter replaces: the deep DDPM++ has ``model.num_res_blocks=8``;
NCSN++ ``model.fir=True`` and ``model.progressive_input=residual``; DDPM ``model.num_res_blocks=2``,
``model.resblock_type=ddpm`` and ``model.skip_rescale=False``.
"""

from ml_collections import ConfigDict

from psld_jax.build import load_config


def get_config() -> ConfigDict:
    """The cifar10_vp configuration with what differs."""
    config = load_config("cifar10_vp")
    config.model.time_scale = 999.0
    config.train.steps = 1_300_000
    config.train.ema_warmup = True
    return config
