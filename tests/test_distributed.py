"""Several processes on this machine, and a state that is split over devices: the same numbers as one process has."""

import json
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import train_support as support

from psld_jax import metrics
from psld_jax._runtime import distributed
from psld_jax.sampling import files as sampling
from psld_jax.sampling.generate import prepare

EVALUATE = {
    "evaluate.samplers": ("auto", "ancestral"),
    "evaluate.nfe": (6,),
    "evaluate.seeds": (0, 1),
    "evaluate.num_samples": 100,
    "evaluate.num_kept": 70,
    "evaluate.num_reference": 500,
    "sampling.batch_size": 32,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def processes(cache, workdir, mode, overrides, config="default", count=2):
    """The same command ``count`` times; each is one of that many processes with one device."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "psld_jax.main", f"--config=configs/{config}.py", f"--mode={mode}"]
    command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in overrides.items())]
    command += [f"--coordinator={coordinator}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [*command, f"--process_id={index}"],
            cwd=support.ROOT,
            env=support.environment(cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def finish(started):
    """What they print; all of them must end well."""
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), printed
    return printed


@pytest.mark.slow
def test_two_processes_train_as_one_and_end_and_go_on_together(tmp_path, cache):
    """Ten steps in two processes, one of which is killed on the way, and ten in one."""
    options = {"train.steps": 10, "train.checkpoint_every": 2, "train.eval_every": 5, "train.split_state": True}
    both = processes(cache, tmp_path / "two", "train", support.TINY | options | {"train.steps": 100_000})
    assert support.wait(both[0], lambda: 4 in support.steps(tmp_path / "two"))
    both[1].kill()
    printed = both[0].communicate(timeout=60)[0]
    if both[0].returncode == -signal.SIGABRT:  # it waited in Orbax, for JAX's own service, which ends it itself
        assert "JAX distributed service detected fatal errors" in printed
    else:
        assert both[0].returncode == 1
        assert "One of the 2 processes has ended" in printed
    assert "Traceback" not in printed
    last = support.steps(tmp_path / "two")[-1]
    options["train.steps"] = last + 4
    printed = finish(processes(cache, tmp_path / "two", "train", support.TINY | options))
    assert f"2 cpu device(s) of 2 processes, state split over them; starting at step {last}" in printed[0]
    assert "step" not in printed[1]  # the first speaks for both
    with support.fast_compilation(cache):
        support.train(tmp_path / "one", options | {"train.split_state": False})
    one, two = (support.losses(tmp_path / name) for name in ("one", "two"))
    assert list(two) == list(range(1, last + 5))
    # Two devices add up a gradient in another order.
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    held_out = [
        [row["held_out_loss"] for row in support.rows(tmp_path / name) if "held_out_loss" in row]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*held_out, rtol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path, cache):
    both = processes(cache, tmp_path, "train", support.TINY | {"train.steps": 100_000})
    assert support.wait(both[0], lambda: len(support.losses(tmp_path)) > 5)
    both[1].terminate()
    printed = finish(both)
    (saved,) = support.steps(tmp_path)
    assert f"SIGTERM: saved at step {saved}" in printed[0]
    assert max(support.losses(tmp_path)) == saved


@pytest.mark.slow
def test_two_processes_write_the_images_that_one_writes(tmp_path, cache, digits_model):
    options = {"sampling.save": "png", "sampling.num_samples": 64, "sampling.batch_size": 10, "sampler.nfe": 6}
    printed = finish(processes(cache, tmp_path, "sample", options, "digits"))
    assert "64 images in" in printed[0] and "64 of them new" in printed[0]
    with jax.enable_x64(False):
        sampling.write_samples(prepare(digits_model, nfe=6), tmp_path / "one", 64, batch_size=10)
    names = {path.name for path in (tmp_path / "one").iterdir()} - {"about.json"}
    assert len(names) == 64
    for name in names:
        assert (tmp_path / "images" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path, cache, digits_model):
    """Distances and other measures of a hundred samples, drawn in two shares."""
    finish(processes(cache, tmp_path / "two", "evaluate", EVALUATE, "digits"))
    whole = processes(cache, tmp_path / "one", "evaluate", EVALUATE, "digits", count=1)
    finish(whole)
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text())["rows"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert {a.pop("seconds"), b.pop("seconds")} and a.keys() == b.keys()
        for name in ("distance", "kid", "precision", "recall", "nfe"):
            # Sums of float64 in another order.
            assert a[name] == pytest.approx(b[name], rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_a_split_state_learns_the_same_and_goes_on_whole(tmp_path, cache):
    """State split over two devices, down to arrays of 64 numbers; then the run goes on with one."""
    program = "from absl import app; from psld_jax import main; from psld_jax._runtime import distributed; "
    program += "distributed.SPLIT_FROM = 64; app.run(main.main, flags_parser=main._parse)"
    options = {"train.checkpoint_every": 2, "train.accumulate": 2}
    split = options | {"train.steps": 4, "train.split_state": True}
    process = support.start(tmp_path / "split", cache, split, devices=2, program=("-c", program))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "2 cpu device(s), state split over them" in printed
    with support.fast_compilation(cache):
        support.train(tmp_path / "split", options | {"train.steps": 6})
        support.train(tmp_path / "whole", options | {"train.steps": 6})
    split, whole = support.losses(tmp_path / "split"), support.losses(tmp_path / "whole")
    # Two devices add up a gradient in another order.
    np.testing.assert_allclose(list(split.values()), list(whole.values()), rtol=1e-5)


def test_large_arrays_of_a_split_state_are_split():
    """On a mesh of one device all stays whole; where each array goes depends on its shape alone."""
    devices = distributed.Devices(split_state=True)
    devices.count = 4
    for shape, where in (
        ((3, 3, 512, 256), (None, None, "data")),
        ((3, 3, 256, 512), (None, None, None, "data")),
        ((510, 511), ()),
        ((128,), ()),
    ):
        assert devices.state_shardings(np.empty(shape, np.float32)).spec == jax.sharding.PartitionSpec(*where)
    assert distributed.Devices().state_shardings(np.empty((512, 512))).spec == jax.sharding.PartitionSpec()


def test_shares_make_up_the_whole(monkeypatch):
    for count, n, size in ((1, 10, 3), (3, 100, 7), (4, 5, 10), (2, 64, 10)):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        shares = []
        for index in range(count):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            shares.append(distributed.share(n, size))
        assert [i for share in shares for i in share] == list(range(n))
        assert all(share.start % size == 0 for share in shares if share)


def test_moments_are_joined_as_if_in_one(rng):
    parts = [rng.standard_normal((n, 5)) + n for n in (7, 30, 12)]
    whole, separate = metrics.Moments(20), [metrics.Moments(20) for _ in range(4)]
    for moments, part in zip(separate, parts, strict=False):
        moments.add(part)
        whole.add(part)
    joined = metrics.Moments.joined([moments.arrays() for moments in separate], 20)
    np.testing.assert_array_equal(joined.kept(), whole.kept())
    for name in ("mean", "cov"):
        # Rounding of float64, in another order.
        np.testing.assert_allclose(getattr(joined.gaussian(), name), getattr(whole.gaussian(), name), rtol=1e-12)
    separate[1].add(np.full((1, 5), np.nan))
    assert not metrics.Moments.joined([moments.arrays() for moments in separate]).finite


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (("host", 2, 0), "must be HOST:PORT"),
        (("host:1", None, None), "must say how many processes"),
        (("host:1", 2, 2), "process_id=2 must say"),
        (("auto", 2, 0), "leave them out"),
    ],
)
def test_bad_coordinators_are_named(told, message):
    with pytest.raises(ValueError, match=message):
        distributed.start(*told)


@pytest.mark.slow
def test_modes_of_one_process_are_refused_in_two(tmp_path, cache):
    for process in processes(cache, tmp_path / "none", "bench", {}, "digits"):
        printed = process.communicate(timeout=120)[0]
        assert process.returncode == 1
        assert "error: --mode bench runs in one process: --coordinator is for sample, train, evaluate" in printed
    assert not (tmp_path / "none").exists()
