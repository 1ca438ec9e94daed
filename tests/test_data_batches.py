"""Batches: their order depends on the seed and the step alone, wherever they are resumed and on how many hosts."""

import gc
import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psld_jax.data import Batches, open_dataset

COUNT = 23


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Images whose first pixel is their number, and whose last column tells whether they are mirrored."""
    images = np.zeros((COUNT, 4, 3, 1), np.uint8)
    images[:, 0] = np.arange(COUNT)[:, None, None]
    images[:, :, 2] += 100
    path = tmp_path_factory.mktemp("numbered") / "a.npz"
    np.savez(path, images=images, labels=np.arange(COUNT))
    return open_dataset("arrays", path)


def equal(a, b):
    assert a.keys() == b.keys() == {"image", "label"}
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def epoch(batches, number):
    steps = range(number * batches.steps_per_epoch, (number + 1) * batches.steps_per_epoch)
    return np.concatenate([batches[k]["label"] for k in steps])


def test_batches_are_scaled_and_belong_to_their_labels(dataset):
    batch = Batches(dataset, 5, 0)[1]
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (5, 4, 3, 1)
    assert batch["label"].dtype == np.int32 and batch["label"].shape == (5,)
    expected = np.stack([dataset[i]["image"] for i in batch["label"]])
    np.testing.assert_allclose(batch["image"], expected / 127.5 - 1, atol=1e-6)


def test_the_range_of_bytes_becomes_minus_one_to_one(tmp_path):
    np.save(tmp_path / "a.npy", np.array([0, 255], np.uint8).reshape(1, 1, 2, 1))
    assert Batches(open_dataset("arrays", tmp_path / "a.npy"), 1, 0)[0]["image"].ravel().tolist() == [-1, 1]


def test_floats_are_left_as_they_are():
    digits = open_dataset("digits")
    batch = Batches(digits, 4, 0, shuffle=False)[2]
    np.testing.assert_array_equal(batch["image"], np.stack([digits[i]["image"] for i in range(8, 12)]))


@given(st.integers(0, 2**32 - 1), st.integers(1, COUNT), st.integers(0, 1000))
@settings(max_examples=15)
def test_an_epoch_has_every_image_at_most_once_in_an_order_of_its_own(dataset, seed, batch_size, number):
    batches = Batches(dataset, batch_size, seed)
    assert batches.steps_per_epoch == COUNT // batch_size
    order = epoch(batches, number)
    assert len(set(order.tolist())) == len(order) == batches.steps_per_epoch * batch_size
    np.testing.assert_array_equal(order, epoch(Batches(dataset, batch_size, seed), number))
    if len(order) > 15:
        assert (order != epoch(batches, number + 1)).any()
        assert (order != epoch(Batches(dataset, batch_size, (seed + 1) % 2**32), number)).any()


def test_every_image_has_its_turn(dataset):
    counts = np.bincount(np.concatenate([epoch(Batches(dataset, 5, 0), k) for k in range(40)]), minlength=COUNT)
    # 20 of 23 in each epoch: 35 of 40 on average, with a standard deviation of 2.
    assert counts.min() > 24


def test_without_shuffling_the_order_is_kept_in_every_epoch(dataset):
    batches = Batches(dataset, 10, 0, shuffle=False)
    for k in range(4):
        assert batches[k]["label"].tolist() == list(range(k % 2 * 10, k % 2 * 10 + 10))


@given(st.integers(0, 60), st.booleans(), st.integers(0, 3))
@settings(max_examples=25)
def test_iterating_from_anywhere_gives_the_same_batches(dataset, start, flip, seed):
    batches = Batches(dataset, 4, seed, flip=flip)  # 5 steps make an epoch
    with_threads = list(itertools.islice(batches.iterate(start), 8))
    assert len(with_threads) == 8
    for k, batch in enumerate(with_threads, start):
        equal(batch, batches[k])


def test_two_iterators_do_not_disturb_each_other(dataset):
    batches = Batches(dataset, 4, 0, flip=True)
    for k, (a, b) in zip(range(7), zip(batches.iterate(), batches.iterate(3), strict=True), strict=False):
        equal(a, batches[k])
        equal(b, batches[k + 3])


def mirrored(batch):
    left, right = batch["image"][:, 1, 0, 0], batch["image"][:, 1, 2, 0]
    assert (left != right).all()
    return left > right


def test_flips_are_of_half_the_images_and_new_every_epoch(dataset):
    plain, flipped = (Batches(dataset, 20, 5, shuffle=False, flip=flip) for flip in (False, True))
    flips = []
    for k in range(200):
        batch = flipped[k]
        turned = mirrored(batch)
        flips.append(turned)
        batch["image"][turned] = batch["image"][turned][:, :, ::-1]
        equal(batch, plain[k])
        assert not mirrored(plain[k]).any()
    assert 0.46 < np.mean(flips) < 0.54  # 5 standard deviations of 4,000 fair draws
    assert len({turned.tobytes() for turned in flips}) > 190


@given(st.integers(0, 100), st.sampled_from([1, 2, 3, 4, 6, 12]), st.booleans(), st.booleans())
@settings(max_examples=30)
def test_the_parts_of_the_hosts_make_up_the_batch(dataset, k, count, flip, shuffle):
    options = {"flip": flip, "shuffle": shuffle}
    parts = [Batches(dataset, 12, 7, shard=(index, count), **options)[k] for index in range(count)]
    assert all(len(part["label"]) == 12 // count for part in parts)
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    equal(whole, Batches(dataset, 12, 7, **options)[k])


def test_arguments_out_of_range_are_named(dataset):
    for arguments, options, expected in (
        ((24, 0), {}, "batch_size=24 is more than there are images .arrays train: 23 images"),
        ((0, 0), {}, "batch_size=0 must be a whole number"),
        ((2.5, 0), {}, "batch_size=2.5 must be"),
        ((4, -1), {}, "seed=-1 must be"),
        ((4, 2**32), {}, "seed=4294967296 must be"),
        ((4, None), {}, "seed=None must be"),
        ((4, 0), {"shard": (2, 2)}, r"shard=\(2, 2\) must be \(index, count\) with 0 <= index < count"),
        ((4, 0), {"shard": (0, 0)}, r"shard=\(0, 0\) must be"),
        ((4, 0), {"shard": (0, 3)}, "batch_size=4 is not divisible by the 3 hosts"),
    ):
        with pytest.raises(ValueError, match=expected):
            Batches(dataset, *arguments, **options)
    for ask in (Batches(dataset, 4, 0).__getitem__, Batches(dataset, 4, 0).iterate):
        for step in (-1, 0.5, "1"):
            with pytest.raises(ValueError, match="numbered 0, 1, 2"):
                ask(step)


def readers():
    return {thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")}


@pytest.mark.parametrize("end", ["close", "drop"])
def test_threads_end_with_their_iterator(dataset, end):
    # These threads themselves, not their number: one of an earlier test may still be ending.
    before = readers()
    iterator = Batches(dataset, 4, 0).iterate()
    next(iterator)
    started = readers() - before
    assert started
    if end == "close":
        iterator.close()
    else:
        del iterator
        gc.collect()
    deadline = time.monotonic() + 20
    while started & readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not started & readers()


@pytest.mark.slow
def test_a_program_that_leaves_an_iterator_open_ends():
    program = (
        "from psld_jax.data import Batches, open_dataset\n"
        "iterator = Batches(open_dataset('digits'), 8, 0).iterate()\n"
        "print(next(iterator)['image'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "(8, 8, 8, 1)\n" and not done.stderr


def test_folders_give_batches_and_corrupt_files_stop_or_are_skipped(tmp_path):
    for k in range(8):
        Image.new("L", (4, 4), k).save(tmp_path / f"{k}.png")
    (tmp_path / "5.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"5\.png is corrupt"):
        list(itertools.islice(Batches(open_dataset("folder", tmp_path), 4, 0).iterate(), 2))
    dataset = open_dataset("folder", tmp_path, on_corrupt="skip")
    batches = Batches(dataset, 8, 0)
    for k, batch in zip(range(3), batches.iterate(), strict=False):
        equal(batch, batches[k])
        numbers = np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
        assert sorted(numbers) == [0, 1, 2, 3, 4, 6, 6, 7] and (batch["label"] == -1).all()
    assert dataset.skipped == 1
