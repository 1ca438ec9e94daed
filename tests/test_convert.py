"""From checkpoint file to converted directory: structure, completeness, parity, and what is left after a failure."""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import convert_files as files
import jax
import jax.numpy as jnp
import models_support
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from psld_jax.convert import configs, convert, infer, mapping, read_checkpoint, read_converted, read_index
from psld_jax.convert.__main__ import main

from psld_jax import models
from psld_jax.checkpoints import directory as saved

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for pattern in ("*ncsnpp_*.ckpt", "lightning_*.ckpt") for path in GOLDEN.glob(pattern))
PSLD, CLF = (GOLDEN / f"lightning_{name}_tiny.ckpt" for name in ("psld", "clf"))
SDE = {"name": "psld", "beta_min": 8, "beta_max": 8, "gamma": 0.01, "nu": 4.01, "kappa": 0.04, "decomposition": "lower"}


def described(name):
    """The options of the network in a golden file, and its number of classes."""
    tree = json.loads((GOLDEN / f"{name.removesuffix('_cuda_tags')}.json").read_text())["config"]
    tree = tree["clf" if "_clf_" in name else "diffusion"]
    network = tree["model"]["clf_fn" if "_clf_" in name else "score_fn"]
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in network.items()}
    return options | {"image_size": tree["data"]["image_size"]}


def overrides_for(name):
    """Flags for what no file tells."""
    options, is_score = described(name), "_clf_" not in name
    fields = ["nonlinearity", "skip_rescale", "fir", "fir_kernel", "resblock_type", *["image_size"] * is_score]
    sde = [f"sde.{key}={value}" for key, value in SDE.items()] if is_score else []
    return [f"model.{field}={options[field]}" for field in fields] + sde


def config_file(tmp_path, fields):
    """A configuration that differs from the default one in ``model``."""
    path = tmp_path / "config.py"
    path.write_text(
        "from psld_jax.build import load_config\n"
        "def get_config():\n"
        "    config = load_config('default')\n"
        "    with config.unlocked(), config.ignore_type():\n"
        f"        config.model.update({fields!r})\n"
        "    return config.lock()\n"
    )
    return str(path)


def options_for(name):
    """The fields of ``config.model`` of a golden file."""
    options = described(name)
    known = {key: value for key, value in options.items() if hasattr(models.NCSNppConfig, key)}
    extra = {"name": "ncsnpp_clf", "n_classes": options["n_cls"]} if "n_cls" in options else {"name": "ncsnpp"}
    return known | extra


# Structure.


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_golden_file_is_understood_and_used_up(name):
    options = described(name)
    with read_checkpoint(GOLDEN / f"{name}.ckpt") as checkpoint:
        found = mapping.networks(checkpoint)
        assert sum(map(len, found.values())) == len(checkpoint)
        for tensors in found.values():
            structure = infer({key: tensor.shape for key, tensor in tensors.items()})
            assert structure.n_classes == options.get("n_cls")
            assert structure.fields == {field: options[field] for field in structure.fields}
            assert set(structure.attn_resolutions(options["image_size"])) == set(options["attn_resolutions"])
            config = configs.resolve("auto", overrides_for(name), structure)
            parameters = models.source_parameters(*configs.network(config))
            pairs = mapping.match(tensors, parameters)
            assert {tensor.name for tensor, _ in pairs} == {tensor.name for tensor in tensors.values()}
            assert len(pairs) == len({parameter.path for _, parameter in pairs}) == len(tensors)


