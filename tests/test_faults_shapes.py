"""Images that are no squares: data, configuration, network, converter, and every mode that touches images."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from psld_jax.convert import configs, structure
from rich.console import Console
from seeds import generator

import psld_jax as pj
from psld_jax import build, modes
from psld_jax._runtime.abstract import shapes_of
from psld_jax.data import open_dataset
from psld_jax.data.fitting import FITS, Fitting
from psld_jax.evaluation import plots
from psld_jax.metrics.inception_network import InceptionV3, resize
from psld_jax.models import NCSNpp, NCSNppClassifier, NCSNppConfig, edm, edm_plan, plan
from psld_jax.models.edm_plan import EDMConfig
from psld_jax.models.original import source_parameters

SHAPE = (8, 12)
SMALL = {"in_ch": 2, "out_ch": 2, "nf": 4, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (4,)}
PYRAMIDS = [("none", "none"), ("output_skip", "input_skip"), ("residual", "residual")]
RUN = {
    "model.name": "ncsnpp",
    "model.image_size": SHAPE,
    "model.data_std": 0.8,
    **{f"model.{name}": value for name, value in (SMALL | {"out_ch": 1}).items()},
    "model.dropout": 0.0,
    "data.name": "arrays",
    "data.holdout": 0.2,
    "train.steps": 2,
    "train.batch_size": 8,
    "train.warmup": 0,
    "train.eval_every": 2,
    "train.eval_images": 4,
    "train.sample_every": 0,
    "train.checkpoint_every": 0,
    "sampler.name": "ddim",
    "sampler.nfe": 2,
    "sampling.num_samples": 6,
    "sampling.batch_size": 6,
}


# Data.


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(8, 12), (12, 8), (5, 5), (7, 30), (30, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_fit_gives_every_shape(fit, size, channels, rng):
    images = rng.integers(0, 256, (2, 5, 7, channels), np.uint8)
    fitting = Fitting(size, fit)
    fits = fit in ("crop", "stretch") or (fit == "pad" and size[0] >= 5 and size[1] >= 7)
    if not fits:
        with pytest.raises(ValueError, match=r"5 x 7 pixels.*image_size=\("):
            fitting(images, "here")
        return
    assert fitting(images, "here").shape == (2, *size, channels)
    if fit == "pad":
        np.testing.assert_array_equal(fitting(images, "here").sum((1, 2)), images.sum((1, 2), dtype=np.uint64))


def test_a_crop_keeps_the_proportions():
    image = np.zeros((8, 16, 1), np.uint8)
    image[:, 8:] = 255
    cropped = Fitting((4, 6), "crop")(image, "here")[..., 0]
    assert np.all(cropped[:, :2] < 20) and np.all(cropped[:, 4:] > 235)  # cut left and right, the border stays


def test_data_sets_take_a_pair_of_sizes(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "1.png")
    assert open_dataset("folder", tmp_path).image_shape == (8, 12, 3)
    assert open_dataset("folder", tmp_path, image_size=(8, 12)).image_shape == (8, 12, 3)
    assert open_dataset("folder", tmp_path, image_size=[4, 6], fit="stretch").image_shape == (4, 6, 3)
    for wrong in ((8,), (8, 12, 3), (8, 0), (8, "12"), (8, True), (1.5, 8)):
        with pytest.raises(ValueError, match="image_size=.* must be a whole number, or two"):
            open_dataset("folder", tmp_path, image_size=wrong)


# Configuration.


def test_a_field_is_one_number_or_two_and_is_kept(tmp_path):
    config = build.load_config("default")
    assert config.model.image_size == 32
    wide = build.override(config, {"model.image_size": SHAPE})
    assert wide.model.image_size == SHAPE
    assert build.override(wide, {"model.image_size": 16}).model.image_size == 16
    assert build.from_dict(json.loads(wide.to_json())).model.image_size == SHAPE
    assert build.load_config("celeba64").model.image_size == 64
    for wrong in (0, -8, (8,) * 3, (), (8, 0), (8, 1.5), True, "8", 8.5):
        with pytest.raises(ValueError, match=r"image_size"):
            build.network_options(build.override(config, {"model.image_size": wrong}))


def test_squares_are_one_number():
    assert NCSNppConfig(image_size=(16, 16)) == NCSNppConfig(image_size=16) == NCSNppConfig(image_size=[16, 16])
    assert NCSNppConfig(image_size=SHAPE, ch_mult=(1, 1)).shape == SHAPE
    with pytest.raises(ValueError, match=r"image_size=\(8, 6\) must be divisible by 4"):
        NCSNppConfig(image_size=(8, 6), ch_mult=(1, 1, 1))


# Networks.


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (4, 16)])
def test_attention_is_by_the_shorter_side(shape):
    config = NCSNppConfig(image_size=shape, **SMALL)
    with_attention = {entry.name for entry in plan(config) if entry.kind == "attention"} - {"mid_attn"}
    level = {8: 1, 4: 0}[min(shape)]
    assert with_attention == {f"down_{level}_attn_0", f"up_{level}_attn"}
    square = NCSNppConfig(image_size=min(shape), **SMALL)
    assert plan(config) == plan(square)


@pytest.mark.parametrize(("progressive", "progressive_input"), PYRAMIDS)
def test_networks_map_every_shape_to_itself(progressive, progressive_input, key):
    config = NCSNppConfig(
        image_size=SHAPE, progressive=progressive, progressive_input=progressive_input, fir=True, **SMALL
    )
    net = shapes_of(lambda rngs: NCSNpp(config, rngs=rngs))
    z = jax.ShapeDtypeStruct((3, *SHAPE, 2), np.float32)
    assert nnx.eval_shape(lambda net, z: net(z, 0.5), net, z).shape == z.shape
    with pytest.raises(ValueError, match=r"expected \[n, 8, 12, 2\]"):
        net(np.zeros((3, 12, 8, 2), np.float32), 0.5)
    classifier_config = NCSNppConfig(image_size=SHAPE, progressive_input=progressive_input, **SMALL)
    classifier = shapes_of(lambda rngs: NCSNppClassifier(classifier_config, 5, rngs=rngs))
    assert nnx.eval_shape(lambda net, z: net(z, 0.5), classifier, z).shape == (3, 5)


@pytest.mark.parametrize(
    ("architecture", "encoder"), [("song", "standard"), ("song", "skip"), ("dhariwal", "standard")]
)
def test_networks_of_edm_are_convolutional(architecture, encoder):
    """Names, attention and arrays are those of the square of the shorter side, whose weights they run with."""
    options = {"channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}
    options |= {"architecture": architecture, "encoder_type": encoder}
    square, wide = (EDMConfig(image_size=size, **options) for size in (8, SHAPE))
    assert edm_plan.plan(wide) == edm_plan.plan(square) and wide.image_shape == (*SHAPE, 1)
    assert edm.source_arrays(wide) == edm.source_arrays(square)
    net = shapes_of(lambda rngs: edm.EDM(wide, rngs=rngs))
    x = jax.ShapeDtypeStruct((2, *SHAPE, 1), np.float32)
    assert nnx.eval_shape(lambda net, x: net(x, 0.5), net, x).shape == x.shape
    assert EDMConfig(image_size=(8, 8), **options) == square
    for wrong, message in (((8, 9), "divisible by 2"), ((8, 2**17), "at most"), ((8,) * 3, "image_size"), (0, ">= 1")):
        with pytest.raises(ValueError, match=message):
            EDMConfig(image_size=wrong, **options)


def test_data_have_the_size_that_a_network_of_a_family_says(tmp_path, rng):
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (9, *SHAPE, 1), np.uint8))
    fields = {"data.name": "arrays", "data.path": str(tmp_path / "images.npy"), "data.holdout": 0.2, "sde.name": "edm"}
    fields |= {"model.edm.channels": 1, "model.edm.image_size": SHAPE, "model.unet2d.in_channels": 1}
    fields |= {"model.unet2d.sample_size": (8, 24), "data.fit": "stretch"}
    for family, shape in (("edm", (*SHAPE, 1)), ("unet2d", (8, 24, 1))):
        config = build.override(build.load_config("default"), {**fields, "model.name": family})
        assert build.network_images(config) == build.build_data(config, "train").image_shape == shape
    assert build.from_dict(json.loads(config.to_json())).model.edm.image_size == SHAPE


# Converter.


@pytest.mark.parametrize("n_classes", [None, 5])
@pytest.mark.parametrize("shape", [(8, 12), (4, 16), (16, 16)])
def test_the_converter_takes_what_a_file_tells_and_asks_for_the_rest(n_classes, shape):
    options = NCSNppConfig(image_size=shape, **SMALL)
    shapes = {parameter.source: parameter.source_shape for parameter in source_parameters(options, n_classes)}
    found = structure.infer(shapes)
    assert found.attn_resolutions(shape) == tuple(min(shape) // 2**level for level in found.attention)
    overrides = [f"model.{name}={value}" for name, value in {**SMALL, "image_size": shape}.items()]
    overrides += [f"model.{name}={getattr(options, name)}" for name in found.open if name != "image_size"]
    overrides += [f"sde.{name}={value}" for name, value in pj.sde.parameters("psld").items()] + ["sde.name=psld"]
    config = configs.resolve("auto", overrides, found)
    assert configs.network(config) == (options, n_classes)
    if n_classes is not None and shape != (16, 16):
        # Of 8 x 12 no square can be made, of 4 x 16 one can: the file tells the number of pixels.
        assert found.fields.get("image_size") == (8 if shape == (4, 16) else None)
        wrong = [o if "image_size" not in o else "model.image_size=(16, 8)" for o in overrides]
        with pytest.raises(ValueError, match=r"image_size|do not fit"):
            config = configs.resolve("auto", wrong, found)
            assert source_parameters(*configs.network(config)) != source_parameters(options, n_classes)
            raise ValueError("the weights do not fit")


# Every mode.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that was trained for two steps on images of 8 x 12, and the configuration that samples from it."""
    place = tmp_path_factory.mktemp("wide")
    np.save(place / "images.npy", generator("trained").integers(0, 256, (40, *SHAPE, 1), np.uint8))
    config = build.override(build.load_config("default"), {**RUN, "data.path": str(place / "images.npy")})
    with jax.enable_x64(False):
        modes.run("train", config, place / "run", Console(quiet=True))
    saved = {"model.name": "saved", "model.checkpoint": str(place / "run")}
    return build.override(config, saved)


