"""One door: a file or directory tells where it is from and what it holds; what cannot be read is refused by name."""

import json
import shutil
from pathlib import Path

import convert_files as files
import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from psld_jax.convert import cache as cache_module
from psld_jax.convert import convert, diffusers, mapping, naming, read_checkpoint, read_converted, read_index, written
from psld_jax.convert.__main__ import main
from psld_jax.convert.origins import Asked, origins, recognise
from safetensors.numpy import load_file, save_file

import psld_jax as pj
from psld_jax import scores
from psld_jax.checkpoints.directory import flatten
from psld_jax.scores.family import IndexClock

GOLDEN = Path(__file__).parent / "golden_neighbours"
CASE = GOLDEN / "diffusers_class_sample"
FLAT = GOLDEN / "diffusers_ddpm_flat"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("door") / "model"
    convert(CASE, "", out)
    return out


def copied(tmp_path, source=FLAT):
    shutil.copytree(source, tmp_path / "in")
    return tmp_path / "in"


def test_every_origin_has_its_own_files():
    known = origins()
    assert set(known) == {"cld-sgm", "diffusers", "edm", "lightning", "psld_jax", "score_sde"}
    golden = Path(__file__).parent / "golden"
    for path, name in {
        GOLDEN / "edm_skip_skip.pkl": "edm",
        GOLDEN / "vpsde_mixed.pth": "cld-sgm",
        CASE: "diffusers",
        CASE / "unet": "diffusers",
        FLAT / WEIGHTS: "diffusers",
        golden / "lightning_clf_tiny.ckpt": "lightning",
    }.items():
        found = recognise(path)
        assert name == found.NAME


