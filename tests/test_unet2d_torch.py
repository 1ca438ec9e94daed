"""UNet2DModel against diffusers itself, where PyTorch and diffusers are installed: every option, in float64."""

import json

import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from flax import nnx
from psld_jax.convert import convert, read_converted, schedules, written
from psld_jax.convert.diffusers import _options

import psld_jax as pj
from psld_jax import build
from psld_jax.checkpoints.directory import flatten, unflatten
from psld_jax.models import families
from psld_jax.models.unet2d_source import source_parameters
from psld_jax.models.unet2d_structure import UNet2DConfig

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.torch") and pytest.importorskip("safetensors")

SMALL = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
}
WIDE = {"block_out_channels": [32, 32], "norm_num_groups": 8}
SKIP = {**WIDE, "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"]}
K = {"down_block_types": ["KDownBlock2D"] * 2, "up_block_types": ["KUpBlock2D"] * 2}
CHANGES = {
    "as it is": {},
    "two layers": {"layers_per_block": 2},
    "three levels": {
        "block_out_channels": [8, 16, 24],
        "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"],
    },
    "one level": {"block_out_channels": [8], "down_block_types": ["AttnDownBlock2D"], "up_block_types": ["UpBlock2D"]},
    "resnet resampling": {
        "down_block_types": ["AttnDownBlock2D"] * 2,
        "up_block_types": ["AttnUpBlock2D"] * 2,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "conv resampling": {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2},
    "padding 0": {"downsample_padding": 0, "down_block_types": ["AttnDownBlock2D"] * 2},
    "resnet blocks": {
        "down_block_types": ["ResnetDownsampleBlock2D"] * 2,
        "up_block_types": ["ResnetUpsampleBlock2D"] * 2,
    },
    "skip": {**SKIP, "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"], "norm_num_groups": None},
    "skip down only": {**SKIP, "attention_head_dim": None},
    "skip up only": {**WIDE, "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D"]},
    "skip first": {**WIDE, "down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
    "skip last, two layers": {**WIDE, "up_block_types": ["UpBlock2D", "AttnSkipUpBlock2D"], "layers_per_block": 2},
    "skip of three": {
        "block_out_channels": [8, 16, 32],
        "down_block_types": ["SkipDownBlock2D"] * 3,
        "up_block_types": ["SkipUpBlock2D"] * 3,
        "act_fn": "gelu",
    },
    "K blocks": {**WIDE, **K, "layers_per_block": 3},
    "K blocks of two widths": {**K, "block_out_channels": [32, 64], "layers_per_block": 2},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, normed middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "middle with other groups": {"attn_norm_num_groups": 8},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "middle over 2": {"mid_block_scale_factor": 2.0},
    "centred": {"center_input_sample": True},
    "one head": {"attention_head_dim": None},
    "heads that leave channels over": {"attention_head_dim": 5},
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish"},
    "relu": {"act_fn": "relu"},
    "swish": {"act_fn": "swish"},
    "four channels": {"in_channels": 4, "out_channels": 4},
    "learned variance": {"out_channels": 6},
    "not square": {"sample_size": [16, 8]},
    "sine first": {"flip_sin_to_cos": False, "freq_shift": 1},
    "odd features": {"block_out_channels": [9, 18], "norm_num_groups": 3, "attention_head_dim": 3},
    "wide embedding": {"time_embedding_dim": 20},
    "fourier": {"time_embedding_type": "fourier"},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 100},
    "classes": {"num_class_embeds": 5},
    "numbers as labels": {"class_embed_type": "timestep"},
    "fourier numbers as labels": {"class_embed_type": "timestep", "time_embedding_type": "fourier"},
    "vectors as labels": {"class_embed_type": "identity"},
    "epsilon of the norms": {"norm_eps": 0.1},
}


