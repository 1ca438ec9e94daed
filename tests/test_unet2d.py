"""UNet2DModel and the schedules of diffusers against the original's numbers; what cannot be meant is refused."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from flax import nnx
from psld_jax.convert import diffusers, mapping, schedules

import psld_jax as pj
from psld_jax.checkpoints.safetensors import SafeTensors
from psld_jax.models import families
from psld_jax.models.unet2d_source import source_parameters
from psld_jax.models.unet2d_structure import UNet2DConfig, plan

GOLDEN = Path(__file__).parent / "golden_neighbours"
CASES = sorted(path.stem for path in GOLDEN.glob("diffusers_*.json"))
DISCRETE = [name for name in CASES if name != "diffusers_ncsnpp_ve"]


def folder(name, part):
    return GOLDEN / name / part if (GOLDEN / name / part).is_dir() else GOLDEN / name


@functools.cache
def golden(name):
    """Options of the network, its arrays in our layout, and the original's numbers."""
    unet = folder(name, "unet")
    options, _ = diffusers._options(json.loads((unet / "config.json").read_text()))
    config = UNet2DConfig(**options)
    parameters = source_parameters(config)
    with SafeTensors(unet / "diffusion_pytorch_model.safetensors") as source:
        tensors, _ = diffusers._names(source, {parameter.source for parameter in parameters})
        tree = mapping.fill(mapping.match(tensors, parameters))
    return config, tree, np.load(GOLDEN / f"{name}.npz")


#: What runs by default: every kind of block and embedding once, most in float64, which tells most.
QUICK = {("diffusers_ddpm_flat", "float32"), ("diffusers_class_sample", "float64"), ("diffusers_ncsnpp_ve", "float64")}
QUICK |= {("diffusers_vpred_cosine_ddim", "float64")}
ALL = [(name, dtype) for name in CASES for dtype in ("float32", "float64")]


@pytest.mark.parametrize(
    ("name", "dtype"), [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in ALL]
)
def test_outputs_are_the_original_s(name, dtype):
    (config, tree, data), dtype = golden(name), np.dtype(dtype)
    graph, state = nnx.split(families.abstract("unet2d", config))
    nnx.replace_by_pure_dict(state, map_arrays(tree, dtype))
    labels = (jnp.asarray(data["class_labels"]),) if "class_labels" in data else ()
    run = models_support.jit(lambda state, x, t: nnx.merge(graph, state)(x, t, *labels))
    end = "_f64" if dtype == np.float64 else ""
    calls = [(data["x"][i], t, data[f"unet{end}"][i]) for i, t in enumerate(data["t"])]
    calls.append((data["x"][2], data["t_each"], data[f"unet_each{end}"]))
    if "unet_fraction" in data:
        calls.append((data["x"][2], np.float32(123.4), data[f"unet_fraction{end}"]))
    # The README of the golden data: 1e-10 in float64. In float32 1e-5: the original itself is 1.5e-6 from the truth.
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    for x, t, expected in calls:
        times = jnp.broadcast_to(jnp.asarray(t, dtype), (2,))  # one program for a time for all, and for one each
        got = run(state, jnp.moveaxis(jnp.asarray(x, dtype), 1, -1), times)
        assert got.dtype == dtype
        np.testing.assert_allclose(
            np.moveaxis(np.asarray(got), -1, 1), expected, rtol=0, atol=tolerance * np.abs(expected).max()
        )


def map_arrays(tree, dtype):
    return {k: map_arrays(v, dtype) if isinstance(v, dict) else jnp.asarray(v, dtype) for k, v in tree.items()}


@pytest.mark.parametrize("name", DISCRETE)
def test_schedules_are_the_original_s_to_the_bit(name):
    data, place = np.load(GOLDEN / f"{name}.npz"), folder(name, "scheduler") / "scheduler_config.json"
    stored = json.loads(place.read_text())
    levels = schedules.alphas_cumprod(stored)
    assert levels.dtype == np.float32
    np.testing.assert_array_equal(levels, data["alphas_cumprod"])
    given = {key: value for key, value in stored.items() if key != "trained_betas"}
    betas = schedules.alphas_cumprod({**given, "trained_betas": [float(beta) for beta in data["betas"]]})
    np.testing.assert_array_equal(betas, levels)


