"""Samples to files: the same bytes however they are drawn, and whatever killed the run on its way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import psld_jax as pj
from psld_jax._runtime.levels import to_levels
from psld_jax.sampling import files as sampling
from psld_jax.sampling.generate import prepare

ROOT = Path(__file__).parent.parent


def contents(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir()) if file.name != "about.json"}


@pytest.fixture(scope="module")
def sampler(digits_model):
    return prepare(digits_model, "ancestral", nfe=4)


def test_images_do_not_depend_on_the_batch(sampler, digits_model, tmp_path):
    sampling.write_samples(sampler, tmp_path / "a", 30, batch_size=7)
    sampling.write_samples(sampler, tmp_path / "b", 30, batch_size=64)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == [f"{i:06}.png" for i in range(30)]
    images = to_levels(pj.generate(digits_model, "ancestral", nfe=4, n=30))
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a" / "000017.png")), images[17, ..., 0])


@pytest.mark.slow
def test_parts_of_a_thousand(sampler, tmp_path):
    sampling.write_samples(sampler, tmp_path / "npz", 1040, batch_size=300, form="npz", levels="round")
    sampling.write_samples(sampler, tmp_path / "again", 1040, batch_size=512, form="npz", levels="round")
    # Products of other shapes may round the other way: here and there one level.
    for name in ("000000.npz", "000001.npz"):
        a, b = (np.load(tmp_path / run / name)["images"].astype(int) for run in ("npz", "again"))
        assert np.abs(a - b).max() <= 1 and np.mean(a != b) < 1e-3
    first, second = (np.load(tmp_path / "npz" / f"00000{i}.npz")["images"] for i in range(2))
    assert (first.shape, second.shape, first.dtype) == ((1000, 8, 8, 1), (40, 8, 8, 1), np.uint8)


def test_what_is_missing_is_drawn_again(sampler, tmp_path):
    sampling.write_samples(sampler, tmp_path / "whole", 40, batch_size=8)
    directory = tmp_path / "part"
    sampling.write_samples(sampler, directory, 40, batch_size=8)
    for number in (3, 17, 39):
        (directory / f"{number:06}.png").unlink()
    (directory / ".000003.png.part").write_bytes(b"half")
    assert sampling.write_samples(sampler, directory, 40, batch_size=8) == 24
    assert sampling.write_samples(sampler, directory, 40, batch_size=8) == 0
    assert contents(directory) == contents(tmp_path / "whole")
    assert sampling.write_samples(sampler, directory, 48, batch_size=8) == 8  # more of the same


def test_levels():
    """Truncation and rounding differ by half a level; both end at 0 and 255."""
    x = np.array([-1.2, -1.0, 0.0, 0.999, 1.0, 1.5])
    np.testing.assert_array_equal(to_levels(x), [0, 0, 127, 254, 255, 255])
    np.testing.assert_array_equal(to_levels(x, "round"), [0, 0, 128, 255, 255, 255])


def test_bad_input(sampler, digits_model, tmp_path):
    for options, message in (
        ({"form": "jpg"}, "form of images"),
        ({"levels": "floor"}, "way to levels"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            sampling.write_samples(sampler, tmp_path / "none", 4, **options)
    assert not (tmp_path / "none").exists()
    sampling.write_samples(sampler, tmp_path / "one", 4)
    with pytest.raises(ValueError, match="holds images with seed=0"):
        sampling.write_samples(sampler, tmp_path / "one", 4, seed=1)
    with pytest.raises(ValueError, match=r"holds images with sampler\.table\.times="):
        sampling.write_samples(prepare(digits_model, "ancestral", nfe=5), tmp_path / "one", 4)


COMMAND = [
    *(sys.executable, "-m", "psld_jax.main", "--config", "configs/digits.py", "--mode", "sample"),
    *("--config.sampling.save=png", "--config.sampler.nfe=6", "--config.sampler.name=ancestral"),
]


def command(workdir, n, batch, devices=1, **options):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache")}
    arguments = [f"--config.sampling.num_samples={n}", f"--config.sampling.batch_size={batch}", f"--workdir={workdir}"]
    return subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, env=environment, **options)


@pytest.mark.slow
def test_two_devices_give_the_same_images(tmp_path):
    """Seven samples at a time do not divide by two: one more is drawn and left out."""
    for name, batch, devices in (("one", 64, 1), ("two", 7, 2)):
        assert command(tmp_path / name, 40, batch, devices, stdout=subprocess.DEVNULL).wait() == 0
    assert contents(tmp_path / "one" / "images") == contents(tmp_path / "two" / "images")


def killed_until_done(rng, tmp_path, n, kills):
    """Kill -9 at random times, then go on to the end: the files of an undisturbed run, byte for byte."""
    assert command(tmp_path / "whole", n, 50, stdout=subprocess.DEVNULL).wait() == 0
    images = tmp_path / "killed" / "images"
    for kill in range(kills):
        process = command(tmp_path / "killed", n, 50, stdout=subprocess.DEVNULL)
        goal = (kill + 1) * n // (kills + 1)
        while process.poll() is None and (not images.exists() or len(list(images.iterdir())) < goal):
            time.sleep(0.01)
        time.sleep(0.05 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert command(tmp_path / "killed", n, 50, stdout=subprocess.DEVNULL).wait() == 0
    assert contents(images) == contents(tmp_path / "whole" / "images")


@pytest.mark.slow
def test_a_killed_run_goes_on(rng, tmp_path):
    killed_until_done(rng, tmp_path, 200, 1)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times(rng, tmp_path):
    killed_until_done(rng, tmp_path, 2000, 20)