def test_what_is_no_checkpoint_is_refused_with_what_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="no checkpoint that can be read. Accepted are cld-sgm: .*; diffusers: "):
        recognise(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        recognise(tmp_path / "nothing")
    with pytest.raises(ValueError, match="unknown origin 'emd'. Did you mean 'edm'"):
        recognise(CASE, "emd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14\n", "fetch that with git lfs pull"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_was_not_fetched_is_called_that(tmp_path, content, message):
    path = copied(tmp_path)
    for name in ("a.pkl", "a.pth", WEIGHTS, "diffusion_pytorch_model.bin"):
        (path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: it {message}|{name}: it is a pointer of Git LFS.*{message}"):
            convert(path / name, "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_found(tmp_path, capsys):
    assert main(["--checkpoint", str(FLAT), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for text in (
        "is of diffusers",
        "UNet2DModel, 103,875 parameters, positional",
        "1000 levels, alphas_cumprod 0.9999 to 4.04e-05, of DDPMScheduler",
        "predicts eps",
        "images: 16 x 16 x 3",
        "labels: none",
        "whether they are an average (EMA), the file does not say",
        "clips x_0",
    ):
        assert text in printed
    index = read_index(tmp_path / "out")
    assert index["source"]["origin"] == "diffusers" and len(index["notes"]) == 7
    sources = [entry["source"] for entry in index["parameters"]["online"].values()]
    assert "mid_block.attentions.0.query.weight" in sources  # as the file names it
    assert load_file(FLAT / WEIGHTS).keys() == set(sources)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"thresholding": True}, ["(thresholding); samplers here do so with config.steer.clip=1"]),
        (
            {"_class_name": "DDIMScheduler", "thresholding": True, "sample_max_value": 9.0},
            ["config.steer.clip=1 and config.steer.clip_percentile=99.5 and config.steer.clip_noise=old"],
        ),
        ({"clip_sample": False}, []),
        (
            {"_class_name": "PNDMScheduler", "clip_sample": False, "rescale_betas_zero_snr": True},
            ["rescale_betas_zero_snr has no effect, since PNDMScheduler does not know it"],
        ),
    ],
)
def test_what_a_scheduler_does_beside_its_levels_is_told(tmp_path, said, told):
    shutil.copytree(FLAT, tmp_path / "in")
    change_json(tmp_path / "in" / "scheduler_config.json", **said)
    notes = convert(tmp_path / "in", "", tmp_path / "out")["notes"]
    found = [note for note in notes if "scheduler clips" in note or "no effect" in note]
    assert len(found) == len(told) and all(note.endswith(end) for note, end in zip(found, told, strict=True))


def test_a_converted_model_gives_the_original_s_numbers(converted):
    model, data = pj.load(converted), np.load(CASE.with_suffix(".npz"))
    assert (model.image_shape, model.n_classes, model.sde.prediction) == ((8, 8, 1), 10, "data")
    eps_fn = model.eps_fn.with_labels(data["class_labels"])
    x, i = jnp.moveaxis(jnp.asarray(data["x"]), 2, -1), 3
    run = models_support.jit(lambda eps_fn, x, t: eps_fn((x,), t)[0])
    got = run(eps_fn, x[i], jnp.float32(model.sde.time_of(data["t"][i])))
    np.testing.assert_allclose(np.moveaxis(np.asarray(got), -1, 1), data["unet"][i], atol=1e-5)


@pytest.mark.parametrize("steps", [10, 1000, 4000])
def test_the_time_of_a_level_is_told_as_that_level(steps):
    sde = pj.sde.Discrete(num_steps=steps)
    index = np.arange(steps)
    told = IndexClock(steps)(jnp.asarray(sde.time_of(index), jnp.float32))
    np.testing.assert_array_equal(told, index)
    between = IndexClock(steps)(jnp.asarray((index[1:] + 0.5) / steps, jnp.float32))
    np.testing.assert_allclose(between, index[1:] - 0.5, atol=1e-3)  # float32 of numbers up to 4000


@pytest.mark.slow
def test_a_class_is_given_to_a_network_that_has_none_for_any(converted):
    model = pj.load(converted)
    with pytest.raises(ValueError, match="none for 'any'"):
        pj.generate(model, sampler="ddim", nfe=3, n=2)
    with pytest.raises(ValueError, match="guidance=2 needs a network that was also trained without labels"):
        pj.generate(model, sampler="ddim", nfe=8, n=2, label=1, guidance=2.0)
    images = pj.generate(model, sampler="ddim", nfe=3, n=2, label=[1, 2], seed=0)
    assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()
    assert isinstance(scores.classifier_free(model.eps_fn, jnp.array([1, 2])), scores.FamilyScore)


# What is refused, and what is left out.


def change_json(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def change_weights(path, change):
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def damaged(value):
    def change(tensors):
        tensors["conv_in.weight"] = tensors["conv_in.weight"].copy()
        tensors["conv_in.weight"][1, 2, 0, 1] = value

    return change


BAD = {
    "class": (
        lambda d: change_json(d / "config.json", _class_name="UNet2DConditionModel"),
        "is of 'UNet2DConditionModel'. UNet2DModel .* is supported; text-to-image U-Nets",
    ),
    "transformer": (lambda d: change_json(d / "config.json", _class_name="DiTTransformer2DModel"), "DiTTransformer2D"),
    "scheduler": (
        lambda d: change_json(d / "scheduler_config.json", _class_name="KarrasVeScheduler"),
        "the scheduler 'KarrasVeScheduler' is not supported; DDIM",
    ),
    "no scheduler": (
        lambda d: (d / "scheduler_config.json").unlink(),
        "has no scheduler_config.json.* --set sde.name=",
    ),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "holds no weights: diffusion_pytorch_model.safetensors or .bin"),
    "no size": (lambda d: change_json(d / "config.json", sample_size=None), "sample_size is null"),
    "type": (
        lambda d: change_json(d / "config.json", layers_per_block="2"),
        "layers_per_block='2'.* must be of the kind",
    ),
    "block": (
        lambda d: change_json(d / "config.json", down_block_types=["DownBlock2D", "KDown", "DownBlock2D"]),
        "unknown block in down_block_types 'KDown'. Did you mean 'KDownBlock2D'",
    ),
    "many layers": (lambda d: change_json(d / "config.json", layers_per_block=1e9), "layers_per_block=.* at most 100"),
    "clip": (
        lambda d: change_json(d / "scheduler_config.json", clip_sample_range=[1]),
        r"clip_sample_range='\[1\]' of the scheduler must be a finite number",
    ),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), "config.json is no JSON"),
    "a list": (lambda d: (d / "config.json").write_text("[]"), "config.json holds no table"),
    "missing": (lambda d: change_weights(d, lambda t: t.pop("conv_in.bias")), "conv_in.bias"),
    "unknown": (lambda d: change_weights(d, rename("conv_in.bias", "conv_into.bias")), "conv_into.bias"),
    "shape": (lambda d: change_json(d / "config.json", in_channels=2, out_channels=3), "of different shape"),
    "nan": (lambda d: change_weights(d, damaged(np.nan)), r"conv_in.weight \(8, 3, 3, 3\) has 1 values that are NaN"),
    "infinite": (lambda d: change_weights(d, damaged(np.inf)), "conv_in.weight .* NaN or infinite"),
    "cut off": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-1]), "damaged or cut off"),
    "variants": (
        lambda d: (
            [shutil.copy(d / WEIGHTS, d / f"diffusion_pytorch_model.{v}.safetensors") for v in ("a", "b")]
            and (d / WEIGHTS).unlink()
        ),
        "several variants of its weights, diffusion_pytorch_model.a.safetensors, .*: give one of these",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, kind):
    change, message = BAD[kind]
    path = copied(tmp_path)
    change(path)
    with pytest.raises(ValueError, match=message) as caught:
        convert(path, "", tmp_path / "out")
    assert str(path) in str(caught.value) and not (tmp_path / "out").exists()


