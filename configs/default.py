"""Every field of a configuration, with its default. Other configs override what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The complete default configuration, locked: an unknown field is an error."""
    config = ConfigDict()
    config.seed = 0

    config.sde = ConfigDict()
    config.sde.name = "psld"  # psld | vpsde
    config.sde.gamma = 0.01  # PSLD only, like nu, kappa and decomposition
    config.sde.nu = 4.01
    config.sde.kappa = 0.04
    config.sde.decomposition = "lower"  # lower | upper
    config.sde.beta_min = 8.0
    config.sde.beta_max = 8.0
    config.sde.jitter = 1e-9

    config.model = ConfigDict()
    config.model.name = "mixture"  # mixture: the exact score of the smoothed data
    config.model.bandwidth = 0.05  # standard deviation of the smoothing, in units of pixel values

    config.data = ConfigDict()
    config.data.name = "digits"  # digits: 1,797 handwritten digits of 8 x 8 pixels
    config.data.num_points = 0  # 0: all; else the first so many

    config.sampler = ConfigDict()
    config.sampler.name = "reduced_oba"  # any integrator, or rk23 | rk45 | tsit5 | dopri8
    config.sampler.nfe = 50  # budget, the denoising evaluation included
    config.sampler.grid = "quadratic"  # uniform | quadratic | power | log_snr
    config.sampler.t_end = 1e-3
    config.sampler.denoise = True
    config.sampler.hyper = ConfigDict()  # hyper-parameters by name, e.g. --config.sampler.hyper.lam=1.0
    for name, value in (("lam", 0.5), ("lam_s", 1.0)):
        config.sampler.hyper[name] = value
    config.sampler.hyper.noise_scaling = "step"  # step | mean_time
    config.sampler.hyper.beta_rule = "exact"  # exact | original (SSCS)
    config.sampler.rtol = 1e-4  # adaptive solvers only
    config.sampler.atol = 1e-4

    config.sampling = ConfigDict()
    config.sampling.num_samples = 64
    config.sampling.batch_size = 256

    config.bench = ConfigDict()
    config.bench.samplers = ("all",)
    # 12 k + 1: schemes of 1, 2, 3 or 4 evaluations a step, and the denoising step, all can spend the whole budget.
    config.bench.nfe = (13, 25, 49, 97)
    config.bench.grids = ("quadratic",)
    config.bench.num_samples = 512

    return config.lock()
