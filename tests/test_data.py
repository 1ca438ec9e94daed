"""Sets of images: every format, every way to fit them, and the message for everything that can be wrong."""

import gzip
import pickle
import re
import struct

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from seeds import generator

from psld_jax import assets
from psld_jax.data import available, open_dataset
from psld_jax.data.dataset import _split
from psld_jax.data.fitting import Fitting
from psld_jax.data.source import Source

IMAGES = generator("data").integers(0, 256, (7, 28, 28), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, images=IMAGES, labels=LABELS, suffix=".gz", prefix="train"):
    folder.mkdir(exist_ok=True)
    for name, content in ((f"{prefix}-images-idx3-ubyte", idx(images)), (f"{prefix}-labels-idx1-ubyte", idx(labels))):
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def write_image(path, size=(8, 6), mode="RGB", seed=0, **options):
    """A random image of ``size`` (width, height); returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(mode) if mode in ("L", "LA", "RGB", "RGBA") else 1
    pixels = generator(f"image {seed}").integers(0, 256, (size[1], size[0], channels), np.uint8)
    Image.fromarray(pixels if channels > 1 else pixels[..., 0], mode if channels > 1 else "L").save(path, **options)
    return pixels


def images_of(dataset):
    return np.stack([dataset[i]["image"] for i in range(len(dataset))])


def refused(*arguments, **options):
    """The message with which a set is refused."""
    with pytest.raises(ValueError) as caught:
        open_dataset(*arguments, **options)
    return str(caught.value)


# The interface.


def test_a_dataset_is_a_source_for_grain_and_can_be_pickled(tmp_path):
    dataset = open_dataset("mnist", write_mnist(tmp_path))
    for same in (dataset, grain.MapDataset.source(dataset), pickle.loads(pickle.dumps(dataset))):
        assert len(same) == 7
        item = same[2]
        assert item["image"].dtype == np.uint8 and item["label"].dtype == np.int32 and item["label"] == 4
        np.testing.assert_array_equal(item["image"], IMAGES[2, ..., None])
    assert dataset.image_shape == (28, 28, 1) and dataset.skipped == 0
    assert dataset.describe() == "mnist train: 7 images 28 x 28 x 1, 10 classes"
    np.testing.assert_array_equal(dataset[-1]["image"], dataset[6]["image"])
    with pytest.raises(IndexError, match="image 7 of 7"):
        dataset[7]


def test_names_and_options_are_checked_before_any_file_is_looked_at(tmp_path):
    assert "Did you mean 'mnist'" in refused("mnits", tmp_path)
    for name in available():
        assert name in refused("?", tmp_path)
    nowhere = tmp_path / "nowhere"
    assert "unknown split 'val'. Allowed: test, train" in refused("mnist", nowhere, "val")
    assert "unknown fit 'zoom'. Allowed: crop, exact, pad, stretch" in refused("mnist", nowhere, fit="zoom")
    assert "unknown on_corrupt 'ignore'. Allowed: error, skip" in refused("mnist", nowhere, on_corrupt="ignore")
    for option in ("image_size", "center_crop", "num_points"):
        for value in (-1, 2.5, "32", True):
            assert f"{option}={value!r} must be a whole number" in refused("mnist", nowhere, **{option: value})
    for value in (2, [1], np.array([1, 3]), "1"):
        assert f"channels={value!r} must be 1, 3, or 0" in refused("mnist", nowhere, channels=value)
    for value in (1, -0.1, float("nan"), "0.1", True):
        assert f"holdout={value!r} must be a fraction" in refused("mnist", nowhere, holdout=value)
    for value in (["here"], 3, b"here"):  # a long one is shortened in the message
        assert f"path={value!r} must be the directory or file" in refused("mnist", value)
    assert "fit='pad' needs image_size" in refused("mnist", nowhere, fit="pad")
    assert "'mnist' needs the path" in refused("mnist")
    assert "take no path, not 'here'" in refused("digits", "here")


# Digits, and splits.


def test_digits_are_the_embedded_ones():
    dataset = open_dataset("digits")
    images, labels = assets.digits()
    np.testing.assert_array_equal(images_of(dataset), images)
    assert [dataset[i]["label"] for i in range(20)] == labels[:20].tolist()
    assert dataset.describe() == "digits train: 1,797 images 8 x 8 x 1, 10 classes"
    assert dataset.class_names == tuple("0123456789") and dataset[0]["image"].dtype == np.float32


def test_float_images_are_padded_with_black_and_resized_within_their_range():
    padded = open_dataset("digits", image_size=12, fit="pad")[5]["image"]
    np.testing.assert_array_equal(padded[2:10, 2:10], open_dataset("digits")[5]["image"])
    assert padded[:2].max() == padded[:, 10:].max() == -1
    resized = images_of(open_dataset("digits", image_size=16, fit="stretch", num_points=50))
    assert resized.min() == -1 and resized.max() == 1 and resized.dtype == np.float32


@given(st.floats(0, 0.999), st.integers(1, 300))
def test_a_held_out_part_and_the_rest_make_up_the_whole_in_order(holdout, count):
    source = Source(np.zeros((count, 1, 1, 1), np.uint8), None, None, False, "here")
    parts = {}
    for split, size in (("train", count - round(holdout * count)), ("test", round(holdout * count))):
        if size:
            parts[split] = _split(source, split, holdout) if holdout or split == "train" else []
            assert len(parts[split]) == size and np.all(np.diff(parts[split]) > 0)
        else:
            with pytest.raises(ValueError, match="has no test split|leaves none"):
                _split(source, split, holdout)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(count))


def test_numbers_of_numpy_are_numbers():
    options = {"image_size": 4, "fit": "stretch", "channels": 1, "num_points": 5, "center_crop": 4}
    of_numpy = {name: np.int32(value) if name != "fit" else value for name, value in options.items()}
    expected = images_of(open_dataset("digits", holdout=0.25, **options))
    for fraction in (np.float32(0.25), np.float64(0.25)):
        np.testing.assert_array_equal(images_of(open_dataset("digits", holdout=fraction, **of_numpy)), expected)


def test_the_held_out_images_are_always_the_same_and_anywhere():
    held_out = open_dataset("digits", split="test", holdout=0.1)
    assert len(held_out) == 180 and len(open_dataset("digits", holdout=0.1)) == 1617
    assert len(set(held_out._numbers[:90] // 100)) > 3
    assert held_out._numbers[:4].tolist() == [13, 15, 33, 39]  # never to change: models were trained on the others


def test_splits_that_cannot_be_had_say_how_to_get_one(tmp_path):
    assert "the embedded digits has no test split: set holdout" in refused("digits", split="test")
    assert "leaves none for 'test'" in refused("digits", split="test", holdout=1e-6)
    assert "holdout=0.5" in refused("mnist", write_mnist(tmp_path), holdout=0.5)


def test_num_points_takes_the_first(tmp_path):
    np.testing.assert_array_equal(
        images_of(open_dataset("mnist", write_mnist(tmp_path), num_points=3)), IMAGES[:3, ..., None]
    )
    assert "num_points=8 is more than the 7 train images" in refused("mnist", tmp_path, num_points=8)


# MNIST.


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path, suffix):
    write_mnist(tmp_path, suffix=suffix)
    write_mnist(tmp_path, IMAGES[:2], LABELS[:2], suffix, "t10k")
    train, test = (open_dataset("mnist", tmp_path, split) for split in ("train", "test"))
    np.testing.assert_array_equal(images_of(train), IMAGES[..., None])
    np.testing.assert_array_equal(images_of(test), IMAGES[:2, ..., None])
    assert [train[i]["label"] for i in range(7)] == LABELS.tolist()
    assert open_dataset("fashion_mnist", tmp_path).class_names[9] == "Ankle boot"


def test_padding_puts_the_image_in_the_middle(tmp_path):
    dataset = open_dataset("mnist", write_mnist(tmp_path), image_size=32, fit="pad")
    np.testing.assert_array_equal(images_of(dataset), np.pad(IMAGES, ((0, 0), (2, 2), (2, 2)))[..., None])


def test_missing_idx_files_are_named(tmp_path):
    message = refused("mnist", tmp_path / "nowhere")
    assert "nowhere/train-images-idx3-ubyte (or .gz) is missing" in message and "the four IDX files of MNIST" in message
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert "train-labels-idx1-ubyte (or .gz) is missing" in refused("fashion_mnist", tmp_path)


@given(cut=st.integers(1, 300), packed=st.booleans())
def test_idx_files_cut_off_anywhere(tmp_path_factory, cut, packed):
    folder = tmp_path_factory.getbasetemp() / "cut"
    write_mnist(folder, suffix=".gz" if packed else "")
    file = folder / f"train-labels-idx1-ubyte{'.gz' * packed}"
    content = file.read_bytes()
    file.write_bytes(content[: -(cut % len(content)) or None][: len(content) - 1])
    message = refused("mnist", folder)
    file.unlink()
    assert message.startswith(str(file)) and "is cut off" in message


def test_idx_files_with_a_wrong_header_or_length(tmp_path):
    write_mnist(tmp_path, suffix="")
    file = tmp_path / "train-images-idx3-ubyte"
    content = file.read_bytes()
    for changed, expected in (
        (content + b"x", "is too long: more than the 5,488"),
        (content[:-1], "is cut off: 5,487 bytes of data, fewer than the 5,488"),
        (b"\x89PNG" + content[4:], "is no IDX file of bytes with 3 axes: it starts with 0x89504e47"),
        (idx(IMAGES[0]), "is no IDX file of bytes with 3 axes: it starts with 0x00000802"),
        (idx(IMAGES[:, :27]), "has the shape (7, 27, 28); that of MNIST is ('n', 28, 28)"),
        (idx(IMAGES[:0]), "has the shape (0, 28, 28)"),
        (content[:4] + b"\xff\xff\xff\xff" + content[8:], "has the shape (4294967295, 28, 28)"),
        (idx(IMAGES[:5]), "has 5 images, but"),
    ):
        file.write_bytes(changed)
        message = refused("mnist", tmp_path)
        assert message.startswith(str(file)) and expected in message
    write_mnist(tmp_path, labels=LABELS + 1, suffix="")
    assert "train-labels-idx1-ubyte has labels from 2 to 10; 0 to 9 are allowed" in refused("mnist", tmp_path)
    file.with_name("train-images-idx3-ubyte").unlink()
    file.with_name("train-images-idx3-ubyte.gz").write_bytes(b"no gzip at all")
    assert "is cut off or damaged" in refused("mnist", tmp_path)


# Arrays.


def test_numpy_files(rng, tmp_path):
    images = rng.integers(0, 256, (5, 4, 6, 3), np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 2, 1, 0, 2]), other=np.zeros(3))
    np.savez_compressed(tmp_path / "only.npz", x=images[..., 0])
    plain = open_dataset("arrays", tmp_path / "a.npy")
    np.testing.assert_array_equal(images_of(plain), images)
    assert isinstance(plain._source.images, np.memmap)  # larger sets than the memory holds
    assert plain.class_names is None and plain[0]["label"] == -1 and plain[0]["label"].dtype == np.int32
    assert plain.describe() == "arrays train: 5 images 4 x 6 x 3, no labels"
    labelled = open_dataset("arrays", tmp_path / "a.npz", labels=True)
    assert labelled.class_names == ("0", "1", "2") and labelled[4]["label"] == 2
    assert open_dataset("arrays", tmp_path / "only.npz").image_shape == (4, 6, 1)
    assert "has no array 'labels'" in refused("arrays", tmp_path / "only.npz", labels=True)
    assert len(open_dataset("arrays", tmp_path / "a.npy", "test", holdout=0.4)) == 2


def test_float_arrays_must_be_in_range(rng, tmp_path):
    images = rng.uniform(-1, 1, (1500, 2, 2, 1)).astype(np.float32)
    np.save(tmp_path / "a.npy", images)
    np.testing.assert_array_equal(images_of(open_dataset("arrays", tmp_path / "a.npy")), images)
    for value in (1.01, -2, np.nan, np.inf):
        images[1300, 1, 0] = value
        np.save(tmp_path / "a.npy", images)
        message = refused("arrays", tmp_path / "a.npy")
        assert "a.npy has values outside [-1, 1] (or NaN) among images 1024 to 1499" in message


def test_float_arrays_that_look_like_0_to_1_are_told_of(rng, tmp_path):
    images = rng.uniform(0, 1, (9, 4, 4, 1)).astype(np.float32)
    np.save(tmp_path / "a.npy", images)
    with pytest.warns(UserWarning, match=r"a.npy has values from .*normalise\(images, low=0, high=1\)"):
        open_dataset("arrays", tmp_path / "a.npy")


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_numpy_files_that_do_not_fit_are_refused(tmp_path):
    objects = np.array([Payload()], dtype=object)
    for name, arrays, expected in (
        ("float64.npy", np.zeros((2, 3, 3)), "holds float64 of shape (2, 3, 3); uint8, or float32"),
        ("flat.npy", np.zeros((2, 9), np.uint8), "of shape (2, 9)"),
        ("empty.npy", np.zeros((0, 3, 3), np.uint8), "of shape (0, 3, 3)"),
        ("channels_first.npy", np.zeros((2, 3, 8, 8), np.uint8), "with at most 4 channels"),
        ("objects.npy", objects, "cannot be read"),
        ("objects.npz", {"images": objects}, "cannot be read"),
        ("two.npz", {"a": objects, "b": objects}, "its arrays are a, b; one must be 'images'"),
        ("labels.npz", {"x": IMAGES, "labels": LABELS[:3]}, "labels uint8 of shape (3,); integers of shape (7,)"),
        ("floats.npz", {"x": IMAGES, "labels": LABELS * 1.0}, "labels float64"),
        ("negative.npz", {"x": IMAGES, "labels": -LABELS.astype(int)}, "labels from -9 to -1"),
    ):
        path = tmp_path / name
        if isinstance(arrays, dict):
            np.savez(path, allow_pickle=True, **arrays)
        else:
            np.save(path, arrays, allow_pickle=True)
        message = refused("arrays", path)
        assert str(path) in message and expected in message
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.npy").write_bytes(pickle.dumps(Payload()))
    for name in ("text.npz", "text.npy"):
        assert f"{name} cannot be read" in refused("arrays", tmp_path / name)
    assert "is no .npy or .npz file" in refused("arrays", tmp_path)


# Folders.


def test_folders_are_searched_and_sorted_and_colours_kept(tmp_path):
    pixels = {
        name: write_image(tmp_path / name, seed=k)
        for k, name in enumerate(["b/2.png", "a/x/1.PNG", "c.bmp", "b/10.png"])
    }
    (tmp_path / "notes.txt").write_text("no image")
    write_image(tmp_path / ".hidden" / "d.png")
    write_image(tmp_path / "._e.png")
    dataset = open_dataset("folder", tmp_path)
    np.testing.assert_array_equal(
        images_of(dataset), [pixels[name] for name in ("a/x/1.PNG", "b/10.png", "b/2.png", "c.bmp")]
    )
    assert dataset.describe() == "folder train: 4 images 6 x 8 x 3, no labels"
    assert dataset[0]["label"] == -1


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "bmp", "webp"])
def test_every_format_is_decoded(tmp_path, extension):
    write_image(tmp_path / f"a.{extension}")
    with Image.open(tmp_path / f"a.{extension}") as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(open_dataset("folder", tmp_path)[0]["image"], expected)


def test_subdirectories_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/deep/2.png", "cat/1.png"):
        write_image(tmp_path / name)
    dataset = open_dataset("folder", tmp_path, labels=True)
    assert dataset.class_names == ("cat", "dog") and [dataset[i]["label"] for i in range(3)] == [0, 0, 1]
    write_image(tmp_path / "stray.png")
    assert f"{tmp_path / 'stray.png'} is in no subdirectory" in refused("folder", tmp_path, labels=True)


@pytest.mark.parametrize("name", ["test", "val"])
def test_subdirectories_may_be_splits_and_share_their_classes(tmp_path, name):
    write_image(tmp_path / "train" / "cat" / "1.png")
    write_image(tmp_path / "train" / "dog" / "2.png")
    write_image(tmp_path / name / "dog" / "3.png")
    train, test = (open_dataset("folder", tmp_path, split, labels=True) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    assert train.class_names == test.class_names == ("cat", "dog") and test[0]["label"] == 1
    assert "with a test split of its own: leave out holdout=0.5" in refused("folder", tmp_path, holdout=0.5)


def test_a_train_directory_alone_can_be_held_out_and_a_test_directory_alone_is_not_trained_on(tmp_path):
    for k in range(4):
        write_image(tmp_path / "a" / "train" / f"{k}.png")
    assert len(open_dataset("folder", tmp_path / "a", "test", holdout=0.25)) == 1
    assert "has no test split: set holdout" in refused("folder", tmp_path / "a", "test")
    write_image(tmp_path / "b" / "val" / "1.png")
    assert "no train/" in refused("folder", tmp_path / "b")
    assert len(open_dataset("folder", tmp_path / "b", "test")) == 1


def test_folders_without_images_are_refused(tmp_path):
    assert f"{tmp_path} holds no images: no file in it ends in .bmp, .jpeg" in refused("folder", tmp_path)
    assert "is no directory" in refused("folder", tmp_path / "nowhere")


def test_orientation_is_respected(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    pixels = write_image(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_dataset("folder", tmp_path)[0]["image"], np.rot90(pixels, -1))


def test_palettes_transparency_and_deep_greys_become_bytes(tmp_path):
    alpha = write_image(tmp_path / "rgba" / "a.png", mode="RGBA")
    np.testing.assert_array_equal(open_dataset("folder", tmp_path / "rgba")[0]["image"], alpha[..., :3])
    grey = write_image(tmp_path / "la" / "a.png", mode="LA")
    np.testing.assert_array_equal(open_dataset("folder", tmp_path / "la")[0]["image"], grey[..., :1])
    (tmp_path / "p").mkdir()
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p" / "a.png", transparency=b"\x00\xff")
    np.testing.assert_array_equal(open_dataset("folder", tmp_path / "p")[0]["image"], [[[255, 0, 0], [0, 0, 255]]])
    (tmp_path / "deep").mkdir()
    deep = np.array([[0, 128, 129, 32896, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep" / "a.png")
    np.testing.assert_array_equal(open_dataset("folder", tmp_path / "deep")[0]["image"][..., 0], [[0, 0, 1, 128, 255]])


def test_grey_among_colours_must_be_asked_for(tmp_path):
    colour, grey = write_image(tmp_path / "1.png"), write_image(tmp_path / "2.png", mode="L")
    dataset = open_dataset("folder", tmp_path)
    with pytest.raises(
        ValueError, match=r"2\.png: 1 channels, where channels=3 is expected; set convert_channels=True"
    ):
        dataset[1]
    assert "1.png: 3 channels, where channels=1" in refused("folder", tmp_path, channels=1)
    converted = images_of(open_dataset("folder", tmp_path, convert_channels=True))
    np.testing.assert_array_equal(converted, [colour, np.repeat(grey, 3, -1)])
    converted = images_of(open_dataset("folder", tmp_path, channels=1, convert_channels=True))
    expected = np.asarray(Image.fromarray(colour).convert("L"), int)
    assert np.abs(converted[0, ..., 0] - expected).max() <= 1
    np.testing.assert_array_equal(converted[1], grey)


def test_images_of_other_sizes_are_named(tmp_path):
    write_image(tmp_path / "1.png", (8, 8))
    write_image(tmp_path / "2.png", (8, 6))
    with pytest.raises(ValueError, match=r"2\.png: 6 x 8 pixels, but the first image has 8 x 8; set image_size"):
        open_dataset("folder", tmp_path)[1]
    with pytest.raises(ValueError, match=r"2\.png: 6 x 8 pixels, not image_size=8; choose fit='pad'"):
        open_dataset("folder", tmp_path, image_size=8)[1]
    with pytest.raises(ValueError, match=r"2\.png: 6 x 8 pixels are too few for center_crop=7"):
        open_dataset("folder", tmp_path, center_crop=7)[1]
    assert "1.png: 8 x 8 pixels do not fit into image_size=7" in refused("folder", tmp_path, image_size=7, fit="pad")


# Corrupt files.


def corrupt_folder(folder, bad, count=6):
    good = {k: write_image(folder / f"{k}.png", seed=k) for k in range(count)}
    for k in bad:
        content = (folder / f"{k}.png").read_bytes()
        (folder / f"{k}.png").write_bytes(content[: len(content) // 2] if k % 2 else b"hello")
    return good


def test_corrupt_files_are_named(tmp_path):
    corrupt_folder(tmp_path, [2, 3])
    dataset = open_dataset("folder", tmp_path)
    for k in (2, 3):
        with pytest.raises(ValueError, match=rf"{k}\.png is corrupt or none of BMP, .*on_corrupt='skip'"):
            dataset[k]
    dataset[4]


@given(st.sets(st.integers(0, 5), max_size=5), st.permutations(range(6)))
def test_the_next_readable_image_takes_the_place_of_a_corrupt_one(tmp_path_factory, bad, order):
    folder = tmp_path_factory.mktemp("corrupt")
    good = corrupt_folder(folder, bad)
    dataset = open_dataset("folder", folder, on_corrupt="skip")
    for k in order:
        expected = next(n % 6 for n in range(k, k + 6) if n % 6 not in bad)
        np.testing.assert_array_equal(dataset[k]["image"], good[expected])
    images_of(dataset)
    assert dataset.skipped == len(bad)


def test_a_file_found_corrupt_is_not_decoded_again(tmp_path):
    good = corrupt_folder(tmp_path, [2])
    dataset = open_dataset("folder", tmp_path, on_corrupt="skip")
    for _ in range(2):
        np.testing.assert_array_equal(dataset[2]["image"], good[3])
        write_image(tmp_path / "2.png", seed=2)  # in vain: all epochs are alike


def test_a_skipped_image_takes_its_label_along(tmp_path):
    for k, name in enumerate(("a/1.png", "b/2.png")):
        write_image(tmp_path / name, seed=k)
    (tmp_path / "a/1.png").write_bytes(b"")
    assert open_dataset("folder", tmp_path, labels=True, on_corrupt="skip")[0]["label"] == 1


def test_nothing_readable_is_an_error_and_so_is_a_lost_file(tmp_path):
    corrupt_folder(tmp_path, range(6))
    assert f"{tmp_path}: none of the 6 images can be read" in refused("folder", tmp_path, on_corrupt="skip")
    corrupt_folder(tmp_path, [])
    dataset = open_dataset("folder", tmp_path, on_corrupt="skip")
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png cannot be read: .*No such file"):
        dataset[3]


def test_only_the_formats_that_are_named_are_decoded(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").rename(tmp_path / "a.png")
    assert re.search(r"a\.png is corrupt or none of BMP, JPEG, PNG, WEBP", refused("folder", tmp_path))


# Fitting.


@given(
    st.sampled_from(["pad", "crop", "stretch"]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12),
    st.sampled_from([np.uint8, np.float32]), st.sampled_from([1, 3]),
)  # fmt: skip
def test_every_fit_gives_the_size_and_keeps_a_constant_image(fit, height, width, size, dtype, channels):
    image = np.full((2, height, width, channels), 77 if dtype == np.uint8 else 0.25, dtype)
    fitting = Fitting(size, fit)
    if fit == "pad" and max(height, width) > size:
        with pytest.raises(ValueError, match=f"here: {height} x {width} pixels do not fit into image_size={size}"):
            fitting(image, "here")
        return
    fitted = fitting(image, "here")
    assert fitted.shape == (2, size, size, channels) and fitted.dtype == dtype
    inside = fitted != (0 if dtype == np.uint8 else -1)
    assert inside.sum() == (image.size if fit == "pad" else fitted.size)
    np.testing.assert_allclose(fitted[inside], image.flat[0], atol=1e-6)
    np.testing.assert_array_equal(fitted[1], fitting(image[1], "here"))


def test_crops_are_central():
    image = np.arange(5 * 9, dtype=np.uint8).reshape(5, 9, 1)
    np.testing.assert_array_equal(Fitting(center_crop=3)(image, ""), image[1:4, 3:6])
    np.testing.assert_array_equal(Fitting(5, "crop")(image, ""), image[:, 2:7])
    celeba = np.zeros((218, 178, 3), np.uint8)
    celeba[39:179, 19:159] = 200
    assert (Fitting(64, "stretch", center_crop=140)(celeba, "") == 200).all()


def test_shrinking_averages_instead_of_picking_pixels():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    for fit in ("crop", "stretch"):
        small = Fitting(8, fit)(board, "").astype(int)
        assert np.abs(small - 127).max() <= 3


def test_conversions_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="here: there is no way from 4 channels to channels=1"):
        Fitting(channels=1, convert_channels=True)(np.zeros((2, 2, 4), np.uint8), "here")
    grey = Fitting(channels=1, convert_channels=True)(np.ones((2, 2, 3), np.float32), "here")
    np.testing.assert_allclose(grey, 1.0)
    assert grey.max() <= 1
