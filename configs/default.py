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
    # mixture: the exact score of the smoothed data | ncsnpp: NCSN++ | ncsnpp_clf: its classifier |
    # saved: network and SDE as the directory in config.model.checkpoint says
    config.model.name = "mixture"
    config.model.bandwidth = 0.05  # mixture: standard deviation of the smoothing, in units of pixel values
    config.model.checkpoint = ""  # directory with the weights of a network
    config.model.weights = ""  # ema | online; empty: ema if it is there
    config.model.data_std = 0.0  # > 0: the network is preconditioned in phase space for such data
    config.model.n_classes = 0  # of a classifier
    # NCSN++, see psld_jax.models.NCSNppConfig; channels are those of the whole state.
    config.model.in_ch = 6
    config.model.out_ch = 6
    config.model.image_size = 32
    config.model.nonlinearity = "swish"  # swish | elu | relu | lrelu
    config.model.nf = 128
    config.model.ch_mult = (1, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attn_resolutions = (16,)
    config.model.dropout = 0.1
    config.model.resamp_with_conv = True
    config.model.noise_cond = True
    config.model.fir = False
    config.model.fir_kernel = (1, 3, 3, 1)
    config.model.skip_rescale = True
    config.model.resblock_type = "biggan"  # biggan | ddpm
    config.model.progressive = "none"  # none | output_skip | residual
    config.model.progressive_input = "none"  # none | input_skip | residual
    config.model.progressive_combine = "sum"  # sum | cat
    config.model.embedding_type = "positional"  # positional | fourier
    config.model.init_scale = 0.0
    config.model.fourier_scale = 16.0
    config.model.dtype = "float32"  # float32 | bfloat16, of the activations

    config.data = ConfigDict()
    config.data.name = "digits"  # digits: 1,797 handwritten digits of 8 x 8 pixels (mixture)
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
    config.bench.nfe = (13, 25, 49)
    config.bench.grids = ("quadratic",)
    config.bench.num_samples = 512

    return config.lock()