def test_zero_terminal_snr_ends_without_signal():
    named = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    plain = schedules.alphas_cumprod(named)
    moved = schedules.alphas_cumprod({**named, "rescale_betas_zero_snr": True})
    assert moved[-1] == 0 < plain[-1]
    roots = np.sqrt(plain.astype(np.float64))
    expected = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])  # Lin et al. (2024), algorithm 1
    np.testing.assert_allclose(np.sqrt(moved.astype(np.float64)), expected, rtol=1e-5, atol=1e-6)  # float32 products


@pytest.mark.parametrize("name", ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_schedulers_that_divide_by_the_last_level_keep_a_little_signal(name):
    """They hold 2^-24 in place of 0, so that their largest noise level is 4096 and not infinite."""
    given = {"rescale_betas_zero_snr": True, "beta_schedule": "squaredcos_cap_v2"}
    levels = schedules.alphas_cumprod({"_class_name": f"{name}Scheduler", **given})
    np.testing.assert_array_equal(levels[:-1], schedules.alphas_cumprod({"_class_name": "DDIMScheduler", **given})[:-1])
    assert levels[-1] == 2**-24


@pytest.mark.parametrize("name", ["DEISMultistep", "PNDM", "LMSDiscrete", "HeunDiscrete", "DPMSolverSinglestep"])
def test_schedulers_that_do_not_know_zero_terminal_snr_keep_their_levels(name):
    """A configuration that another scheduler wrote has the option, and the original takes no notice of it."""
    given = {"_class_name": f"{name}Scheduler"}
    levels = schedules.alphas_cumprod({**given, "rescale_betas_zero_snr": True})
    np.testing.assert_array_equal(levels, schedules.alphas_cumprod(given))


@pytest.mark.parametrize("name", ["deis", "lms"])
def test_integrals_over_rounded_levels_end(name):
    """Between levels in float32 the path has large kinks; it is nearly that of the exact levels."""
    exact = pj.sde.Discrete(zero_terminal_snr=True)
    levels = schedules.alphas_cumprod({"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True})
    integrator = pj.integrators.get(name)
    grid = pj.grids.for_budget("uniform", integrator, nfe=5, t_end=1e-3)
    ours, theirs = (pj.tabulate(integrator, sde, grid).B for sde in (pj.sde.Discrete(alphas_cumprod=levels), exact))
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)  # 6e-8 in a level, over its distance to 1, which is 1e-4


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_every_schedule_falls(schedule):
    for name in ("DDPMScheduler", "HeunDiscreteScheduler"):
        levels = schedules.alphas_cumprod({"_class_name": name, "beta_schedule": schedule})
        assert len(levels) == 1000 and 0 < levels[-1] < 0.1 * levels[0] < 0.1
        assert (np.diff(levels) < 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler' is not supported"),
        ({"_class_name": None}, "'None' is not supported"),
        ({"predict_epsilon": False}, "predict_epsilon=False, as diffusers did before prediction_type"),
        ({"_class_name": ["DDPMScheduler"]}, "is not supported"),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "timestep_type": "continuous",
                "prediction_type": "v_prediction",
            },
            "tells the network log",
        ),
        ({"prediction_type": "flow_prediction"}, "unknown prediction_type 'flow_prediction'"),
        ({"beta_schedule": "quadratic"}, "unknown beta_schedule 'quadratic'"),
        ({"num_train_timesteps": 1}, "num_train_timesteps='1' must be an integer from 2"),
        ({"num_train_timesteps": 10**9}, "must be an integer from 2 to 100000"),
        ({"beta_start": "a"}, "beta_start='a' of the scheduler must be a finite number > 0"),
        ({"beta_end": 2.0}, "do not fall"),
        ({"trained_betas": [0.1, None]}, "trained_betas must be a list"),
        ({"trained_betas": [0.1, -0.2]}, "do not fall"),
    ],
)
def test_schedulers_that_cannot_be_meant_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        schedules.diffusion({"_class_name": "DDPMScheduler", **change})


def test_what_a_scheduler_says():
    sde, predicts, clock = schedules.diffusion({"_class_name": "ScoreSdeVeScheduler"})
    assert (sde, predicts, clock) == ({"name": "vesde", "sigma_min": 0.01, "sigma_max": 1348.0}, "score", "sigma")
    for said, ours in (("epsilon", "eps"), ("v_prediction", "velocity"), ("sample", "data")):
        sde, predicts, clock = schedules.diffusion({"_class_name": "EulerDiscreteScheduler", "prediction_type": said})
        assert (sde["name"], predicts, clock) == ("discrete", ours, "index")


