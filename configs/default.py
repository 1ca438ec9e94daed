"""Every field of a configuration, with its default. Other configs override what differs."""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from psld_jax import sde
from psld_jax.models import families


def get_config() -> ConfigDict:
    """The complete default configuration, locked: an unknown field is an error."""
    config = ConfigDict()
    config.seed = 0  # of initial weights, order of images, noise and samples

    config.sde = ConfigDict()
    config.sde.name = "psld"  # psld | vpsde | vesde | edm | subvp | cosine | flow | discrete | any in psld_jax/sde
    config.sde.gamma = 0.01  # friction of the position; PSLD only, like nu, kappa and decomposition
    config.sde.nu = 4.01  # friction of the momentum; 4 / (gamma - nu)^2 is the mass
    config.sde.kappa = 0.04  # variance of the momentum at t = 0, in masses
    config.sde.decomposition = "lower"  # lower | upper: Cholesky factor of the covariances
    config.sde.beta_min = 8.0  # rate at t = 0, linear in t
    config.sde.beta_max = 8.0  # and at t = 1
    config.sde.jitter = 1e-9  # added to variances
    defaults = [item for name in sde.available() for item in sde.parameters(name).items() if item[0] not in config.sde]
    for key, value in defaults:
        # Where two diffusions have different defaults, a field that is not set is the diffusion's own.
        same = all(other == value for name, other in defaults if name == key)
        config.sde[key] = value if same else placeholder(type(value))

    config.model = ConfigDict()
    # mixture: the exact score of the smoothed data | ncsnpp: NCSN++ | ncsnpp_clf: its classifier |
    # saved: network and SDE as the directory in config.model.checkpoint says | any family of psld_jax/models
    config.model.name = "mixture"
    config.model.bandwidth = 0.05  # mixture: standard deviation of the smoothing, in units of pixel values
    # Weights of a network: a directory that the converter or --mode export wrote, the work directory of a training run,
    # or mnist | mnist_clf | emoji, which ship with the package.
    config.model.checkpoint = ""
    config.model.weights = ""  # ema | online; empty: ema if it is there
    config.model.data_std = 0.0  # > 0: the network is preconditioned in phase space for such data
    config.model.n_classes = 0  # of a classifier
    # NCSN++, see psld_jax.models.NCSNppConfig; channels are those of the whole state.
    config.model.in_ch = 6
    config.model.out_ch = 6
    config.model.image_size = FieldReference(32, field_type=object)  # pixels: one number, or (H, W)
    config.model.nonlinearity = "swish"  # swish | elu | relu | lrelu
    config.model.nf = 128  # channels at the full size
    config.model.ch_mult = (1, 2, 2, 2)  # times nf, by resolution
    config.model.num_res_blocks = 2  # at every resolution on the way down; one more on the way up
    config.model.attn_resolutions = (16,)  # image sizes (the shorter side) at which pixels attend to each other
    config.model.dropout = 0.1
    config.model.resamp_with_conv = True  # ddpm blocks: a convolution with every change of resolution
    config.model.noise_cond = True  # the network is told the time
    config.model.fir = False  # resample with the filter below, not by means and repetition
    config.model.fir_kernel = (1, 3, 3, 1)
    config.model.skip_rescale = True  # sums of two branches over sqrt(2)
    config.model.resblock_type = "biggan"  # biggan | ddpm
    config.model.progressive = "none"  # none | output_skip | residual
    config.model.progressive_input = "none"  # none | input_skip | residual
    config.model.progressive_combine = "sum"  # sum | cat
    config.model.returns_in_ch = True  # output_skip: as many channels as it takes, else out_ch (CLD-SGM)
    config.model.embedding_type = "positional"  # positional | fourier
    # The network is given so many times t: 1 for networks of PSLD, 999 for VP networks of score_sde_pytorch.
    config.model.time_scale = 1.0
    config.model.init_scale = 0.0  # initial scale of the last layer of each branch
    config.model.fourier_scale = 16.0  # standard deviation of the frequencies
    config.model.num_labels = 0  # classes that the score network is told; 0: none
    config.model.dtype = "float32"  # float32 | bfloat16, of the activations
    # Every other network has a section, such as config.model.unet2d, of the options in its file of psld_jax/models.
    for name in families.available():
        options = families.defaults(name)
        if "image_size" in options:  # one number, or (H, W)
            options["image_size"] = FieldReference(options["image_size"], field_type=object)
        config.model[name] = ConfigDict(options)

    config.data = ConfigDict()
    # digits: 1,797 handwritten digits of 8 x 8 pixels, embedded | mnist | fashion_mnist: a directory with the four IDX
    # files | cifar10: a directory or .tar.gz, python or binary | arrays: a .npy or .npz | folder: a directory or .zip
    # of images, recursive; its subdirectories train, and test or val, are the splits if they exist; labels are those of
    # dataset.json, or subdirectories
    config.data.name = "digits"
    config.data.path = ""
    config.data.num_points = 0  # 0: all; else the first so many
    config.data.holdout = 0.0  # fraction set aside for the held-out loss, where there is no test split
    config.data.center_crop = 0  # > 0: the central so many pixels, before anything else (CelebA: 140)
    config.data.fit = "exact"  # to config.model.image_size: exact | pad (black) | crop (short side fits) | stretch
    config.data.convert_channels = False  # grey images in a colour config, or the reverse: convert, else an error
    config.data.on_corrupt = "error"  # folder: error | skip (the next image takes its place)
    config.data.flip = False  # random horizontal flips in training

    config.train = ConfigDict()
    config.train.steps = 800_000
    config.train.batch_size = 128  # over all devices
    config.train.split_state = False  # split parameters and what the optimiser keeps over the devices, to save memory
    config.train.accumulate = 1  # parts that a batch goes through the network in, one after the other
    config.train.remat = False  # keep sums between blocks only and compute their insides again: less memory, more time
    config.train.init = ""  # begin with the weights of this network, a directory or mnist; what it lacks is new
    config.train.label_dropout = 0.1  # of a network with labels: samples whose label it is not told
    config.train.objective = "hsm"  # hsm | dsm
    config.train.weighting = "fid"  # fid (for networks of EDM: as they have it) | nll
    config.train.noise = "time"  # noise levels in training: time (as times are drawn) | log_normal (EDM's)
    config.train.noise_mean = -1.2  # of the logarithm of sigma, if it is log_normal
    config.train.noise_std = 1.2
    config.train.norm = "l2"  # l2 | l1
    config.train.reduce_mean = True  # means over an image and over the batch, else sums
    config.train.t_min = 1e-5  # the earliest time that is drawn
    config.train.time_sampling = "uniform"  # uniform | stratified
    config.train.optimizer = "adam"  # adam | adamw
    config.train.lr = 2e-4
    config.train.beta_1 = 0.9
    config.train.beta_2 = 0.999
    config.train.adam_eps = 1e-8
    config.train.weight_decay = 0.0
    config.train.grad_clip = 1.0  # global norm; 0: none
    config.train.warmup = 5000  # steps from rate 0 to lr
    config.train.schedule = "constant"  # constant | cosine
    config.train.lr_final = 0.0  # cosine: the last rate over lr
    config.train.ema_decay = 0.9999  # 0: no EMA
    config.train.ema_warmup = False  # decay at most (1 + step) / (10 + step)
    config.train.tensorboard = True  # write event files to WORKDIR/tensorboard
    config.train.log_every = 100  # steps, like the next three
    config.train.eval_every = 5000  # 0: never, and then no held-out images are needed
    config.train.sample_every = 10_000  # 0: never
    config.train.checkpoint_every = 5000  # 0: at the end only
    config.train.keep_last = 2  # checkpoints kept
    config.train.keep_every = 0  # and those at multiples of so many steps, forever; 0: none
    config.train.eval_images = 1024  # held-out images that the held-out loss is taken over
    config.train.num_samples = 36  # in a grid of samples
    config.train.divergence = 10.0  # stop when the loss exceeds so many times that of the first interval

    config.sampler = ConfigDict()
    # auto (what --mode tune found for the model, else a rule) | any integrator | rk23 | rk45 | tsit5 | dopri8
    config.sampler.name = "auto"
    config.sampler.nfe = 20  # budget, the denoising evaluation included
    # auto (what was tuned with it; that of the diffusion for a sampler that is named: quadratic for PSLD) | uniform |
    # quadratic | power | log_snr | edm (equal steps in sigma^(1/rho)) | karras (the same) | vp
    config.sampler.grid = "auto"
    config.sampler.rho = 7.0  # of the power and the edm grid
    # In place of grid, t_end and nfe: falling noise levels sigma, or times (of a discrete schedule: numbers of levels)
    config.sampler.sigmas = ()
    config.sampler.timesteps = ()
    config.sampler.tuned = ""  # a samplers.json that --mode tune wrote; empty: the model's own, if it has one
    config.sampler.solver = ""  # the file of a learned solver, in place of name, grid and nfe
    config.sampler.t_end = (
        0.0  # where the grid ends; 0: where the diffusion needs it to (PSLD 1e-3, EDM at sigma 0.002)
    )
    # Where the grid starts. Below 1 the state is led there as if the data were Gaussian, which takes no evaluation; 0:
    # as was tuned, else 1
    config.sampler.t_start = 0.0
    config.sampler.denoise = True  # a step from there to the data, 1 evaluation
    config.sampler.last_step = "auto"  # that step: euler | exponential (to E[x_0 | z]) | auto: the diffusion's own
    config.sampler.hyper = ConfigDict()  # hyper-parameters by name, e.g. --config.sampler.hyper.lam=1.0
    config.sampler.hyper.lam = 0.5  # lambda of conjugate integrators
    config.sampler.hyper.lam_s = 1.0  # scale of the noise of stochastic reduced splittings
    config.sampler.hyper.noise_scaling = "step"  # step | mean_time
    config.sampler.hyper.beta_rule = "exact"  # exact | original (SSCS)
    config.sampler.hyper.projection = "least_squares"  # least_squares | position | momentum
    # Those that are not set are the sampler's own: another one means another thing, or has another default.
    hyper = config.sampler.hyper
    hyper.prediction = placeholder(str)  # eps | eps_r | data (exponential integrators)
    hyper.order = placeholder(int)  # of multistep and exponential integrators, UniPC, ancestral, ...
    hyper.variable = placeholder(str)  # t | log_t | log_snr | sigma | vp_time
    hyper.eta = placeholder(float)  # ancestral, ddim, ...: 0 (deterministic) to 1
    hyper.jitter = placeholder(float)  # sscs: of its half-steps, in place of that of the diffusion
    hyper.S_churn = placeholder(float)  # edm_heun, euler_edm, dpm2: noise on the way, between S_min and S_max
    hyper.S_min = placeholder(float)
    hyper.S_max = placeholder(float)
    hyper.S_noise = placeholder(float)  # its size; of restart, too
    hyper.alpha = placeholder(float)  # edm_heun: where the second evaluation is, 1/2 to 1
    hyper.clock = placeholder(str)  # edm_heun, euler_edm: sigma | t
    hyper.rule = placeholder(str)  # dpm_solver_pp_3m, sa_solver: exact | original
    hyper.lower_order_final = placeholder(bool)  # dpm_solver_pp_3m, unipc, deis, sa_solver
    hyper.variant = placeholder(str)  # unipc: bh1 | bh2
    hyper.tau = placeholder(float)  # sa_solver: how much noise
    hyper.corrector = placeholder(int)  # sa_solver: evaluations that the corrector uses
    hyper.sigma_min = placeholder(float)  # sa_solver: noise between these levels
    hyper.sigma_max = placeholder(float)
    hyper.base = placeholder(str)  # restart: what it restarts
    hyper.intervals = placeholder(tuple)  # restart: (sigma_min, sigma_max, steps, repeats) each
    hyper.repeats = placeholder(int)  # restart, without intervals: of every step
    config.sampler.rtol = 1e-4  # adaptive solvers only
    config.sampler.atol = 1e-4
    config.sampler.max_steps = 4096  # of adaptive solvers, rejected ones included

    config.steer = ConfigDict()  # conditions on the samples, for --mode sample
    config.steer.labels = ()  # classes; sample i has labels[i % len(labels)]
    config.steer.guidance = 1.0  # towards the label: 1 is Bayes' rule, more makes samples more typical
    config.steer.classifier = ""  # mnist_clf, or a directory; empty if the network itself takes labels
    config.steer.negative = ""  # a worse network, name or directory: guidance leads away from it
    config.steer.interval = (0.0, 1.0)  # times between which guidance acts
    config.steer.sigma_interval = ()  # the same in noise levels, (low, high)
    config.steer.guidance_schedule = "constant"  # constant | linear | cosine: weight over time, of mean 1
    config.steer.guidance_rule = "cfg"  # cfg | cfg++ (one block, sampler ddim, guidance up to 1)
    config.steer.guidance_rescale = 0.0  # part of the standard deviation that guidance leaves as it was
    config.steer.clip = 0.0  # bound of the predicted image at every evaluation, e.g. 1; 0: none
    config.steer.clip_percentile = 0.0  # dynamic thresholding at that percentile of its pixels; 0: none
    config.steer.clip_noise = "new"  # new | old: that from before the clip (one block, sampler ddim)
    config.steer.momentum = 0.0  # predictions are extrapolated away from the mean of those before
    config.steer.momentum_decay = 0.5  # of the weights of that mean
    # Test images of config.data of which a part is known: left | right | top | bottom | center (known around it) |
    # a .npy of 0 and 1 (known), [H, W]
    config.steer.mask = ""
    config.steer.fresh = True  # new noise on known pixels after every step
    config.steer.resample = 1  # times that every stretch of the grid is taken
    config.steer.jump = 10  # steps in a stretch
    # Test images are measured through it: downsample | blur | grayscale | mask (steer.mask, as a measurement)
    config.steer.operator = ""
    config.steer.factor = 4  # of downsample
    config.steer.blur = 2.0  # standard deviation in pixels
    config.steer.noise_std = 0.05  # of the measurement, pixels in [-1, 1]
    config.steer.posterior = "pigdm"  # pigdm | dps | conjugate (in the table of a sampler in data prediction)
    config.steer.weight = placeholder(float)  # of the measurement; empty: 1, or for conjugate 4
    config.steer.null_weight = 0.0  # with conjugate: of PiGDM's gradient on what the operator does not see
    config.steer.t_start = 1.0  # below 1: start there, from the noised pseudo-inverse of the measurement

    config.sampling = ConfigDict()
    config.sampling.num_samples = 64
    config.sampling.batch_size = 256
    # png: every image a file in WORKDIR/images | npz: a thousand in a file | empty: a picture of them. A run that is
    # killed goes on with the images that are missing.
    config.sampling.save = ""
    config.sampling.levels = "truncate"  # 127.5 x + 127.5 to uint8: truncate (the original's) | round (EDM's)

    config.bench = ConfigDict()
    config.bench.samplers = ("all",)
    # From 13 on 12 k + 1: schemes of 1, 2, 3 or 4 evaluations a step, and the denoising step, spend the whole budget.
    config.bench.nfe = (5, 7, 13, 25, 49, 97)
    config.bench.grids = ("quadratic",)
    config.bench.num_samples = 512

    config.tune = ConfigDict()
    config.tune.samplers = ("predictor_corrector", "exponential_multistep", "ancestral")  # or ("all",)
    config.tune.nfe = (5, 10, 20, 50)
    config.tune.num_samples = 128  # the best settings are compared on so many, and in the end on twice as many others
    config.tune.candidates = 24  # settings in the first round, on a quarter of the samples
    config.tune.gradient_steps = 20  # 0: no refinement by gradient
    config.tune.features = "pixels"  # of the images, for distances: pixels | mnist (of a classifier)
    # What is learned from the best setting of each budget: none | times (alone) | table (all coefficients of a solver)
    config.tune.learn = "none"
    config.tune.learning = ConfigDict()
    config.tune.learning.num_samples = 512  # noises that it is learned on; as many others select
    config.tune.learning.batch_size = 64
    config.tune.learning.jacobian_batches = 0  # batches of them in an iteration; 0: all
    config.tune.learning.iterations = 40
    config.tune.learning.free = ("tau", "A", "B")  # coefficients of a row: tau, A, B, P, U, V
    config.tune.learning.steps = ()  # rows that are learned, 0 the first; () for all
    config.tune.learning.history = 4  # predictions that a row combines, up to 16
    config.tune.learning.consistent = False  # keep what a step does where the prediction is constant
    config.tune.learning.error = "pixels"  # of the error to the fine solution: pixels | features
    config.tune.learning.distance = 0.0  # weight of the Frechet distance beside it
    config.tune.learning.soft = 0.0  # how far noise may move towards the fine solution, in standard deviations
    config.tune.num_targets = 10_000  # images of config.data, if it has a path, that the samples are compared to

    config.evaluate = ConfigDict()
    config.evaluate.samplers = ("auto",)  # names, also of adaptive solvers (which take no notice of nfe)
    config.evaluate.nfe = (10, 20, 50)
    config.evaluate.seeds = (0, 1, 2)  # the spread over them is reported
    config.evaluate.num_samples = 10_000  # for each sampler, budget and seed
    # pixels | mnist (of a classifier) | inception: the network of FID, from config.evaluate.inception
    config.evaluate.features = "pixels"
    config.evaluate.inception = ""  # pt_inception-2015-12-05-6726825d.pth; fetched to that place if it is not there
    config.evaluate.resize = "tf1"  # for Inception: tf1 (torch-fidelity) | torch (pytorch-fid)
    config.evaluate.reference = ""  # a .npz with mu and sigma (EDM, pytorch-fid) in place of the training images
    config.evaluate.folder = ""  # images that were drawn before, e.g. by sampling.save=png: one more row
    config.evaluate.num_kept = 0  # > 0: KID, precision, recall (and Inception Score) of the first so many samples
    config.evaluate.tuned = ""  # a samplers.json that --mode tune wrote: every sampler's own settings
    config.evaluate.published = ()  # (sampler, nfe, distance) of somebody else, shown beside ours
    config.evaluate.num_reference = 0  # training images that the samples are compared to; 0: all

    config.atlas = ConfigDict()
    config.atlas.samplers = ("predictor_corrector", "lambda_ddim_ii", "ancestral", "reduced_oba")
    config.atlas.nfe = (5, 10, 20, 50)
    config.atlas.num_samples = 8  # side by side
    config.atlas.frames = 12  # of a trajectory, at most; fewer where a page of 5 MB has no room
    config.atlas.solver = "rk45"  # of the fine solution that samples are compared to: rk23 | rk45 | tsit5 | dopri8
    config.atlas.tolerance = 1e-5  # its relative and absolute tolerance

    config.program = ConfigDict()
    config.program.platforms = ()  # cpu | cuda | rocm | tpu that a sampler is written for; (): the one in use

    config.likelihood = ConfigDict()
    config.likelihood.num_images = 64  # test images of config.data
    config.likelihood.draws = 4  # of the momentum and of Hutchinson's signs, for each image
    config.likelihood.divergence = "hutchinson"  # hutchinson | exact (small images)
    config.likelihood.t_end = 1e-5  # where the density is taken
    config.likelihood.solver = "rk45"  # rk23 | rk45 | tsit5 | dopri8
    config.likelihood.rtol = 1e-4  # of a step, for states and for the density
    config.likelihood.atol = 1e-4
    config.likelihood.batch_size = 64

    config.interpolate = ConfigDict()
    config.interpolate.num_paths = 6  # between test images 0 and 1, 2 and 3, ...
    config.interpolate.num_steps = 9  # images on each
    config.interpolate.rtol = 1e-4
    config.interpolate.atol = 1e-4

    return config.lock()