def test_a_text_to_image_pipeline_is_refused_by_name(tmp_path):
    parts = {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(
        ValueError, match="holds PixArtTransformer2DModel, and no folder unet.*UNet2DModel .* is supported"
    ):
        convert(tmp_path, "", tmp_path / "out")


def test_counters_and_measures_are_left_out_and_named(tmp_path):
    path = copied(tmp_path)
    extra = {"ema.num_updates": np.array(7), "metrics.fid": np.ones(3, np.float32), "step": np.array([3])}
    change_weights(path, lambda tensors: tensors.update(extra))
    change_json(path / "config.json", num_head_channels=4)
    notes = diffusers.read(path, Asked()).notes
    assert "left out, no part of the network: ema.num_updates, metrics.fid, step" in notes
    assert "options that UNet2DModel does not have, left out: num_head_channels" in notes


def test_null_is_the_default_of_resampling_as_in_the_original():
    stored = json.loads((CASE / "unet" / "config.json").read_text())
    options, _ = diffusers._options({**stored, "downsample_type": None, "upsample_type": None})
    assert (options["downsample_type"], options["upsample_type"]) == ("conv", "conv")


def test_the_scheduler_is_found_from_within_the_folder_of_the_network(monkeypatch):
    monkeypatch.chdir(CASE / "unet")
    assert diffusers.read(Path("."), Asked()).sde["name"] == "discrete"
    beside = [file.name for file in cache_module._files(Path(WEIGHTS))]
    assert sorted(beside) == ["config.json", WEIGHTS, "scheduler_config.json"]


def test_a_pipeline_with_a_decoder_says_that_samples_are_no_images(tmp_path):
    path = copied(tmp_path)
    change_json(path / "model_index.json", vqvae=["diffusers", "VQModel"])
    note = "left out, without which samples are latents and no images: vqvae (VQModel)"
    assert note in diffusers.read(path, Asked()).notes


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache_module.platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(ValueError, match="cannot be converted into the cache .* Set XDG_CACHE_HOME"):
        pj.load(FLAT)


def test_what_the_file_does_not_tell_can_be_given(tmp_path):
    path = copied(tmp_path)
    (path / "scheduler_config.json").unlink()
    given = ["sde.name=discrete", "sde.num_steps=500", "model.unet2d.predicts=velocity"]
    convert(path, "", tmp_path / "out", overrides=given)
    model = pj.load(tmp_path / "out")
    assert model.sde.num_steps == 500 and model.sde.prediction == "velocity"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sde.num_steps=500", "sde.num_steps does not change the 1000 levels, which the file gives"),
        ("sde.schedule=linear", "sde.schedule does not change the 1000 levels"),
        ("sde.name=edm", "has no 'index', which the network goes by"),
        ("model.image_size=32", "model.image_size says nothing of a network 'unet2d': its options are model.unet2d"),
    ],
)
def test_an_override_that_cannot_be_followed_is_refused(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        convert(FLAT, "", tmp_path / "out", overrides=[override])
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_in_vain_is_refused(tmp_path, converted):
    """Weights that a file has not, a configuration that is none or has no place, an origin of other files."""
    weights = tmp_path / "own.safetensors"
    written.write(converted, "torch", weights)
    edm = GOLDEN / "edm_skip_skip.pkl"
    for path, options, message in (
        (FLAT, {"weights": "ema"}, "weights='ema' are not in this file; 'online' are"),
        (FLAT, {"weights": "both"}, "weights='both' are not in this file"),
        (weights, {"weights": "ema"}, "weights='ema' are not in this file; 'online' are"),
        (weights, {"config": "digits"}, "has a whole configuration: leave out --config digits"),
        (edm, {"config": "nothing"}, "unknown config 'nothing'"),
        (FLAT, {"origin": "edm"}, "is a directory, and origin='edm' reads network-snapshot"),
    ):
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            convert(path, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    convert(edm, "edm_cifar10_uncond_vp", tmp_path / "edm")
    assert read_converted(tmp_path / "edm")[0]["train"]["noise"] == "log_normal"  # which that configuration has


def test_online_weights_beside_averages_are_taken_where_they_are_asked_for(tmp_path):
    path = copied(tmp_path)
    tensors = load_file(path / WEIGHTS)
    both = {f"ema_model.{name}": value for name, value in tensors.items()}
    save_file(both | {f"online_model.{name}": value + 1 for name, value in tensors.items()}, path / WEIGHTS)
    for wanted, taken, added in ((None, "ema", 0), ("ema", "ema", 0), ("online", "online", 1)):
        found = diffusers.read(path, Asked(weights=wanted))
        assert list(found.weights) == [taken]
        bias = found.weights[taken]["layers"]["conv_in"]["bias"]
        np.testing.assert_array_equal(bias, tensors["conv_in.bias"] + added)
        assert any("the average (EMA)" in note for note in found.notes) == (taken == "ema")


def test_averages_in_a_folder_of_their_own_are_taken_unless_online_weights_are_asked_for(tmp_path):
    """As trainers of diffusers leave their checkpoints: unet/ beside unet_ema/, whose config.json has more in it."""
    path = tmp_path / "checkpoint-500"
    for folder in ("unet", "unet_ema"):
        shutil.copytree(CASE / "unet", path / folder)
    shutil.copytree(CASE / "scheduler", path / "scheduler")
    tensors = load_file(path / "unet" / WEIGHTS)
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"] + 1}, path / "unet_ema" / WEIGHTS)
    change_json(path / "unet_ema" / "config.json", decay=0.9999, optimization_step=500, use_ema_warmup=True)
    for place, wanted, taken, added in (
        (path, None, "ema", 1),
        (path, "ema", "ema", 1),
        (path, "online", "online", 0),
        (path / "unet", None, "online", 0),
        (path / "unet_ema", "ema", "ema", 1),
    ):
        found = diffusers.read(place, Asked(weights=wanted))
        assert list(found.weights) == [taken]
        bias = found.weights[taken]["layers"]["conv_in"]["bias"]
        np.testing.assert_array_equal(bias, tensors["conv_in.bias"] + added)
        assert not any("does not have, left out" in note for note in found.notes)
    assert any(
        note.startswith(f"weights: unet_ema/{WEIGHTS}; the average") for note in diffusers.read(path, Asked()).notes
    )
    shutil.rmtree(path / "unet")
    assert recognise(path).NAME == "diffusers"
    before = diffusers.read(path, Asked())
    shutil.move(path / "scheduler", tmp_path)  # where the pipeline is saved when training has ended
    after = diffusers.read(path, Asked())
    assert after.config == before.config and after.notes == before.notes


def test_what_is_given_over_what_the_file_says_is_told(tmp_path):
    given = ["model.unet2d.predicts=velocity", "sde.alphas_cumprod=()", "sde.num_steps=500"]
    index = convert(FLAT, "", tmp_path / "out", overrides=given)
    assert "the network predicts velocity and is told the number of the level" in index["notes"]
    assert read_converted(tmp_path / "out")[0]["sde"]["num_steps"] == 500


@pytest.mark.parametrize(
    ("name", "prefix", "average"),
    [
        ("all_modules.0.weight", "", False),
        ("module.all_modules.0.weight", "module.", False),
        ("score_fn.module._orig_mod.all_modules.0.weight", "score_fn.module._orig_mod.", False),
        ("ema_model.net.conv_in.weight", "ema_model.net.", True),
        ("model.ema.conv_in.bias", "model.ema.", True),
        ("module", "", False),
    ],
)
def test_prefixes_of_wrappers_come_off(name, prefix, average):
    assert naming.split(name) == (prefix, name.removeprefix(prefix))
    assert naming.is_average(prefix) is average


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "net.", "score_fn.module.", "module.model.net."]
)
@pytest.mark.parametrize("level", ["", "model_state_dict", "state_dict", "params", "net"])
def test_state_dicts_one_level_down_are_found(tmp_path, prefix, level):
    stored = files.tensor(files.storage("0", 4), (4,))
    state = files.mapping(
        {f"{prefix}all_modules.0.weight": stored, "step": files.integer(9), "epoch": files.integer(1)}
    )
    (tmp_path / "f.pt").write_bytes(
        files.zip_file(files.program(files.mapping({level: state}) if level else state), {"0": bytes(16)})
    )
    with read_checkpoint(tmp_path / "f.pt") as source:
        assert mapping.networks(source)["online"].keys() == {"all_modules.0.weight"}
        assert source.left_out == ("epoch", "step")


