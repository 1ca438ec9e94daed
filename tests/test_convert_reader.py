"""The reader against files written by PyTorch, and against files made opcode by opcode."""

import json
import zipfile
from pathlib import Path

import convert_files as files
import ml_dtypes
import numpy as np
import pytest
from psld_jax.convert import read_checkpoint

GOLDEN = Path(__file__).parent / "golden"


def read(tmp_path, content):
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    with read_checkpoint(path) as checkpoint:
        return {name: tensor.read() for name, tensor in checkpoint.items()}, checkpoint


@pytest.mark.parametrize("name", ["torch_state_zip", "torch_state_legacy"])
def test_files_written_by_torch(name):
    expected = np.load(GOLDEN / "torch_state.npz")
    with read_checkpoint(GOLDEN / f"{name}.ckpt") as checkpoint:
        assert checkpoint.format == name.rpartition("_")[2]
        assert checkpoint.metadata == {"epoch": 3, "note": "tiny"}
        assert list(checkpoint) == list(expected)
        for key, tensor in checkpoint.items():
            value = tensor.read()
            assert value.flags.c_contiguous and value.shape == tensor.shape == expected[key].shape
            assert value.nbytes == tensor.nbytes
            if key == "bfloat16":  # numpy cannot store it: kept as float32
                assert value.dtype == ml_dtypes.bfloat16
                value = value.astype(np.float32)
            assert value.dtype == expected[key].dtype
            np.testing.assert_array_equal(value, expected[key])


def test_lightning_checkpoints():
    online, facts = GOLDEN / "lightning_psld_tiny.ckpt", json.loads((GOLDEN / "lightning_psld_tiny.json").read_text())
    with read_checkpoint(online) as checkpoint:
        assert len(checkpoint) == facts["checkpoint"]["n_state_dict"]
        assert list(checkpoint)[:6] == facts["checkpoint"]["state_dict_first"]
        assert checkpoint.metadata == {"epoch": 2, "global_step": 12, "pytorch-lightning_version": "1.9.0"}
    cpu, gpu = (read_checkpoint(GOLDEN / f"lightning_clf_tiny{tag}.ckpt") for tag in ("", "_cuda_tags"))
    with cpu, gpu:
        assert list(cpu) == list(gpu)
        for name in cpu:
            np.testing.assert_array_equal(cpu[name].read(), gpu[name].read())


BASE = np.arange(24, dtype=np.float32)
VIEWS = [
    ((24,), (1,), 0, BASE),
    ((4, 6), (6, 1), 0, BASE.reshape(4, 6)),
    ((6, 4), (1, 6), 0, BASE.reshape(4, 6).T),
    ((3, 2), (1, 6), 7, BASE.reshape(4, 6)[1:3, 1:4].T),
    ((), (), 23, BASE[23]),
    ((0, 5), (5, 1), 24, np.zeros((0, 5), np.float32)),
    ((2, 3), (0, 1), 4, np.stack([BASE[4:7]] * 2)),
]


@pytest.mark.parametrize("shape, strides, offset, expected", VIEWS)
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("location", ["cpu", "cuda:3"])
def test_views_of_a_shared_storage(tmp_path, shape, strides, offset, expected, form, location):
    kind = "torch.FloatStorage" if location == "cpu" else "torch.cuda.FloatStorage"
    stored = files.storage("0", 24, kind, location, *([files.NONE] if form == "legacy" else []))
    pickled = files.checkpoint({"a": files.tensor(stored, shape, strides, offset), "all": files.tensor(stored, (24,))})
    content = (
        files.zip_file(pickled, {"0": BASE.tobytes()}) if form == "zip" else files.legacy_file(pickled, {"0": BASE})
    )
    tensors, checkpoint = read(tmp_path, content)
    assert checkpoint.format == form and tensors["a"].shape == shape
    np.testing.assert_array_equal(tensors["a"], expected)
    np.testing.assert_array_equal(tensors["all"], BASE)


def test_bare_state_dict_with_module_versions(tmp_path):
    state = files.mapping({"a": files.tensor(files.storage("0", 24), (24,))}, ordered=True)
    versions = files.mapping({"_metadata": files.mapping({"": files.mapping({"version": files.integer(1)})})})
    tensors, checkpoint = read(
        tmp_path, files.zip_file(files.program(state + versions + b"b"), {"0": BASE.tobytes()}, root="stem")
    )
    np.testing.assert_array_equal(tensors["a"], BASE)
    assert checkpoint.metadata == {}


def test_everything_beside_the_state_dict_may_be_opaque(tmp_path):
    config = files.name("omegaconf.dictconfig.DictConfig") + b")\x81" + files.mapping({"_content": files.NONE}) + b"b"
    scalar = files.call("numpy.core.multiarray.scalar", files.call("numpy.dtype", files.text("f8")), b"C\x08abcdefgh")
    beside = {
        "hyper_parameters": config,
        "callbacks": b"}" + files.name("pytorch_lightning.callbacks.ModelCheckpoint") + scalar + b"s",
        "odd_keys": b"}" + files.sequence(files.integer(2**70), files.sequence()) + files.NONE + b"s",
        "float16": files.name("torch.float16"),
        "epoch": files.integer(7),
    }
    pickled = files.checkpoint({"a": files.tensor(files.storage("0", 24), (24,))}, **beside)
    tensors, checkpoint = read(tmp_path, files.zip_file(pickled, {"0": BASE.tobytes()}))
    np.testing.assert_array_equal(tensors["a"], BASE)
    assert checkpoint.metadata == {"epoch": 7}


def test_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    pickled = files.checkpoint({"a": files.tensor(files.storage("0", 24), (24,))})
    tensors, _ = read(tmp_path, files.zip_file(pickled, {"0": BASE.tobytes()}))
    np.testing.assert_array_equal(tensors["a"], BASE)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.ckpt")
