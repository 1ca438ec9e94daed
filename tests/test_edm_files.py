"""Files of EDM that are damaged, hostile or of something else: a ValueError says what, and nothing is called."""

import os
import pickle
import struct
import time

import convert_files as files
import edm_files
import jax.numpy as jnp
import numpy as np
import pytest
from psld_jax.convert import convert
from psld_jax.convert import edm as origin
from psld_jax.convert.origins import Asked, recognise
from seeds import generator

import psld_jax as pj
from psld_jax.checkpoints.directory import flatten
from psld_jax.checkpoints.persistent import is_persistent, read_persistent


@pytest.fixture(scope="module")
def values():
    """The arrays of a tiny network, in the original's names and layout."""
    return edm_files.arrays(edm_files.TINY, generator("values"))


def read(path):
    return origin.read(path, Asked())


def test_a_network_of_our_own_making(tmp_path, values):
    path = edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, values))
    assert is_persistent(path) and origin.recognises(path)
    found = read(path)
    for source, array in origin.state_dict(edm_files.TINY, found.weights["ema"]).items():
        np.testing.assert_array_equal(array, values[source])
    assert found.sde == {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "data_std": 0.5}


def as_training_state(path, values, root="archive", cut=None):
    """``training-state-*.pt``: the same records in protocol 2, in an archive of ``torch.save``."""
    edm_files_of_pickle, storages = (edm_files.stored, edm_files.raw), {}

    def stored(array, kind="torch.FloatStorage"):
        key = str(len(storages))
        storages[key] = array.tobytes()[:cut]
        return files.storage(key, array.size, kind, "cuda:0")

    def raw(value):
        return files.call("_codecs.encode", files.text(value.decode("latin1")), files.text("latin1"))

    edm_files.stored, edm_files.raw = stored, raw
    try:
        network = edm_files.network(edm_files.TINY, values)
    finally:
        edm_files.stored, edm_files.raw = edm_files_of_pickle
    optimizer = files.mapping({"state": files.mapping({}), "param_groups": files.listing()})
    pickled = files.program(files.mapping({"net": network, "optimizer_state": optimizer}))
    path.write_bytes(files.zip_file(pickled, storages, root))
    return path


@pytest.mark.slow
def test_the_state_of_a_training_run(tmp_path, values):
    path = as_training_state(tmp_path / "training-state-000001.pt", values)
    assert is_persistent(path) and origin.recognises(path)
    assert recognise(path).NAME == "edm"
    found = read(path)
    assert list(found.weights) == ["online"] and found.format == "zip"
    assert any("optimizer_state" in note for note in found.notes)
    for source, array in origin.state_dict(edm_files.TINY, found.weights["online"]).items():
        np.testing.assert_array_equal(array, values[source])
    with pytest.raises(ValueError, match="weights='ema' are not in this file; 'online' are"):
        origin.read(path, Asked(weights="ema"))
    convert(path, output=tmp_path / "out")
    assert np.isfinite(pj.generate(pj.load(tmp_path / "out"), sampler="heun", nfe=5, n=2)).all()


def test_a_training_state_that_is_damaged(tmp_path, values):
    path = as_training_state(tmp_path / "a.pt", values, cut=3)
    with pytest.raises(ValueError, match="the storage '0' is missing or cut off"):
        read(path)
    whole = as_training_state(tmp_path / "b.pt", values).read_bytes()
    for at in range(100, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            read(path)
        except ValueError as error:
            assert "a.pt" in str(error)
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=r"a\.pt"):
            read(path)


def test_from_file_to_samples(tmp_path, values):
    convert(edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, values)), output=tmp_path / "out")
    model = pj.load(tmp_path / "out")
    images = pj.generate(model, sampler="heun", nfe=5, n=2, seed=0)
    assert images.shape == (2, 2, 2, 1) and bool(jnp.all(jnp.isfinite(images)))


def test_options_may_be_given_that_contradict_no_weights(tmp_path, values):
    path = edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, values))
    convert(path, output=tmp_path / "wide", overrides=["model.edm.image_size=(2,4)", "model.edm.label_dropout=0.1"])
    assert pj.load(tmp_path / "wide").image_shape == (2, 4, 1)
    with pytest.raises(ValueError, match=r"--set model.edm.sigma_data=1.0 contradicts the file, .* made with 0.5"):
        convert(path, output=tmp_path / "out", overrides=["model.edm.sigma_data=1.0"])


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.system, ("touch {marker}",), "posix.system"),
        (eval, ("open('{marker}', 'w')",), "builtins.eval"),
        (exec, ("open('{marker}', 'w')",), "builtins.exec"),
        (open, ("{marker}", "w"), "_?io.open"),  # with an underscore from Python 3.12 on
        (getattr, ("{marker}", "x"), "builtins.getattr"),
        (np.load, ("{marker}",), "numpy.load"),
    ],
)
@pytest.mark.parametrize("where", ["ema", "augment_pipe"])
def test_nothing_is_called(function, arguments, name, where, tmp_path):
    marker = tmp_path / "marker"
    call = Call(function, *[argument.format(marker=marker) for argument in arguments])
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"like": "torch_utils.persistence", where: call}, protocol=4))
    with pytest.raises(ValueError, match=rf"it refers to '{name}'.*nothing was executed"):
        read(path)
    with pytest.raises(ValueError, match=name):
        convert(path, output=tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["torch.load", "torch_utils.persistence.import_hook", "dnnlib.util.open_url", "os.system"]
)
def test_names_outside_the_list_are_refused(name, tmp_path):
    path = edm_files.write(
        tmp_path / "a.pkl", files.call(name, files.text("x")), like=files.text("torch_utils.persistence")
    )
    with pytest.raises(ValueError, match=f"it refers to '{name}'"):
        read_persistent(path)