def test_averages_one_level_down_are_the_average(tmp_path):
    stored = files.tensor(files.storage("0", 4), (4,))
    both = {key: files.mapping({"module.all_modules.0.weight": stored}) for key in ("net", "ema")}
    (tmp_path / "f.pt").write_bytes(files.zip_file(files.program(files.mapping(both)), {"0": bytes(16)}))
    with read_checkpoint(tmp_path / "f.pt") as source:
        assert {key: set(value) for key, value in mapping.networks(source).items()} == {
            "online": {"all_modules.0.weight"},
            "ema": {"all_modules.0.weight"},
        }


# Sharded files, files of torch, and the cache.


def sharded(path, **changes):
    tensors = load_file(path / WEIGHTS)
    names, places = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / file)
        places |= dict.fromkeys(part, file)
    (path / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {**places, **changes}}
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return tensors


def test_sharded_files_are_one_network(tmp_path):
    path = copied(tmp_path)
    sharded(path)
    parts, whole = (flatten(diffusers.read(place, Asked()).weights["online"]) for place in (path, FLAT))
    assert parts.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)


@pytest.mark.parametrize("name", ["safetensors.index.fp16", "safetensors.fp16.index", "fp16.safetensors.index"])
def test_the_index_of_a_variant_is_found(tmp_path, name):
    path = copied(tmp_path)
    tensors = sharded(path)
    (path / f"{WEIGHTS}.index.json").rename(path / f"diffusion_pytorch_model.{name}.json")
    read = diffusers.read(path, Asked())
    kernel = read.weights["online"]["layers"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv_in.weight"].transpose(2, 3, 1, 0))
    assert read.format == "safetensors"


def test_the_plain_file_comes_before_a_variant_of_another_format(tmp_path):
    path = copied(tmp_path)
    (path / WEIGHTS).rename(path / "diffusion_pytorch_model.fp16.safetensors")
    (path / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert diffusers._choose(path).name == "diffusion_pytorch_model.bin"


def test_the_cache_looks_at_the_files_that_an_index_names(tmp_path):
    path = copied(tmp_path)
    sharded(path)
    found = cache_module._files(path / f"{WEIGHTS}.index.json")
    assert {file.name for file in path.iterdir()} == {file.name for file in found}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_in.bias": "../secret.safetensors"}, "names '../secret.safetensors', which is no file beside it"),
        ({"conv_in.bias": "missing.safetensors"}, "which is no file beside it"),
        ({"conv_in.bias": 3}, "has no weight_map"),
        ({"other.bias": "diffusion_pytorch_model-00001-of-00002.safetensors"}, "'other.bias' is not in the file"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, changes, message):
    path = copied(tmp_path)
    sharded(path, **changes)
    with pytest.raises(ValueError, match=message):
        convert(path, "", tmp_path / "out")


def test_files_of_torch_with_a_prefix_are_read(tmp_path):
    path = copied(tmp_path)
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    stored = {
        f"module.{k}": files.tensor(files.storage(str(i), v.size), v.shape) for i, (k, v) in enumerate(tensors.items())
    }
    content = files.program(files.mapping({"ema_model": files.mapping(stored, ordered=True)}))
    data = {str(i): v.tobytes() for i, v in enumerate(tensors.values())}
    (path / "diffusion_pytorch_model.bin").write_bytes(files.zip_file(content, data))
    read = diffusers.read(path, Asked())
    assert list(read.weights) == ["ema"]
    kernel = read.weights["ema"]["layers"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv_in.weight"].transpose(2, 3, 1, 0))


def test_a_file_opens_as_it_is_and_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    counted = []
    monkeypatch.setattr(cache_module, "convert", lambda *args, **kwargs: counted.append(1) or convert(*args, **kwargs))
    path = copied(tmp_path)
    for opened in (path, path, path / WEIGHTS):
        assert pj.load(opened).image_shape == (16, 16, 3)
    assert len(counted) == 1  # the file with what is beside it is what is in the directory
    assert len(list((tmp_path / "psld_jax" / "converted").iterdir())) == 1
    change_json(path / "scheduler_config.json", prediction_type="sample")
    assert pj.load(path).sde.prediction == "data" and len(counted) == 2
    assert pj.load(path, {"model.unet2d.predicts": "eps"}).sde.prediction == "eps" and len(counted) == 3
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        change_json(path / "config.json", _class_name="UNet2DConditionModel")
        pj.load(path)


def test_a_cache_that_lost_a_file_says_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    pj.load(FLAT)
    (place,) = (tmp_path / "psld_jax" / "converted").iterdir()
    for file in place.rglob("*METADATA"):
        file.write_text(file.read_text()[:20])
    with pytest.raises(ValueError, match=f"{place}/online is damaged or incomplete"):
        pj.load(FLAT)
    (place / "index.json").unlink()
    with pytest.raises(ValueError, match=f"Remove {place}: then {FLAT} is converted again"):
        pj.load(FLAT)


# Back again.


@pytest.mark.parametrize(
    "source",
    ["diffusers_class_sample", "iddpm_adm_heads.pkl", pytest.param("edm_skip_skip.pkl", marks=pytest.mark.slow)],
)
def test_what_is_written_opens_again_with_the_same_numbers(tmp_path, source):
    convert(GOLDEN / source, "", tmp_path / "in")
    to = "diffusers" if source.startswith("diffusers") else "edm-state-dict"
    file = tmp_path / "f.safetensors"
    assert main(["--checkpoint", str(tmp_path / "in"), "--to", to, "--output", str(file)]) == 0
    convert(file, "", tmp_path / "out")
    (first, one), (second, other) = read_converted(tmp_path / "in"), read_converted(tmp_path / "out")
    assert (first["sde"], first["model"]["name"]) == (second["sde"], second["model"]["name"])
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    assert str(tmp_path) not in file.read_bytes()[:100_000].decode(errors="replace")
    if to == "diffusers":
        original = load_file(CASE / "unet" / WEIGHTS)
        back = load_file(file)
        assert original.keys() == back.keys() and all(np.array_equal(original[k], back[k]) for k in original)


def test_a_directory_written_for_diffusers_is_one(tmp_path, converted):
    written.write(converted, "diffusers", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS, "scheduler_config.json"]
    options, unknown = diffusers._options(json.loads((tmp_path / "out" / "config.json").read_text()))
    before, _ = diffusers._options(json.loads((CASE / "unet" / "config.json").read_text()))
    assert options == before and unknown == []
    convert(tmp_path / "out", "", tmp_path / "again", origin="diffusers")
    levels = [np.array(read_converted(p)[0]["sde"]["alphas_cumprod"]) for p in (converted, tmp_path / "again")]
    np.testing.assert_allclose(*levels, rtol=1e-6)  # quotients of levels and their products, in float32


@pytest.mark.parametrize(
    ("to", "output", "message"),
    [
        (
            "edm-state-dict",
            "f.safetensors",
            "is a network 'unet2d', which cannot be written as edm-state-dict; --to diff",
        ),
        ("torch", "f.pt", "must be a file that ends in .safetensors"),
        ("keras", "f.safetensors", "unknown --to 'keras'"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, converted, to, output, message):
    with pytest.raises(ValueError, match=message):
        written.write(converted, to, tmp_path / output)
    (tmp_path / "there.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="exists already"):
        written.write(converted, "torch", tmp_path / "there.safetensors")


def test_a_directory_for_diffusers_may_have_a_dot_and_nothing_else_in_it(tmp_path, converted):
    written.write(converted, "diffusers", tmp_path / "ddpm-v1.0")
    written.write(converted, "diffusers", tmp_path / "ddpm-v1.0", overwrite=True)
    before = (converted / "config.json").read_bytes()
    with pytest.raises(ValueError, match="holds something else than what --to diffusers writes"):
        written.write(converted, "diffusers", converted, overwrite=True)
    assert (converted / "config.json").read_bytes() == before


def test_a_network_with_labels_that_the_original_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="emoji takes 9 labels, which NCSN"):
        written.write("emoji", "torch", tmp_path / "f.safetensors")
