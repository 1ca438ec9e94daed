"""EDM's networks: what is read from its files, and the outputs of the original."""

import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from neighbours import DIRECTORY, check, filled, load, nhwc
from psld_jax.convert import edm as origin
from psld_jax.convert.origins import Asked

from psld_jax._runtime.abstract import shapes_of
from psld_jax.checkpoints.persistent import read_persistent, walk
from psld_jax.models import edm, edm_plan
from psld_jax.models.edm_plan import EDMConfig

CASES = sorted(path.stem for path in DIRECTORY.glob("*.pkl"))
#: Of an array's largest value, in float64; the errors are 1e-15 to 1e-13.
EXACT = 1e-10


@pytest.fixture(scope="module")
def converted():
    """What the converter reads from each file."""
    return {name: origin.read(DIRECTORY / f"{name}.pkl", Asked()) for name in CASES}


def allowed(description, key, level=None):
    """In float32: 1e-5, or ten times the original's own distance from float64 where that is larger."""
    errors = description["float32_against_float64"]
    own = errors["by_level"][key][level] if level is not None else errors[key]
    return max(1e-5, 10 * own)


@models_support.jit
def outputs(network, x, sigma, labels, augment):
    return network(x, sigma, labels, augment), network.raw(x, sigma, labels, augment)


def batches(data, config):
    """Every input of the file as one batch: noisy images, levels, labels, augmentation; and where each output is."""
    x, levels = nhwc(data["x"]), data["sigma"]
    n = x.shape[1]
    labels = data["labels"] if "labels" in data else np.zeros((n, config.label_dim))
    nothing = np.zeros((n, config.augment_dim))
    parts = [("D", i, x[i], np.full(n, levels[i]), labels, nothing) for i in range(len(levels))]
    parts += [("D_each", 0, nhwc(data["x_each"]), data["sigma_each"], labels, nothing)]
    for i, level in enumerate((2, 3)):  # as the file says of these arrays
        if "D_nolabel" in data:
            parts.append(("D_nolabel", i, x[level], np.full(n, levels[level]), np.zeros_like(labels), nothing))
            parts.append(("D_soft", i, x[level], np.full(n, levels[level]), data["labels_soft"], nothing))
        if "D_augmented" in data:
            parts.append(("D_augmented", i, x[level], np.full(n, levels[level]), labels, data["augment_labels"]))
    keys = [(key, i) for key, i, *_ in parts]
    return keys, [np.concatenate(arrays) for arrays in zip(*(part[2:] for part in parts), strict=True)]


#: What runs by default: every class of preconditioning and network once, most in float64, which tells most.
QUICK = {
    ("edm_ncsnpp_cond_augment", "float64"),
    ("edm_skip_skip", "float64"),
    ("iddpm_adm_heads", "float64"),
    ("ve_ncsnpp", "float32"),
    ("vp_ddpmpp", "float64"),
}


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in QUICK else pytest.mark.slow)
        for name in CASES
        for dtype in ("float32", "float64")
    ],
)
def test_denoiser(name, dtype, converted):
    description, data = load(name)
    config = EDMConfig(**converted[name].network["config"])
    abstract = shapes_of(lambda rngs: edm.EDM(config, rngs=rngs))
    network = filled(abstract, converted[name].weights["ema"], dtype)
    keys, inputs = batches(data, config)
    given = [jnp.asarray(array, dtype) for array in inputs]
    told, augmented = given[2] if config.label_dim else None, given[3] if config.augment_dim else None
    denoised, raw = outputs(network, *given[:2], told, augmented)
    assert denoised.dtype == raw.dtype == dtype
    suffix = "_f64" if dtype == "float64" else ""
    for (key, i), found, inside in zip(keys, np.split(denoised, len(keys)), np.split(raw, len(keys)), strict=True):
        level = i if key == "D" else None
        tolerance = EXACT if suffix else allowed(description, key, level)
        check(found, nhwc(data[key + suffix][i]), tolerance, f"{key}[{i}]")
        if key == "D":
            tolerance = EXACT if suffix else allowed(description, "D_F", i)
            check(inside, nhwc(data["D_F" + suffix][i]), tolerance, f"F[{i}]")
    noise = network.scalings(jnp.asarray(data["sigma"], dtype))[3]
    error = np.abs(noise / data["D_c_noise" + suffix][:, 0] - 1)
    # The original loses digits of VP's small levels in float32: its own number for the smallest is 1.3% off.
    own = np.asarray(description["float32_against_float64"]["by_level"]["D_c_noise"])
    assert np.all(error <= (EXACT if suffix else np.maximum(1e-6, 2 * own)))


@pytest.mark.parametrize("name", CASES)
def test_what_is_read(name, converted):
    description, _ = load(name)
    found, kwargs = converted[name], dict(description["kwargs"])
    options = found.network["config"]
    names = {"img_resolution": "image_size", "img_channels": "channels"}
    half, kind = kwargs.pop("use_fp16", False), kwargs.pop("model_type")
    expected = {names.get(key, key): tuple(v) if isinstance(v, list) else v for key, v in kwargs.items()}
    assert {key: options[key] for key in expected} == expected
    assert options["architecture"] == {"SongUNet": "song", "DhariwalUNet": "dhariwal"}[kind]
    assert options["precondition"] == description["class"].removesuffix("Precond").lower()
    assert (options["sigma_min"], options["sigma_max"]) == (description["sigma_min"], description["sigma_max"])
    assert options["num_heads"] == ()  # the rules give those of the file
    blocks = [piece for way in edm_plan.plan(EDMConfig(**options)) for piece in way if piece.kind == "block"]
    assert [piece.heads for piece in blocks] == list(description["attention_heads"].values())
    assert found.image_shape == (kwargs["img_resolution"],) * 2 + (kwargs["img_channels"],)
    assert found.n_classes == kwargs["label_dim"]
    assert f"{description['parameters']:,} parameters" in found.notes[0]
    assert any("half precision" in note for note in found.notes) == half
    beside = [key for key in description["pickle"]["keys"] if key != "ema"]
    assert any(", ".join(beside) in note for note in found.notes) or not beside


def test_levels_of_iddpm_are_rounded_to_the_table_of_the_file(converted):
    _, data = load("iddpm_adm_heads")
    config = EDMConfig(**converted["iddpm_adm_heads"].network["config"])
    abstract = shapes_of(lambda rngs: edm.EDM(config, rngs=rngs))
    for dtype in (jnp.float32, jnp.float64):
        network = filled(abstract, converted["iddpm_adm_heads"].weights["ema"], dtype)
        np.testing.assert_array_equal(network.u[...], data["u"])
        levels, index = network.round_sigma(data["round_in"])
        np.testing.assert_array_equal(index, data["round_index"])
        np.testing.assert_array_equal(levels, data["round_out"])
    # The table of a new network: float64, where the original's running product in float32 is 5e-4 off.
    np.testing.assert_allclose(edm.iddpm_levels(1000, 0.001, 0.008), data["u"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_weights_go_back_into_the_layout_of_the_original(name, converted):
    """Every parameter and buffer of the file, bit for bit."""
    state = origin.state_dict(EDMConfig(**converted[name].network["config"]), converted[name].weights["ema"])
    with read_persistent(DIRECTORY / f"{name}.pkl") as file:
        for prefix, record in walk(file.content["ema"]):
            for key, ref in {**record.state["_parameters"], **record.state["_buffers"]}.items():
                if ref is not None:
                    np.testing.assert_array_equal(state.pop(f"{prefix}.{key}" if prefix else key), file.read(ref))
    assert not state
