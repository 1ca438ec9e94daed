"""What a scan of files takes, leaves out and says: every reader, and trees of files as people have them."""

import gzip
import io
import json
import pickle
import re
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from psld_jax.data import available, open_dataset
from psld_jax.data._scan import EXTENSIONS


def picture(value, form="png", size=(4, 4), **options):
    """A picture of one grey value: the value says which file was read."""
    content = io.BytesIO()
    Image.new("L", size, value).save(content, form, **options)
    return content.getvalue()


def write(path, files, packed):
    """A tree of files, as a directory or as a zip archive; names with a slash at the end are empty directories."""
    if packed:
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path.with_suffix(".zip")
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        if name.endswith("/"):
            (path / name).mkdir(parents=True, exist_ok=True)
        else:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def opened(path, split="train", name="folder", **options):
    """The data set, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = open_dataset(name, path, split, **options)
    return dataset, [str(warning.message) for warning in caught]


def values(dataset):
    return [(int(dataset[i]["image"][0, 0, 0]), int(dataset[i]["label"])) for i in range(len(dataset))]


TREE = {"cat/1.png": picture(10), "cat/2.png": picture(11), "dog/1.png": picture(20)}
SPLITS = {f"{split}/{name}": content for split in ("train", "test") for name, content in TREE.items()}
both = pytest.mark.parametrize("packed", [False, True], ids=["directory", "zip"])


@both
@pytest.mark.parametrize(
    "junk",
    [
        {"__MACOSX/cat/._1.png": b"x", "__MACOSX/1.png": picture(0)},
        {"aaa/": b""},
        {"cat/inner/": b"", "empty/deep/": b""},
        {".git/1.png": picture(0), "cat/.1.png": picture(0)},
        {"@eaDir/1.png": picture(0), "cat/@eaDir/SYNO.png": picture(0)},
        {"cat/Thumbs.db": b"x", "desktop.ini": b"x"},
        {"README": b"x", "labels.csv": b"x", "cat/1.txt": b"x"},
        {"meta/notes.json": b"{}"},
    ],
    ids=lambda junk: next(iter(junk)),
)
def test_what_is_no_class_shifts_no_label_and_is_told(tmp_path, packed, junk):
    dataset, warned = opened(write(tmp_path / "set", {**junk, **TREE}, packed), labels=True)
    assert dataset.class_names == ("cat", "dog")
    assert values(dataset) == [(10, 0), (11, 0), (20, 1)]
    assert dataset.describe().endswith("3 images 4 x 4 x 1, 2 classes; classes cat (2), dog (1)")
    told = next(iter(junk)).split("/")[0]
    assert dataset.left_out and len(warned) == 1 and dataset.left_out in warned[0]
    if told not in ("README", "cat"):
        assert told in dataset.left_out or "no images" in dataset.left_out or ".json" in dataset.left_out


@both
def test_a_clean_tree_warns_of_nothing(tmp_path, packed):
    for split in ("train", "test"):
        dataset, warned = opened(write(tmp_path / "set", SPLITS, packed), split, labels=True)
        assert not warned and dataset.left_out == ""


@both
def test_what_this_package_writes_beside_images_is_no_news(tmp_path, packed):
    assert opened(write(tmp_path / "set", {"about.json": b"{}", "0.png": picture(1)}, packed))[1] == []


@both
def test_splits_inside_of_classes_are_told(tmp_path, packed):
    files = {f"{name}/{split}/1.png": picture(1) for name in ("cat", "dog") for split in ("train", "test")}
    dataset, warned = opened(write(tmp_path / "set", {**files, "fox/train/1.png": picture(2)}, packed), labels=True)
    assert len(dataset) == 5 and len(warned) == 1
    assert "the splits cat/test/, cat/train/, dog/test/, dog/train/, whose images are read as one set" in warned[0]


@both
def test_it_is_told_once_with_counts(tmp_path, packed):
    files = {**SPLITS, "train/a.txt": b"", "train/cat/b.TXT": b"", "extra/1.png": picture(1), "stray.png": picture(2)}
    path = write(tmp_path / "set", files, packed)
    train, warned = opened(path, labels=True)
    assert train.left_out == "2 .txt; 1 image in no subdirectory; 1 image in extra/"
    assert len(warned) == 1 and "splits train/ (3), test/ (3)" in warned[0]
    assert opened(path, labels=True)[1] == []


@both
@pytest.mark.parametrize(
    "train", ["train", "Train", "TRAIN", "training", "Training", "train2017", "train_set", "images_train"]
)
@pytest.mark.parametrize(
    "test", ["Test", "testing", "val", "Val", "valid", "Validation", "val2017", "test_images", "dev", "images-eval"]
)
def test_splits_in_any_spelling(tmp_path, packed, train, test):
    files = {f"{train}/cat/1.png": picture(1), f"{test}/cat/1.png": picture(2), f"{test}/dog/1.png": picture(3)}
    path = write(tmp_path / "set", files, packed)
    assert values(opened(path, labels=True)[0]) == [(1, 0)]
    dataset, warned = opened(path, "test", labels=True)
    assert values(dataset) == [(2, 0), (3, 1)] and dataset.class_names == ("cat", "dog") and not warned
    assert f"{train}/ (1), {test}/ (2)" in dataset.describe()


@both
def test_a_directory_around_everything_is_looked_through(tmp_path, packed):
    path = write(tmp_path / "set", {f"afhq/v2/{name}": content for name, content in SPLITS.items()}, packed)
    assert values(opened(path, "test", labels=True)[0]) == [(10, 0), (11, 0), (20, 1)]


@both
def test_two_directories_for_one_split_are_not_chosen_between(tmp_path, packed):
    files = {f"{name}/1.png": picture(1) for name in ("train2014", "train2017", "val")}
    with pytest.raises(ValueError, match="train2014 and train2017, each of which could be the train split"):
        open_dataset("folder", write(tmp_path / "two", files, packed))
    dataset, warned = opened(write(tmp_path / "set", {**SPLITS, "val/1.png": picture(3)}, packed), "test")
    assert len(dataset) == 3 and "1 image in val/" in warned[0]


@both
def test_splits_that_write_a_class_differently_are_refused(tmp_path, packed):
    files = {"train/Cat/1.png": picture(1), "test/cat/1.png": picture(2)}
    with pytest.raises(ValueError, match="write the class Cat and cat differently"):
        open_dataset("folder", write(tmp_path / "set", files, packed), labels=True)
    if not packed and (tmp_path / "set" / "TRAIN").exists():
        pytest.skip("this disk does not tell capitals apart")
    letters = {f"{split}/{name}/1.png": picture(1) for split in ("train", "test") for name in "aA"}
    path = write(tmp_path / "letters", letters, packed)
    assert open_dataset("folder", path, labels=True).class_names == ("A", "a")


@both
def test_every_ending_counts(tmp_path, packed):
    forms = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff"}
    files = {
        f"{k}{ending.upper() if k % 2 else ending}": picture(100, forms.get(ending[1:], ending[1:]))
        for k, ending in enumerate(sorted(EXTENSIONS))
    }
    dataset, warned = opened(write(tmp_path / "set", files, packed), channels=3, convert_channels=True)
    assert len(dataset) == len(EXTENSIONS) and not warned
    for i in range(len(dataset)):
        np.testing.assert_allclose(dataset[i]["image"], 100, atol=1)  # JPEG rounds


def test_pages_and_animations_are_refused_and_links_are_followed(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"a\.gif holds 2 images"):
        open_dataset("folder", tmp_path)
    path = write(tmp_path / "set", TREE, False)
    (path / "eel").symlink_to(write(tmp_path / "elsewhere", {"1.png": picture(30)}, False))
    (path / "dog" / "back").symlink_to(path)
    assert values(open_dataset("folder", path, labels=True)) == [(10, 0), (11, 0), (20, 1), (30, 2)]


def test_links_to_nothing_are_counted(tmp_path):
    """As a tool that keeps files elsewhere leaves them before it has fetched any."""
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "a.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"lost holds no images: .*; there is 1 link to nothing \(a\.png\)"):
        open_dataset("folder", lost)
    path = write(tmp_path / "set", TREE, False)
    (path / "cat" / "8.png").symlink_to("nowhere.png")
    (path / "cat" / ".9.png").symlink_to("nowhere.png")
    opened_set, warned = opened(path, labels=True)
    assert opened_set.left_out == "1 link to nothing (cat/8.png)" and len(warned) == 1


# EDM's data sets.

EDM = {"00000/img00000000.png": picture(10), "00000/img00000001.png": picture(11), "00001/img2.png": picture(12)}
LABELS = [["00000/img00000000.png", 6], ["00000/img00000001.png", 0], ["00001/img2.png", 2]]


@both
def test_dataset_json_has_the_labels(tmp_path, packed):
    path = write(tmp_path / "set", {**EDM, "dataset.json": json.dumps({"labels": LABELS}).encode()}, packed)
    dataset, warned = opened(path, labels=True)
    assert values(dataset) == [(10, 6), (11, 0), (12, 2)] and not warned
    assert dataset.class_names == tuple("0123456")
    again = pickle.loads(pickle.dumps(dataset))
    assert values(again) == values(dataset)
    assert values(opened(path)[0]) == [(10, -1), (11, -1), (12, -1)]
    batch = open_dataset("folder", path, labels=True, image_size=6, fit="pad", channels=3, convert_channels=True)
    assert batch.gather(np.arange(3))[0].shape == (3, 6, 6, 3)


@both
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": None}, "says that the images have no labels"),
        ({"labels": []}, "says that the images have no labels"),
        ({}, "must hold"),
        ([], "must hold"),
        ({"labels": 3}, "must hold"),
        ({"labels": [["a.png"]]}, "must hold"),
        (b"{", "must hold"),
        (b"\xff", "must hold"),
        (b"[" * 100_000, "must hold"),
        ({"labels": LABELS[:1]}, "has no label for 2 of the images"),
        ({"labels": [*LABELS[:2], [LABELS[2][0], 0.5]]}, "has the label 0.5"),
        ({"labels": [*LABELS[:2], [LABELS[2][0], -1]]}, "has the label -1"),
        ({"labels": [*LABELS[:2], [LABELS[2][0], True]]}, "has the label True"),
        ({"labels": [*LABELS[:2], [LABELS[2][0], 2**40]]}, "has the label"),
    ],
)
def test_a_dataset_json_that_makes_no_sense_is_named(tmp_path, packed, content, message):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = write(tmp_path / "set", {**EDM, "dataset.json": content}, packed)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*dataset.json.*{message}"):
        open_dataset("folder", path, labels=True)
    assert len(open_dataset("folder", path)) == 3  # without labels nobody asks


@both
def test_labels_of_both_splits_are_from_the_same_source(tmp_path, packed):
    """Else label 0 would be a class of the table in one split, and a directory in the other."""
    table = json.dumps({"labels": [["cat/1.png", 1], ["cat/2.png", 1], ["dog/1.png", 0]]}).encode()
    path = write(tmp_path / "set", {**SPLITS, "train/dataset.json": table}, packed)
    assert values(opened(path, labels=True)[0]) == [(10, 1), (11, 1), (20, 0)]
    with pytest.raises(ValueError, match="train/dataset.json has labels, and there is no test/dataset.json"):
        open_dataset("folder", path, "test", labels=True)
    assert len(open_dataset("folder", path, "test")) == 3


def test_names_in_an_archive_may_begin_with_a_dot_and_a_slash(tmp_path):
    path = write(tmp_path / "set", {f"./{name}": content for name, content in TREE.items()}, True)
    assert values(opened(path, labels=True)[0]) == [(10, 0), (11, 0), (20, 1)]


def test_archives_that_cannot_be_read_are_named(tmp_path, rng):
    path = write(tmp_path / "set", TREE, True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"set\.zip is no zip archive, or is cut off"):
        open_dataset("folder", path)
    path.write_bytes(content.replace(picture(10)[40:50], b"x" * 10, 1))
    with pytest.raises(ValueError, match=r"set\.zip/cat/1\.png is corrupt.*on_corrupt='skip'"):
        open_dataset("folder", path)
    skipping = open_dataset("folder", path, labels=True, on_corrupt="skip")
    assert values(skipping)[0] == (11, 0) and skipping.skipped == 1
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the name
        archive.writestr("1.png", picture(1))
        archive.writestr("1.png", picture(2))
    with pytest.raises(ValueError, match="holds 1 names twice"):
        open_dataset("folder", path)
    # Whatever becomes of it, a line or images come of it.
    for _ in range(200):
        broken = bytearray(content)
        for at in rng.integers(0, len(broken), 3):
            broken[at] = rng.integers(256)
        path.write_bytes(bytes(broken))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values(open_dataset("folder", path, labels=True))
        except ValueError as error:
            assert str(path) in str(error)


# Arrays.


def test_guided_diffusion_s_arrays_are_read(tmp_path, rng):
    images, labels = rng.integers(0, 256, (5, 4, 6, 3), np.uint8), np.array([3, 0, 1, 1, 2])
    np.savez(tmp_path / "samples.npz", images, labels)
    dataset, warned = opened(tmp_path / "samples.npz", name="arrays", labels=True)
    assert [label for _, label in values(dataset)] == labels.tolist() and not warned
    np.testing.assert_array_equal(dataset[4]["image"], images[4])
    np.savez(tmp_path / "only.npz", images)
    assert opened(tmp_path / "only.npz", name="arrays")[0][0]["label"] == -1
    with pytest.raises(ValueError, match=r"only\.npz has no array 'labels' \(or 'arr_1'\)"):
        open_dataset("arrays", tmp_path / "only.npz", labels=True)
    np.savez(tmp_path / "reference.npz", arr_0=images, mu=np.zeros(3), sigma=np.eye(3))
    dataset, warned = opened(tmp_path / "reference.npz", name="arrays")
    assert len(dataset) == 5 and dataset.left_out == "the arrays mu, sigma" and len(warned) == 1
    for wrong in (labels[:4], labels[:, None], labels / 2, labels - 1):
        np.savez(tmp_path / "wrong.npz", images, wrong)
        with pytest.raises(ValueError, match=r"wrong\.npz has labels"):
            open_dataset("arrays", tmp_path / "wrong.npz", labels=True)


def test_the_other_reader_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="'arrays' reads it"):
        open_dataset("folder", tmp_path / "a.npz")
    with pytest.raises(ValueError, match="'folder' reads directories and .zip"):
        open_dataset("arrays", write(tmp_path / "set", TREE, True))


# Every reader.


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(path):
    images, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8)
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return path, path / "train-images-idx3-ubyte.gz"


def write_cifar(path):
    rows = np.zeros((2, 3073), np.uint8)
    with tarfile.open(path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for k in range(1, 6):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{k}.bin")
            info.size = rows.size
            archive.addfile(info, io.BytesIO(rows.tobytes()))
    return path, path / "cifar-10-binary.tar.gz"


def write_arrays(path):
    np.savez(path / "a.npz", images=np.zeros((3, 4, 4, 1), np.uint8), labels=np.arange(3))
    return path / "a.npz", path / "a.npz"


def write_folder(path):
    return path, write(path, TREE, False) / "cat" / "1.png"


WRITERS = {
    "mnist": write_idx,
    "fashion_mnist": write_idx,
    "cifar10": write_cifar,
    "arrays": write_arrays,
    "folder": write_folder,
}


@pytest.mark.parametrize("name", [name for name in available() if name != "digits"])
def test_every_reader_says_what_is_wrong_with_a_file_in_its_own_words(tmp_path, name):
    assert name in WRITERS, f"write the files of {name!r} here"
    path, file = WRITERS[name](tmp_path)
    content = file.read_bytes()
    assert len(opened(path, name=name, labels=True)[0]) > 0
    objects = io.BytesIO()
    np.save(objects, np.array([{}, 1]), allow_pickle=True)
    for wrong in (b"", content[: len(content) // 2], content[:-20], b"\0" * 100, pickle.dumps([1]), objects.getvalue()):
        file.write_bytes(wrong)
        with pytest.raises(ValueError) as caught:
            values(opened(path, name=name, labels=True)[0])
        message = str(caught.value)
        assert str(tmp_path) in message and file.name.split(".")[0] in message, message
        assert not re.search(r"allow_pickle| at 0x|BytesIO|Traceback|\n", message), message
    file.write_bytes(content)
    for nowhere in (tmp_path / "nowhere", tmp_path / "nowhere.zip"):
        with pytest.raises(ValueError, match="nowhere"):
            open_dataset(name, nowhere)