def test_source_is_skipped_unread(tmp_path, values):
    """Also where it is no text at all."""
    network = edm_files.network(edm_files.TINY, values)
    path = edm_files.write(
        tmp_path / "a.pkl", network.replace(edm_files.SOURCE.encode(), b"\xff" * len(edm_files.SOURCE))
    )
    assert b"\xff" * 1000 in path.read_bytes()
    assert read(path).origin == "edm"


def change(**edits):
    """A ``change`` for :func:`edm_files.network` from module names to functions of their parts."""
    edits = {key.replace("__", "."): edit for key, edit in edits.items()}
    return lambda name, parts: edits.get(name, lambda parts: None)(parts)


def kwargs(**arguments):
    """An edit of the arguments of the network inside."""
    held = edm_files.arguments(edm_files.TINY) | arguments
    return change(model=lambda parts: parts["attributes"].update(_init_kwargs=files.mapping(held)))


def attribute(module, **attributes):
    return change(**{module: lambda parts: parts["attributes"].update(attributes)})


BLOCK = "model__enc__2x2_block0"
WRONG = {
    "another class": (
        change(**{"": lambda parts: parts.update(kind="Generator")}),
        "its network is 'Generator'; EDMPrecond",
    ),
    "another network": (
        change(model=lambda parts: parts.update(kind="UNet3D")),
        "inside EDMPrecond is 'UNet3D'; SongUNet",
    ),
    "an unknown argument": (kwargs(attn_type=files.text("flash")), "was made with 'attn_type'"),
    "an argument of a wrong type": (kwargs(num_blocks=files.text("2")), "num_blocks is '2'; a int is expected"),
    "an argument out of range": (kwargs(num_blocks=files.integer(10**6)), "num_blocks=1000000 must be"),
    "a deeper network": (kwargs(num_blocks=files.integer(2)), "2x2_block1, which the file has not"),
    "a wider network": (kwargs(model_channels=files.integer(16)), "it has another shape of model.dec"),
    "many levels": (kwargs(channel_mult=files.listing(*[files.integer(1)] * 5000)), "channel_mult is"),
    "a huge number": (kwargs(model_channels=files.integer(2**40)), "model_channels is '1099511627776'"),
    "a negative filter": (
        kwargs(resample_filter=files.listing(files.integer(1), files.integer(-1))),
        "whose sum is not 0",
    ),
    "no arguments": (
        change(model=lambda parts: parts["attributes"].update(_init_kwargs=files.NONE)),
        "does not say what",
    ),
    "another scale": (
        attribute(BLOCK, skip_scale=edm_files.number(1.0)),
        "skip_scale of model.enc.2x2_block0 is '1.0'",
    ),
    "another epsilon": (attribute(f"{BLOCK}__norm0", eps=edm_files.number(1e-3)), "eps of model.enc.2x2_block0.norm0"),
    "heads that do not divide": (attribute(BLOCK, num_heads=files.integer(3)), "cannot divide 8 channels into 3 heads"),
    "a missing module": (
        change(**{BLOCK: lambda parts: parts["modules"].pop("conv0")}),
        "it lacks model.enc.2x2_block0.conv0",
    ),
    "a missing bias": (
        change(**{f"{BLOCK}__conv0": lambda parts: parts["parameters"].pop("bias")}),
        "lacks .*conv0.bias",
    ),
    "one parameter more": (
        change(**{BLOCK: lambda parts: parts["parameters"].update(gain=edm_files.parameter(np.ones(3, np.float32)))}),
        "without a place for it, model.enc.2x2_block0.gain",
    ),
    "no tensor": (
        change(**{BLOCK: lambda parts: parts["parameters"].update(gain=files.text("x"))}),
        "'gain', which is no tensor",
    ),
    "modules that are no dict": (attribute(BLOCK, _modules=files.text("x")), "has modules that are no dict"),
    "a negative level": (attribute("", sigma_min=edm_files.number(-1.0)), "sigma_min=-1.0 must be"),
    "a level that is no number": (attribute("", sigma_data=files.text("0.5")), "sigma_data is '0.5'; a float"),
    "a level without value": (attribute("", sigma_data=edm_files.number(np.nan)), "sigma_data"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_contradicts_itself(what, tmp_path, values):
    edit, message = WRONG[what]
    path = edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, values, edit))
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value, tmp_path, values):
    bad = {**values, "model.enc.2x2_block0.conv1.weight": values["model.enc.2x2_block0.conv1.weight"].copy()}
    bad["model.enc.2x2_block0.conv1.weight"][0, 0, 0, 0] = value
    path = edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, bad))
    with pytest.raises(ValueError, match="model.enc.2x2_block0.conv1.weight holds numbers that are not finite"):
        read(path)