@st.composite
def networks(draw):
    """Any network, as options and number of classes."""
    levels = draw(st.integers(1, 3))
    size = 8 * 2 ** (levels - 1)
    n_classes = draw(st.one_of(st.none(), st.integers(1, 5)))
    choices = {
        "resblock_type": ("ddpm", "biggan"),
        "progressive": ("none", "output_skip", "residual") if n_classes is None else ("none",),
        "progressive_input": ("none", "input_skip", "residual"),
        "progressive_combine": ("sum", "cat"),
        "embedding_type": ("fourier", "positional"),
        **{field: (True, False) for field in ("noise_cond", "fir", "resamp_with_conv")},
        "num_res_blocks": (1, 2, 3),
        "in_ch": (1, 2, 6),
        "out_ch": (1, 3, 6),
        "nf": (8, 12),
    }
    options = {field: draw(st.sampled_from(values)) for field, values in choices.items()}
    options["ch_mult"] = tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels)))
    options["attn_resolutions"] = tuple(draw(st.sets(st.sampled_from([size // 2**i for i in range(levels)]))))
    options["image_size"] = size
    try:
        return models.NCSNppConfig(**options), n_classes
    except ValueError:  # channels that group norm cannot divide
        assume(False)


SOME = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@given(networks())
@SOME
def test_shapes_tell_the_structure_of_any_network(network):
    config, n_classes = network
    shapes = {p.source: p.source_shape for p in models.source_parameters(config, n_classes)}
    structure = infer(shapes)
    assert structure.n_classes == n_classes
    same_as_none = config.progressive == "output_skip" and len(config.ch_mult) == 1
    for field, value in structure.fields.items():
        if not (same_as_none and field in ("progressive", "out_ch")):
            assert value == getattr(config, field), field
    assert set(structure.attn_resolutions(config.image_size)) == set(config.attn_resolutions)
    # With what is implied, and the open fields, the same parameters come out: the other fields do not matter.
    given = {field: getattr(config, field) for field in structure.open}
    rebuilt = models.NCSNppConfig(**{"image_size": config.image_size, **structure.fields, **given})
    attention = structure.attn_resolutions(config.image_size)
    rebuilt = models.NCSNppConfig(**(vars(rebuilt) | {"attn_resolutions": attention}))
    kinds = [
        [(entry.kind, entry.in_ch, entry.out_ch) for entry in models.plan(options, n_classes)]
        for options in (config, rebuilt)
    ]
    assert kinds[0] == kinds[1]


@functools.cache
def golden_shapes(name):
    with read_checkpoint(GOLDEN / f"{name}.ckpt") as checkpoint:
        found = mapping.networks(checkpoint)
        return {key: tensor.shape for key, tensor in found["online"].items()}


@given(st.sampled_from(NAMES), st.data())
@settings(SOME, max_examples=300)
def test_inference_survives_any_names_and_shapes(name, data):
    shapes = dict(golden_shapes(name))
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(st.sampled_from(sorted(shapes)))
        kind = data.draw(st.integers(0, 3))
        if kind == 0:
            shapes[key] = tuple(data.draw(st.lists(st.integers(0, 40), max_size=5)))
        elif kind == 1:
            number = key.split(".")[1]
            shapes = {k: v for k, v in shapes.items() if k.split(".")[1] != number} or shapes
        elif kind == 2:
            shapes[f"all_modules.{data.draw(st.integers(0, 30))}.{key.split('.', 2)[2]}"] = shapes.pop(key)
        elif len(shapes) > 1:
            del shapes[key]
    try:
        structure = infer(shapes)
    except ValueError as error:
        assert len(str(error)) < 2000
        return
    assert structure.fields["nf"] > 0


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"encoder.weight": (3, 3)},
        {"all_modules.0.W": (8,)},
        {"all_modules.99999.W": (8,)},
        {"all_modules.0.weight": (8, 6, 3, 3), "all_modules.0.bias": (8,)},
        {"all_modules.9999.weight": (8, 6, 3, 3), "all_modules.9999.bias": (8,)},
    ],
)
def test_what_is_no_ncsnpp(shapes):
    with pytest.raises(ValueError, match="all_modules|no parameters"):
        infer(shapes)


# Configuration.


def test_auto_asks_for_what_no_shape_tells(tmp_path):
    with pytest.raises(ValueError) as caught:
        convert(PSLD, "auto", tmp_path / "out", overrides=["model.image_size=16"])
    message = str(caught.value)
    for field in ("model.nonlinearity", "model.skip_rescale", "model.fir_kernel", *[f"sde.{key}" for key in SDE]):
        assert f"--set {field}=" in message
    assert "--set model.image_size" not in message and "nf=8" in message and str(PSLD) in message
    vp = [*overrides_for("lightning_psld_tiny")[:6], "sde.name=vpsde"]
    with pytest.raises(ValueError, match="cannot tell sde.beta_min, sde.beta_max. Add"):
        convert(PSLD, "auto", tmp_path / "out", overrides=vp)
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_disagrees_is_named_field_by_field(tmp_path):
    wrong = {"nf": 16, "ch_mult": (1, 2, 2), "attn_resolutions": (), "embedding_type": "positional", "in_ch": 3}
    config = config_file(tmp_path, options_for("lightning_psld_tiny") | wrong)
    with pytest.raises(ValueError) as caught:
        convert(PSLD, config, tmp_path / "out")
    for field, implied in (("nf", 8), ("ch_mult", (1, 2)), ("attn_resolutions", (8,)), ("embedding_type", "'fourier'")):
        assert f"model.{field} is {wrong[field]!r}, the file implies {implied}" in str(caught.value)
    assert "num_res_blocks" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_kind_and_number_of_classes_are_compared(tmp_path):
    with pytest.raises(ValueError, match="model.name is 'ncsnpp', the file implies 'ncsnpp_clf'"):
        convert(CLF, config_file(tmp_path, options_for("lightning_psld_tiny")), tmp_path / "out")
    wrong = options_for("lightning_clf_tiny") | {"n_classes": 10}
    with pytest.raises(ValueError, match="model.n_classes is 10, the file implies 3"):
        convert(CLF, config_file(tmp_path, wrong), tmp_path / "out")
    with pytest.raises(ValueError, match="ncsnpp, ncsnpp_clf"):
        convert(CLF, "digits", tmp_path / "out")
    with pytest.raises(ValueError, match="unknown config 'nothing'"):
        convert(CLF, "nothing", tmp_path / "out")


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.image_siz=16", "Did you mean 'model.image_size'"),
        ("image_size=16", "unknown field"),
        ("model.image_size", "FIELD=VALUE"),
        ("model.image_size=", "FIELD=VALUE"),
        ("model.image_size=large", "a int is expected"),
        ("model.skip_rescale=1", "a bool is expected"),
        ("model.nonlinearity=gelu", "unknown nonlinearity"),
        ("model.image_size=" + "(" * 100_000, "is expected"),
        ("sde=3", "unknown field"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert(CLF, "auto", tmp_path / "out", overrides=[*overrides_for("lightning_clf_tiny"), override])
    assert len(str(caught.value)) < 3000


# Completeness.


def state_dict_file(tmp_path, change):
    """The tiny Lightning checkpoint with tensors of one value, its list of names and shapes changed."""
    with read_checkpoint(PSLD) as checkpoint:
        shapes = change({name: tensor.shape for name, tensor in checkpoint.items()})
    stored = files.storage("0", 10_000)
    pickled = files.checkpoint({name: files.tensor(stored, shape) for name, shape in shapes.items()})
    path = tmp_path / "changed.ckpt"
    path.write_bytes(files.zip_file(pickled, {"0": np.ones(10_000, np.float32).tobytes()}) + b"")
    return path


CHANGES = {
    "a parameter is missing": (
        lambda s: {k: v for k, v in s.items() if k != "ema_score_fn.all_modules.4.Conv_0.bias"},
        ["all_modules.4"],
    ),
    "another shape": (
        lambda s: s | {"ema_score_fn.all_modules.4.Conv_0.bias": (9,)},
        ["all_modules.4.Conv_0.bias: (9,) in the file, (8,) for layers/down_0_block_0/conv_0/bias"],
    ),
    "no known network": (lambda s: s | {"vae.weight": (2, 2)}, ["'vae.weight' (2, 2)", "score_fn.all_modules.*"]),
    "two networks": (lambda s: s | {"clf_fn.all_modules.0.weight": (2, 2)}, ["score_fn.*", "clf_fn.*"]),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_both_sides_are_listed_unless_they_fit(tmp_path, kind):
    change, messages = CHANGES[kind]
    with pytest.raises(ValueError) as caught:
        convert(
            state_dict_file(tmp_path, change), "auto", tmp_path / "out", overrides=overrides_for("lightning_psld_tiny")
        )
    for message in messages:
        assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["changed.ckpt"]


def test_match_lists_what_is_left_on_either_side():
    config = models.NCSNppConfig(nf=8, ch_mult=(1,), num_res_blocks=1, image_size=8)
    parameters = models.source_parameters(config)
    with read_checkpoint(PSLD) as checkpoint:
        tensors = mapping.networks(checkpoint)["ema"]
        with pytest.raises(ValueError) as caught:
            mapping.match(tensors, parameters)
    message = str(caught.value)
    assert "in the file without a place in the network" in message and "all_modules.5.Conv_2.bias (8,)" in message
    assert "in the network without a tensor in the file" in message and "of different shape" in message
    assert "more" in message and len(message) < 12_000


def test_integer_weights_are_refused(tmp_path):
    parameters = models.source_parameters(models.NCSNppConfig(nf=8, ch_mult=(1,), num_res_blocks=1, image_size=8))
    stored = files.storage("0", 10_000, "torch.LongStorage")
    pickled = files.checkpoint({f"score_fn.{p.source}": files.tensor(stored, p.source_shape) for p in parameters})
    (tmp_path / "file.ckpt").write_bytes(files.zip_file(pickled, {"0": bytes(80_000)}))
    with read_checkpoint(tmp_path / "file.ckpt") as checkpoint, pytest.raises(ValueError, match="no floating-point"):
        mapping.match(mapping.networks(checkpoint)["online"], parameters)


# Conversion.


def apply(config, params, *inputs, function=None):
    """The converted network's output (or ``function`` of it), built from what the directory holds."""
    graph, state = nnx.split(models.abstract(*configs.network(ConfigDict(config))))
    nnx.replace_by_pure_dict(state, params)
    function = function or (lambda network, *inputs: network(*inputs))
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(lambda state, *inputs: function(nnx.merge(graph, state), *inputs), compiler_options=fast)(
        state, *inputs
    )


def test_score_network_end_to_end(tmp_path, capsys):
    """By command line, with a configuration file, both sets of weights; each gives the original's output."""
    config, out = config_file(tmp_path, options_for("lightning_psld_tiny")), tmp_path / "deep" / "out"
    assert main(["--checkpoint", str(PSLD), "--config", config, "--output", str(out), "--weights", "both"]) == 0
    printed = capsys.readouterr().out
    index = read_index(out)
    assert (
        index["source"]["sha256"] == hashlib.sha256(PSLD.read_bytes()).hexdigest()
        and index["source"]["sha256"] in printed
    )
    assert index["source"]["metadata"]["global_step"] == 12
    data = np.load(PSLD.with_suffix(".npz"))
    z, t = jnp.asarray(np.moveaxis(data["z"], 1, -1)), jnp.asarray(data["t"])
    frequencies = {}
    for weights, prefix in (("online", "score_fn"), ("ema", "ema_score_fn")):
        loaded, params = read_converted(out, weights)
        assert loaded["model"]["nf"] == 8 and tuple(loaded["model"]["ch_mult"]) == (1, 2)
        frequencies[weights] = params["layers"]["fourier"]["frequencies"]
        output = np.moveaxis(np.asarray(apply(loaded, params, z, t)), -1, 1)
        assert output.dtype == np.float32
        assert np.abs(output - data[f"out_{prefix}"]).max() < 3e-4
        sources = [entry["source"] for entry in index["parameters"][weights].values()]
        assert len(set(sources)) == len(sources) == 157 and all(name.startswith(f"{prefix}.") for name in sources)
    # The EMA has frequencies of its own: they drifted in training.
    assert not np.array_equal(frequencies["ema"], frequencies["online"])
    default = read_converted(out)[1]["layers"]["fourier"]["frequencies"]
    np.testing.assert_array_equal(default, frequencies["ema"])
    with pytest.raises(ValueError, match="no 'emma' weights; it has ema, online"):
        read_converted(out, "emma")


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["", "_cuda_tags"])
def test_classifier_end_to_end(tmp_path, tag):
    source = GOLDEN / f"lightning_clf_tiny{tag}.ckpt"
    convert(source, "auto", tmp_path / "out", overrides=overrides_for("lightning_clf_tiny"))
    config, params = read_converted(tmp_path / "out")
    assert config["model"]["name"] == "ncsnpp_clf" and config["model"]["n_classes"] == 3
    assert config["model"]["image_size"] == 16
    data = np.load(GOLDEN / "lightning_clf_tiny.npz")
    z, t = jnp.asarray(np.moveaxis(data["z"], 1, -1)), jnp.asarray(data["t"])

    logits, chosen, gradient = apply(config, params, z, t, data["y"], function=models_support.logits_and_gradient)
    assert np.abs(logits - data["logits"]).max() < 1e-5
    assert np.abs(chosen - data["selected_log_prob"]).max() < 1e-5
    assert np.abs(np.moveaxis(np.asarray(gradient), -1, 1) - data["grad"]).max() < 1e-4


@pytest.mark.parametrize("name", ["ncsnpp_clf_d_ddpm_noconv_nofir", "fixed_ncsnpp_ddpm_conv_fir_residual"])
def test_every_value_arrives(tmp_path, name):
    """What the directory holds is the file, transposed; the networks' outputs are compared in test_models_golden."""
    check_values(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_every_golden_file_arrives(tmp_path, name):
    check_values(tmp_path, name)


def check_values(tmp_path, name):
    source = GOLDEN / f"{name}.ckpt"
    weights = "online" if "_clf_" in name else "both"
    index = convert(source, "auto", tmp_path / "out", weights=weights, overrides=overrides_for(name))
    with read_checkpoint(source) as checkpoint:
        left = set(checkpoint)
        for weights, described in index["parameters"].items():
            config, params = read_converted(tmp_path / "out", weights)
            parameters = {"/".join(p.path): p for p in models.source_parameters(*configs.network(ConfigDict(config)))}
            arrays = saved.flatten(params)
            assert arrays.keys() == described.keys() == parameters.keys()
            for path, array in arrays.items():
                value = checkpoint[described[path]["source"]].read()
                np.testing.assert_array_equal(array, parameters[path].convert(value))
                left.remove(described[path]["source"])
    assert not left


@pytest.mark.parametrize("dtype, kind", [(np.float16, "torch.HalfStorage"), (np.float64, "torch.DoubleStorage")])
def test_other_precisions_become_float32(tmp_path, dtype, kind):
    config = models.NCSNppConfig(nf=8, ch_mult=(1,), num_res_blocks=1, image_size=8)
    parameters = models.source_parameters(config)
    tensors, storages = {}, {}
    for i, p in enumerate(parameters):
        values = np.linspace(-1, 1, int(np.prod(p.source_shape))).astype(dtype)
        storages[str(i)] = values.tobytes()
        tensors[p.source] = files.tensor(files.storage(str(i), values.size, kind), p.source_shape)
    path = tmp_path / "bare.pt"
    path.write_bytes(files.zip_file(files.program(files.mapping(tensors, ordered=True)), storages))
    overrides = ["model.image_size=8", "model.nonlinearity=swish", "model.skip_rescale=True"]
    with pytest.raises(ValueError, match="no ema weights: use --weights online"):
        convert(path, "auto", tmp_path / "out", overrides=overrides)
    overrides += [f"sde.{key}={value}" for key, value in SDE.items()]
    convert(path, "auto", tmp_path / "out", weights="online", overrides=overrides)
    _, params = read_converted(tmp_path / "out")
    kernel = params["layers"]["temb_0"]["kernel"]
    assert kernel.dtype == np.float32
    values = np.linspace(-1, 1, kernel.size).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, values.reshape(kernel.T.shape).T)


# The output directory.


def convert_classifier(output, **options):
    return convert(CLF, "auto", output, overrides=overrides_for("lightning_clf_tiny"), **options)


def test_missing_weights_are_an_error(tmp_path):
    for weights in ("ema", "both"):
        with pytest.raises(ValueError, match="no ema weights: use --weights online"):
            convert_classifier(tmp_path / "out", weights=weights)
    with pytest.raises(ValueError, match="ema, online, both are accepted"):
        convert_classifier(tmp_path / "out", weights="best")
    assert not list(tmp_path.iterdir())


def test_output_is_overwritten_only_when_asked(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    convert_classifier(out)  # empty: fine
    (out / "old").touch()
    with pytest.raises(ValueError, match="exists already"):
        convert_classifier(out)
    assert (out / "old").exists()
    convert_classifier(out, overwrite=True)
    assert not (out / "old").exists() and read_converted(out)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_things_are_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for output in ("out", "file"):
        with pytest.raises(ValueError, match="not overwritten"):
            convert_classifier(tmp_path / output, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists() and (tmp_path / "file").exists()


@pytest.mark.slow
@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, MemoryError, OSError])
@pytest.mark.parametrize("moment", ["start", "middle", "description", "rename"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, failure, moment, existing):
    out = tmp_path / "out"
    if existing:
        out.mkdir()
        (out / "index.json").write_text("earlier")

    def raising(*_):
        raise failure("stop")

    def progress(items, _):
        for i, item in enumerate(items):
            if i == {"start": 0, "middle": 40}.get(moment):
                raising()
            yield item

    if moment == "description":
        monkeypatch.setattr(saved, "write_description", raising)
    elif moment == "rename":
        rename = Path.rename
        new = "new"
        monkeypatch.setattr(Path, "rename", lambda self, to: raising() if f".{new}-" in self.name else rename(self, to))
    if moment in ("description", "rename"):
        monkeypatch.setattr(saved, "write_parameters", lambda directory, weights, tree: (directory / weights).mkdir())
    with pytest.raises(failure):
        convert_classifier(out, progress=progress, overwrite=existing)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * existing
    if existing:
        assert (out / "index.json").read_text() == "earlier"


def test_damaged_outputs_are_refused(tmp_path):
    for content in ("", "{}", "[]", '{"parameters": {}}'):
        (tmp_path / "index.json").write_text(content)
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="holds no converted checkpoint"):
            read_converted(tmp_path)
    with pytest.raises(ValueError, match="nothing holds no converted checkpoint: there is no such directory"):
        read_converted(tmp_path / "nothing")
    out = tmp_path / "out"
    convert_classifier(out)
    index = read_index(out)
    path = next(iter(index["parameters"]["online"]))
    index["parameters"]["online"][path]["shape"][0] += 1
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="does not hold what index.json describes"):
        read_converted(out)
    (out / "online").rename(out / "elsewhere")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        read_converted(out)


# The command.


def test_command_line_errors_are_one_message(tmp_path, capsys):
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"not a checkpoint")
    assert main(["--checkpoint", str(bad), "--config", "auto", "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {bad}") and printed.err.count("\n") == 1 and printed.out == ""


def test_command_line_arguments(tmp_path, capsys):
    arguments = ["--checkpoint", str(tmp_path / "none.ckpt"), "--config", "auto", "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "none.ckpt" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--weights", "best"])
    assert caught.value.code == 2


def test_interrupt_from_the_keyboard(tmp_path, monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("psld_jax.convert.__main__.convert", interrupted)
    assert main(["--checkpoint", "f", "--config", "auto", "--output", str(tmp_path / "out")]) == 130
    assert "nothing was written" in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_processes_leave_nothing(tmp_path):
    """Ctrl-C at many moments: either the whole directory is there, or nothing."""
    flags = [flag for override in overrides_for("lightning_clf_tiny") for flag in ("--set", override)]
    command = [sys.executable, "-m", "convert", "--config", "auto", "--checkpoint", str(CLF), *flags]
    outcomes, begin = set(), time.perf_counter()
    subprocess.run([*command, "--output", str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    whole = time.perf_counter() - begin
    # Up to twice as long as it takes: a machine that others use is slower a moment later.
    for i, delay in enumerate(np.linspace(0.3, 2.0, 26) * whole):
        out = tmp_path / str(i) / "out"
        out.parent.mkdir()
        process = subprocess.Popen(
            [*command, "--output", str(out)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        os.kill(process.pid, signal.SIGINT)
        process.wait(60 + 2 * whole)
        left = [path.name for path in out.parent.iterdir()]
        assert left in ([], ["out"])
        if left:
            assert read_converted(out)
        outcomes.add(tuple(left))
    assert len(outcomes) == 2
