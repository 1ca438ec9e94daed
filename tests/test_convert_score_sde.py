"""Checkpoints of score_sde_pytorch: a state dict behind ``module.``, averages in a list, and ``999 t``."""

import functools
import json

import convert_files as files
import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from psld_jax.convert import convert, read_converted
from psld_jax.convert.__main__ import main
from seeds import generator

import psld_jax as pj
from psld_jax import assets, build, models
from psld_jax.checkpoints import directory as checkpoint

TINY = {
    "in_ch": 3,
    "out_ch": 3,
    "image_size": 8,
    "nf": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "fir": False,
    "progressive_input": "none",
    "embedding_type": "positional",
}
OVERRIDES = [
    f"model.{name}={TINY[name]}" for name in ("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "image_size")
]
# The order in which PyTorch lists the parameters of a module: that of their definition.
ORDER = ["GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2", *[f"NIN_{i}" for i in range(4)]]


def position(parameter):
    _, index, *module, leaf = parameter.source.split(".")
    return int(index), ORDER.index(module[0]) if module else 0, leaf in ("bias", "b")


@functools.cache
def parameters(embedding="positional"):
    options = TINY | {"embedding_type": embedding}
    return sorted(models.source_parameters(models.NCSNppConfig(**options)), key=position)


def weights(seed, embedding="positional"):
    """Values for every parameter, in the order and layout of PyTorch."""
    rng = generator(f"weights {seed}")
    return [0.2 * rng.standard_normal(p.source_shape).astype(np.float32) for p in parameters(embedding)]


def write(path, change=lambda model, averages: None, embedding="positional"):
    """A checkpoint with the weights 1 online and the weights 2 as their averages; ``change`` edits both in place."""
    names, storages = [p.source for p in parameters(embedding)], {}

    def stored(array, kind="torch.FloatStorage"):
        storages[str(len(storages))] = array.tobytes()
        return files.tensor(files.storage(str(len(storages) - 1), array.size, kind), array.shape)

    model = {"module.sigmas": stored(np.geomspace(50, 0.01, 1000), "torch.DoubleStorage")}
    model |= {f"module.{name}": stored(array) for name, array in zip(names, weights(1, embedding), strict=True)}
    averages = [
        stored(array) for name, array in zip(names, weights(2, embedding), strict=True) if name != "all_modules.0.W"
    ]
    change(model, averages)
    path.write_bytes(files.zip_file(files.score_sde(model, averages), storages))
    return path


def network(seed):
    """The network that was saved, without a scale of time."""
    arrays = {p.path: jnp.asarray(p.convert(array)) for p, array in zip(parameters(), weights(seed), strict=True)}
    return models_support.fill(models.abstract(models.NCSNppConfig(**TINY)), arrays)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("score_sde")
    source, flags = write(directory / "checkpoint_8.pth"), [flag for value in OVERRIDES for flag in ("--set", value)]
    output = ["--output", str(directory / "out"), "--weights", "both"]
    assert main(["--checkpoint", str(source), "--config", "cifar10_ddpmpp", *output, *flags]) == 0
    return directory / "out"


@pytest.mark.parametrize(("name", "seed", "prefix"), [("online", 1, "module"), ("ema", 2, "ema")])
def test_every_value_arrives_in_its_place(converted, name, seed, prefix):
    _, params = read_converted(converted, name)
    arrays, index = checkpoint.flatten(params), json.loads((converted / "index.json").read_text())
    for parameter, array in zip(parameters(), weights(seed), strict=True):
        path = "/".join(parameter.path)
        np.testing.assert_array_equal(arrays.pop(path), parameter.convert(array))
        assert index["parameters"][name][path]["source"] == f"{prefix}.{parameter.source}"
    assert not arrays and index["source"]["metadata"] == {"step": 7}


def test_eps_is_the_network_at_999_t_and_the_average_is_the_default(rng, converted):
    z = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    outputs, eps = {}, models_support.jit(lambda fn, t: fn((z,), t)[0])
    for chosen, seed in (("", 2), ("online", 1)):
        model = pj.load(converted, {"model.weights": chosen})
        assert repr(model.sde) == "VPSDE(beta_min=0.1, beta_max=20.0, jitter=0.0)"
        for t in (0.001, 0.6):
            outputs[chosen, t] = np.asarray(eps(model.eps_fn, jnp.float32(t)))
            raw = models_support.run(network(seed), z, jnp.float32(999) * jnp.float32(t))
            np.testing.assert_allclose(outputs[chosen, t], raw, atol=1e-5)  # two programs; values of order 1
    assert np.abs(outputs["online", 0.6] - outputs["", 0.6]).max() > 0.1
    assert np.abs(outputs["", 0.001] - outputs["", 0.6]).max() > 1e-3  # so that a scale of 1 would be seen


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_the_scale_multiplies_the_time_and_nothing_else(embedding):
    options = TINY | {"embedding_type": embedding, "ch_mult": (1,)}
    t = jnp.asarray([0.25, 0.5], jnp.float32)
    plain, scaled = (
        models_support.random(models.abstract(models.NCSNppConfig(**options, time_scale=scale))) for scale in (1, 3)
    )
    np.testing.assert_array_equal(scaled.embed(t), plain.embed(3 * t))
    with pytest.raises(ValueError, match="time_scale=0 must be > 0"):
        models.NCSNppConfig(time_scale=0)


def test_configurations_from_before_the_field_was_there():
    stored = json.loads((assets.network("mnist") / "config.json").read_text())
    assert "time_scale" not in stored["model"]
    assert build.network_options(build.from_dict(stored)).time_scale == 1.0


# What is refused.


def swap(model, averages):
    averages[0], averages[1] = averages[1], averages[0]


def drop(name):
    def change(model, averages):
        del averages[list(model).index(f"module.{name}") - 1], model[f"module.{name}"]

    return change


def add(model, averages):
    model["module.encoder.weight"] = averages[0]
    averages.append(averages[0])


CHANGES = {
    "too few": (lambda model, averages: averages.pop(), "has 133 tensors for the 134 parameters of its model"),
    "too many": (lambda model, averages: averages.append(averages[0]), "has 135 tensors for the 134 parameters"),
    "order": (swap, r"shadow_params\[0\] has shape \(32,\), and 'module.all_modules.0.weight'.*not in one order"),
    "incomplete": (drop("all_modules.3.Conv_0.bias"), r"all_modules.3 \(.*is not a module of NCSN"),
    "no model": (lambda model, averages: model.clear(), "has no model, a dict of tensors"),
    "other network": (add, "'module.encoder.weight' .* belongs to no known network"),
    "not a tensor": (lambda model, averages: averages.__setitem__(0, files.NONE), "is a NoneType; only tensors"),
}


def refuse(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert(path, "cifar10_ddpmpp", path.parent / "out", overrides=OVERRIDES)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pth"]


@pytest.mark.parametrize("kind", CHANGES)
def test_a_wrong_file_is_one_line(tmp_path, kind):
    change, message = CHANGES[kind]
    refuse(write(tmp_path / "checkpoint.pth", change), message)


def test_a_ve_network_is_refused(tmp_path):
    path = write(tmp_path / "checkpoint.pth", embedding="fourier")
    refuse(path, "log sigma of a VE diffusion; VE is not supported")


def test_a_configuration_that_is_not_of_this_code(tmp_path):
    path = write(tmp_path / "checkpoint.pth")
    for config, more, message in (
        ("cifar10_vp", [], "model.time_scale is 1.0, the file implies 999.0"),
        ("cifar10_ddpmpp", ["sde.name=psld"], "sde.name is 'psld', the file implies 'vpsde'"),
        ("cifar10_ddpmpp", ["model.num_res_blocks=2"], "model.num_res_blocks is 2, the file implies 1"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(path, config, tmp_path / "out", overrides=OVERRIDES + more)


def test_auto_knows_diffusion_and_scale(tmp_path):
    path = write(tmp_path / "checkpoint.pth")
    with pytest.raises(
        ValueError, match=r"time_scale=999.0.*it cannot tell model.\w+.*, sde.beta_min, sde.beta_max. Add"
    ) as caught:
        convert(path, "auto", tmp_path / "out", overrides=["model.fir=False"])
    assert "sde.name" not in str(caught.value) and "fir_kernel" not in str(caught.value)