@pytest.mark.parametrize(
    "value, message",
    [
        (edm_files.scalar(0.1, order=">"), "does not fit a ScalarType"),
        (files.call("numpy.dtype", files.text("O")), "a numpy scalar is of type 'O'"),
        (files.call("numpy.core.multiarray.scalar", files.NONE, files.NONE), "has not the bytes of its type"),
        (files.call("torch.storage._load_from_bytes", edm_files.raw(b"x" * 9)), "not the bytes of a file"),
        (files.call("torch.storage._load_from_bytes", edm_files.raw(b"x" * 99)), "in a storage"),
        (files.call("torch_utils.persistence._reconstruct_persistent_obj", files.text("x")), "no record of a class"),
        (edm_files.record("EDMPrecond", files.text("x")), "no record of a class"),
        (b"B" + struct.pack("<I", 2**31), "goes on for 2147483648 bytes beyond its end"),
    ],
)
def test_values_that_are_not_what_they_say(value, message, tmp_path):
    path = edm_files.write(tmp_path / "a.pkl", value, like=files.text("torch_utils.persistence"))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_files_of_something_else(tmp_path, values):
    like = files.text("torch_utils.persistence")
    for beside, message in (({"G_ema": files.NONE}, "no network under 'ema'; its keys are G_ema"), ({}, "no network")):
        path = edm_files.write(tmp_path / "a.pkl", files.NONE, **beside, like=like)
        with pytest.raises(ValueError, match=message):
            read(path)
    assert not origin.recognises(tmp_path) and not origin.recognises(tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="weights='online' are not in this file; 'ema' are"):
        origin.read(
            edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, values)), Asked("", (), "online")
        )


def test_what_refers_to_itself_ends(tmp_path):
    """A module among its own modules, and a few records that are worth billions."""
    own = edm_files.module("UNetBlock", {}, {"a": b"h\x07"})
    memo = b"}q\x07" + files.text("x")  # a dict that holds itself
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04" + memo + b"h\x07s0" + files.mapping({"ema": own}) + b".")
    with pytest.raises(ValueError):
        read(path)
    wide = edm_files.module("Linear")
    for _ in range(12):
        wide = edm_files.module("UNetBlock", {}, {"a": wide + b"q\x09", **{f"b{i}": b"h\x09" for i in range(9)}})
    network = edm_files.module("EDMPrecond", {}, {"model": wide})
    start = time.perf_counter()
    with pytest.raises(ValueError):
        read(edm_files.write(path, network))
    with pytest.raises(ValueError, match="more than 100,000 modules"):
        origin._records(read_persistent(path).content["ema"])
    assert time.perf_counter() - start < 20


def test_every_cut_is_seen(tmp_path, values):
    whole = edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, values)).read_bytes()
    path = tmp_path / "b.pkl"
    for stop in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:stop])
        with pytest.raises(ValueError):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pkl")


@pytest.mark.slow
def test_mutated_files_load_or_are_refused(tmp_path, values, rng, monkeypatch):
    """10,000 files, each with a few bytes changed, dropped, doubled or moved, most where it is no tensor's data."""
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("called"))
    whole = edm_files.write(tmp_path / "a.pkl", edm_files.network(edm_files.TINY, values, lambda *_: None)).read_bytes()
    whole = whole.replace(edm_files.SOURCE.encode(), b"#" * len(edm_files.SOURCE))
    path, loaded, slowest = tmp_path / "b.pkl", 0, 0.0
    for _ in range(10_000):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 5)):
            at, n = int(rng.integers(0, len(content))), int(rng.integers(1, 40))
            other = int(rng.integers(0, len(content)))
            match int(rng.integers(0, 5)):
                case 0:
                    content[at] = int(rng.integers(0, 256))
                case 1:
                    del content[at : at + n]
                case 2:
                    content[at:at] = content[other : other + n]
                case 3:
                    content[at : at + n] = content[other : other + n]
                case _:
                    content[at:at] = [
                        b"\xff" * 8,
                        files.name("os.system"),
                        b"R",
                        b"b",
                        b"h\0",
                        struct.pack("<Q", 2**62),
                    ][n % 6]
        path.write_bytes(content)
        start = time.perf_counter()
        try:
            found = read(path)
            assert all(np.all(np.isfinite(array)) for array in flatten(found.weights["ema"]).values())
            loaded += 1
        except ValueError as error:
            assert str(path) in str(error) and len(str(error)) < 3000
        slowest = max(slowest, time.perf_counter() - start)
    assert 0 < loaded < 9_000 and slowest < 20