def original(options, seed):
    """diffusers' network in float64, every parameter random."""
    model = diffusers.UNet2DModel(**options).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_gives_the_original_s_numbers(name, rng):
    options = SMALL | CHANGES[name]
    model = original(options, len(name))
    config = UNet2DConfig(**_options(json.loads(model.to_json_string()))[0])
    parameters = source_parameters(config)
    stored = {key: value.numpy() for key, value in model.state_dict().items()}
    assert {p.source: p.source_shape for p in parameters} == {key: value.shape for key, value in stored.items()}
    tree = unflatten((p.path, jnp.asarray(p.convert(stored[p.source]))) for p in parameters)
    graph, state = nnx.split(families.abstract("unet2d", config))
    nnx.replace_by_pure_dict(state, tree)
    h, w, c = config.image_shape
    x, t = rng.standard_normal((2, c, h, w)), np.array([7, 93])
    labels = {
        "index": rng.integers(0, 5, 2),
        "timestep": np.array([3, 44]),
        "identity": rng.standard_normal((2, config.temb_dim)),
        "": None,
    }[config.labels]
    fourier = config.time_embedding_type == "fourier"
    if config.labels == "timestep":  # the original does not cast what it embeds: float64 has no such labels there
        model = model.float()
    exact = torch.from_numpy if not fourier else lambda numbers: torch.from_numpy(numbers).to(model.dtype)
    told = None if labels is None else exact(labels)
    x = x.astype(np.float32)  # exact in both
    with torch.no_grad():
        images = torch.from_numpy(x).to(model.dtype)
        expected = model(images, exact(t), class_labels=told).sample.numpy()
    given = () if labels is None else (jnp.asarray(labels),)
    run = models_support.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    got = run(state, jnp.moveaxis(jnp.asarray(x, jnp.float64), 1, -1), jnp.asarray(t, jnp.float64), *given)
    got = np.moveaxis(np.asarray(got), -1, 1)
    assert got.dtype == np.float64 and np.abs(expected).max() > 1e-3
    # The original's embedding of the time is float32: its frequencies are rounded, times up to 93.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_schedules_are_the_original_s_to_the_bit(name):
    for rescale in (False, True) if name != "exp" else ():
        said = {"beta_schedule": name, "num_train_timesteps": 500, "rescale_betas_zero_snr": rescale}
        expected = diffusers.DDPMScheduler(**said).alphas_cumprod.numpy()
        got = schedules.alphas_cumprod({"_class_name": "DDPMScheduler", **said})
        # PyTorch's square root, with which a schedule is rescaled, rounds 177 of 1000 numbers in its own way; quotients
        # of small levels carry that on.
        np.testing.assert_allclose(got, expected, rtol=3e-5 if rescale else 0, atol=0)
    for scheduler in sorted(schedules.DISCRETE) if name == "linear" else ():
        if scheduler == "DPMSolverSDEScheduler":  # needs torchsde
            continue
        expected = getattr(diffusers, scheduler)().alphas_cumprod.numpy()
        np.testing.assert_array_equal(schedules.alphas_cumprod({"_class_name": scheduler}), expected, scheduler)


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "fp16"])
def test_what_diffusers_saves_opens_here_and_what_is_written_here_opens_there(tmp_path, rng, form):
    model = original(SMALL, 3).float()
    saving = {"safe_serialization": form != "bin"} | ({"max_shard_size": "100KB"} if form == "sharded" else {})
    (model.half() if form == "fp16" else model).save_pretrained(
        tmp_path / "in", **saving, variant="fp16" if form == "fp16" else None
    )
    diffusers.DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "in")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1 or form != "sharded"
    convert(tmp_path / "in", "", tmp_path / "model")
    written.write(tmp_path / "model", "diffusers", tmp_path / "out")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "out")
    model = model.float()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    loaded, x = pj.load(tmp_path / "model"), rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert loaded.sde.prediction == "velocity"
    with torch.no_grad():
        expected = again(torch.from_numpy(x), 500).sample.numpy()
    time = jnp.float32(loaded.sde.time_of(500))
    got = np.moveaxis(np.asarray(loaded.eps_fn((jnp.moveaxis(jnp.asarray(x), 1, -1),), time)[0]), -1, 1)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "out", subfolder=None)
    np.testing.assert_allclose(scheduler.alphas_cumprod, diffusers.DDIMScheduler().alphas_cumprod, rtol=2e-6)
    assert scheduler.config.prediction_type == "v_prediction"


def test_ncsnpp_written_for_torch_is_read_by_torch(tmp_path):
    written.write("mnist", "torch", tmp_path / "mnist.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "mnist.safetensors")
    assert all(name.startswith("all_modules.") and tensor.dtype == torch.float32 for name, tensor in tensors.items())
    convert(tmp_path / "mnist.safetensors", "", tmp_path / "again")
    (_, first), (_, second) = build.open_network("mnist", ""), read_converted(tmp_path / "again")
    first, second = flatten(first), flatten(second)
    assert first.keys() == second.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path])
