"""The ablation and comparison of Pandey, Rudolph & Mandt (2024), and our samplers beside it, for ``--mode evaluate``.

Set config.model.checkpoint, and config.data.name and path for the reference. Published are FIDs on CIFAR-10 with
50,000 samples, PSLD, tuned lambda and lambda_s; they are shown beside ours, and compare with Inception features only.
"""

from ml_collections import ConfigDict

from psld_jax.build import load_config

BASELINES = ("EM", "SSCS", "ddim", "lambda_ddim_i", "lambda_ddim_ii")
NAIVE = ("NSE", "NVV", "NOBA", "NBAOAB", "NOBAB")
REDUCED = ("RSE", "RVV", "ROBA", "RBAOAB", "ROBAB")
CONJUGATE = ("CSE", "CVV", "COBA", "CBAOAB", "COBAB")
OURS = ("auto", "predictor_corrector", "exponential_multistep", "ancestral")

PUBLISHED = (
    ("EM", 50, 30.81),
    ("EM", 100, 7.83),
    ("SSCS", 50, 18.83),
    ("SSCS", 100, 4.83),
    ("NOBA", 50, 36.87),
    ("ROBA", 50, 2.76),
    ("ROBA", 100, 2.36),
    ("NVV", 50, 69.06),
    ("RVV", 50, 14.19),
    ("CVV", 50, 3.21),
    ("CVV", 100, 2.11),
)


def get_config() -> ConfigDict:
    """The saved configuration with what differs."""
    config = load_config("saved")
    config.data.name = "cifar10"
    config.evaluate.samplers = (*OURS, *BASELINES, *NAIVE, *REDUCED, *CONJUGATE)
    config.evaluate.nfe = (10, 20, 35, 50, 70, 100, 150, 250)
    config.evaluate.published = PUBLISHED
    return config