@pytest.mark.slow  # five programs are compiled
def test_training_sampling_files_and_metrics(trained, tmp_path):
    with jax.enable_x64(False):
        model = build.build_model(trained)
        assert model.image_shape == (*SHAPE, 1) and model.config.model.image_size == SHAPE
        modes.run("sample", trained, tmp_path / "picture", Console(quiet=True))
        files = build.override(trained, {"sampling.save": "png"})
        modes.run("sample", files, tmp_path / "files", Console(quiet=True))
        judged = {"evaluate.samplers": ("ddim",), "evaluate.nfe": (2,), "evaluate.seeds": (0,)}
        judged |= {"evaluate.num_samples": 6, "evaluate.folder": str(tmp_path / "files" / "images")}
        modes.run("evaluate", build.override(trained, judged), tmp_path / "judged", Console(quiet=True))
    with Image.open(tmp_path / "files" / "images" / "000000.png") as image:
        assert image.size == SHAPE[::-1]
    rows = json.loads((tmp_path / "judged" / "report.json").read_text())["evaluate"]["rows"]
    assert {row["sampler"] for row in rows} == {"folder", "ddim"}


def test_masks_operators_and_pictures_take_any_shape(tmp_path, rng):
    images = rng.uniform(-1, 1, (4, *SHAPE, 1)).astype(np.float32)
    for name in ("left", "right", "top", "bottom", "center"):
        mask = pj.operators.half_mask(name, (*SHAPE, 1))
        assert mask.shape == (1, *SHAPE, 1) and mask.sum() in (48, 96 - 24)
    assert pj.operators.downsample(4)(images).shape == (4, 2, 3, 1)
    assert pj.operators.blur(1.0)(images).shape == images.shape
    plots.save_samples(tmp_path / "a.png", (images,), "title")
    plots.save_rows(tmp_path / "b.png", [images, images])
    plots.save_restored(tmp_path / "c.png", {"seen": images, "truth": images})


@pytest.mark.slow  # Inception is compiled
def test_inception_takes_any_shape(rng):
    """As of the images made 299 x 299 before, both sides alike."""
    net = InceptionV3(rngs=nnx.Rngs(0))
    levels = rng.integers(0, 256, (2, 24, 40, 3), np.uint8)
    for how in ("tf1", "torch"):
        features = pj.metrics.inception_features(net, how)
        found = features(levels)
        features.check((24, 40, 3))
        np.testing.assert_allclose(found, net(resize(levels, how)), rtol=1e-4, atol=1e-5)  # float32, another program
        # Turned images, turned back after they were made larger.
        turned = np.asarray(resize(levels.swapaxes(1, 2), how)).swapaxes(1, 2)
        np.testing.assert_allclose(turned, resize(levels, how), rtol=0, atol=1e-6)
        moments = pj.metrics.Moments()
        moments.add(found)
        assert moments.gaussian().mean.shape == (2048,)