TINY = {
    "sample_size": (8, 8),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}
REFUSED = {
    "block": ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "unknown block in down_block_types"),
    "counts": ({"up_block_types": ("UpBlock2D",)}, "must be equally many"),
    "size": ({"sample_size": (8, 7)}, r"sample_size=\(8, 7\) must be \(H, W\), divisible by 2"),
    "groups": ({"norm_num_groups": 5}, "which group norm cannot divide into 5 groups"),
    "no groups": ({"norm_num_groups": 0}, "cannot divide into 0 groups"),
    "learned": ({"time_embedding_type": "learned"}, "needs num_train_timesteps"),
    "head": ({"attention_head_dim": 17}, "attention_head_dim=17 is more than the 16 channels"),
    "embedding": ({"time_embedding_type": "sinusoidal"}, "unknown time_embedding_type"),
    "shift": ({"freq_shift": 4.0}, "must be .*freq_shift"),
    "out": ({"out_channels": 1}, "the image comes first in what is returned"),
    "skip channels": ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D"), "in_channels": 1}, "of 3 channels"),
    "skip then none": ({"up_block_types": ("SkipUpBlock2D", "UpBlock2D")}, "Skip blocks come after all others"),
    "spatial": ({"resnet_time_scale_shift": "spatial"}, "unknown resnet_time_scale_shift"),
    "dropout": ({"dropout": 1.0}, "dropout=1.0 must lie in"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_networks_that_cannot_be_built_are_refused(kind):
    change, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        UNet2DConfig(**{**TINY, **change})
    assert "\n" not in str(caught.value)


def test_a_skip_block_below_the_others_is_the_last_and_has_no_image():
    config = UNet2DConfig(**{**TINY, "down_block_types": ("DownBlock2D", "SkipDownBlock2D")})
    assert not any(unit.name.endswith("_skip") for unit in plan(config))


def test_each_parameter_has_one_source():
    for name in CASES:
        config, tree, _ = golden(name)
        parameters = source_parameters(config)
        assert len({p.source for p in parameters}) == len({p.path for p in parameters}) == len(parameters)
        for parameter in parameters[::7]:
            array = np.arange(np.prod(parameter.source_shape), dtype=np.float32).reshape(parameter.source_shape)
            np.testing.assert_array_equal(parameter.invert(parameter.convert(array)), array)


def test_published_sizes():
    """google/ddpm-cifar10-32 has 35,746,307 parameters; here without arrays."""
    config = UNet2DConfig(
        sample_size=(32, 32),
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=0,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1.0,
        norm_eps=1e-6,
    )
    assert sum(int(np.prod(p.shape)) for p in source_parameters(config)) == 35_746_307


def test_labels_and_inputs_that_do_not_fit_are_refused():
    config = UNet2DConfig(**TINY, num_class_embeds=3)
    net = families.abstract("unet2d", config)
    x = jnp.zeros((2, 8, 8, 3))
    for arguments, message in (
        ((x, 1.0), "has none for 'any'"),
        ((x, 1.0, jnp.zeros(3, int)), "labels have shape"),
        ((x[..., :1], 1.0), "images have shape"),
        ((x, jnp.zeros(3), jnp.zeros(2, int)), "t has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            nnx.eval_shape(lambda net, *inputs: net(*inputs), net, *arguments)
    plain = families.abstract("unet2d", dataclasses.replace(config, num_class_embeds=0))
    with pytest.raises(ValueError, match="takes no labels"):
        nnx.eval_shape(lambda net, *inputs: net(*inputs), plain, x, 1.0, jnp.zeros(2, int))


def test_labels_that_are_no_classes_are_said_to_become_part_of_the_model():
    path = pj.sde.Discrete()
    model = pj.from_function(lambda x, t: x, path, (8, 8, 3), predicts="eps")
    told = dataclasses.replace(model, eps_fn=SimpleNamespace(needs_labels=True))
    with pytest.raises(ValueError, match=r"no classes: eps_fn=model\.eps_fn\.with_labels\(labels\)"):
        pj.generate(told, "ddim", nfe=3, n=2, label=1)
