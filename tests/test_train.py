"""The training loop: what a run leaves, resuming bit for bit, and everything that can end it before its time."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import chex
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
import train_support as support
from flax import nnx
from PIL import Image
from rich.console import Console

import psld_jax as pj
from psld_jax import build, modes, scores
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.training import train as training
from psld_jax.training.step import create_state
from psld_jax.training.watch import Diverged

STEPS = 12
CLASSIFIER = {"model.name": "ncsnpp_clf", "model.data_std": 0.0, "model.n_classes": 10, "train.ema_decay": 0.0}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where this process and those that it starts keep compiled programs."""
    directory = tmp_path_factory.mktemp("compiled")
    with support.fast_compilation(directory):
        yield directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to the end, without a break, that others are compared with: its work directory, summary, and output."""
    workdir = tmp_path_factory.mktemp("finished")
    options = {
        "train.steps": STEPS,
        "train.checkpoint_every": 2,
        "train.keep_every": 6,
        "train.eval_every": 6,
        "train.eval_images": 20,
        "train.sample_every": 6,
        "train.num_samples": 4,
        "sampler.nfe": 5,
    }
    return workdir, *support.train(workdir, options, plot=True)


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run in a directory of its own, to go on from."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_a_run_leaves_checkpoints_metrics_pictures_and_a_summary(finished):
    workdir, summary, printed = finished
    assert {path.name for path in workdir.iterdir()} == {
        *("checkpoints", "metrics.jsonl", "tensorboard", "samples", "loss.png")
    }
    assert [path.name for path in sorted((workdir / "samples").iterdir())] == ["00000006.png", "00000012.png"]
    for picture in (*(workdir / "samples").iterdir(), workdir / "loss.png"):
        assert plt.imread(picture).std() > 0.05  # not empty

    rows = support.rows(workdir)
    trained, held_out = ([row for row in rows if name in row] for name in ("loss", "held_out_loss"))
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    assert [row["step"] for row in held_out] == [6, 12]
    for row in trained:
        assert row["lr"] == pytest.approx(1e-2) and row["grad_norm"] > 0 and row["images_per_second"] > 0
        assert sum(row["count_by_time"]) == 8
    assert all(sum(row["held_out_count"]) == 20 for row in held_out)

    tags = {(event.step, value.tag) for event in support.events(workdir) for value in event.summary.value}
    assert {(1, "loss"), (12, "grad_norm"), (12, "lr"), (12, "held_out_loss"), (6, "samples"), (12, "samples")} <= tags

    assert summary["steps"] == STEPS and summary["stopped"] is None and summary["skipped_images"] == 0
    assert 0 < summary["hours"] < 1 and summary["images_per_second"] > 0
    assert summary["loss"] == trained[-1]["loss"] and summary["held_out_loss"] == held_out[-1]["held_out_loss"]
    assert (
        "digits train: 36 images 8 x 8 x 1, 10 classes; 2,837 parameters; 1 cpu device(s); starting at step 0"
        in printed
    )


def test_the_loss_falls(finished):
    """Of the batches, by a third; of images that were not trained on, at the same times with the same noise."""
    losses = list(support.losses(finished[0]).values())
    assert 0.9 < losses[0] < 1.2  # the target has unit variance and the initial network gives zero
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    first, last = (row["held_out_loss"] for row in support.rows(finished[0]) if "held_out_loss" in row)
    assert last < 0.95 * first


@pytest.mark.slow
def test_old_checkpoints_go_but_for_the_last_two_and_every_sixth(finished):
    assert support.steps(finished[0]) == [6, 10, 12]


def test_a_run_can_be_opened_and_has_the_average_or_the_online_weights(key, finished):
    workdir = finished[0]
    stored = support.arrays(workdir)
    z = tuple(jax.random.normal(one, (3, 8, 8, 1), "float32") for one in jax.random.split(key))
    evaluate, results = jax.jit(lambda eps_fn, z: eps_fn(z, 0.5)), {}
    for weights, overrides in (("ema", {}), ("online", {"model.weights": "online"})):
        model = pj.load(workdir, overrides)
        graph, state = nnx.split(build.abstract_network(model.config))
        flat = [
            (path, leaf.replace(jax.numpy.asarray(stored[weights + "".join(f"[{key!r}]" for key in path)])))
            for path, leaf in nnx.to_flat_state(state)
        ]
        expected = evaluate(scores.network(nnx.merge(graph, nnx.from_flat_state(flat)), model.sde), z)
        results[weights] = evaluate(model.eps_fn, z)
        jax.tree.map(np.testing.assert_array_equal, results[weights], expected)
        assert model.image_shape == (8, 8, 1) and model.config.model.data_std == 0.8
    assert np.abs(results["ema"][0] - results["online"][0]).max() > 1e-3  # at 0.9, twelve steps are no long time
    with pytest.raises(ValueError, match="holds no 'both' weights; it has ema, online"):
        pj.load(workdir, {"model.weights": "both"})


@pytest.mark.slow
def test_a_run_can_be_sampled_in_python_and_by_the_configuration_for_saved_models(finished, tmp_path, caplog):
    options = {"model.checkpoint": str(finished[0]), "sampler.nfe": 5, "sampling.num_samples": 4}
    with jax.enable_x64(False):
        images = pj.generate(pj.load(str(finished[0])), nfe=5, n=4)
        saved = build.override(build.load_config("saved"), options)
        modes.run("sample", saved, tmp_path, Console(quiet=True))
    assert images.shape == (4, 8, 8, 1) and np.isfinite(images).all() and images.std() > 0.1
    report = json.loads((tmp_path / "report.json").read_text())["sample"]
    assert report["num_samples"] == 4 and report["model"]["name"] == "ncsnpp"
    assert plt.imread(tmp_path / "samples.png").std() > 0.05
    assert not caplog.records  # Orbax warns easily


@pytest.mark.slow
def test_a_classifier_trains_and_reports_its_accuracy(tmp_path):
    options = {"train.steps": 4, "train.eval_every": 4, "train.eval_images": 20, "train.sample_every": 2}
    summary, printed = support.train(tmp_path, CLASSIFIER | options)
    assert 0 <= summary["held_out_accuracy"] <= 1 and "held out accuracy" in printed
    rows = [row for row in support.rows(tmp_path) if "loss" in row]
    assert all((8 * row["accuracy"]).is_integer() for row in rows)  # of eight images
    assert 2 < rows[0]["loss"] < 3.5  # log(10) = 2.3 for one that knows nothing
    assert not (tmp_path / "samples").exists()
    classifier = pj.load(tmp_path)
    assert isinstance(classifier, build.Classifier) and classifier.config.model.n_classes == 10
    z = (np.zeros((2, 8, 8, 1), np.float32),) * 2
    assert jax.jit(lambda logits_fn, z: logits_fn(z, 0.1))(classifier.logits_fn, z).shape == (2, 10)
    with pytest.raises(ValueError, match="holds no 'ema' weights; it has online"):
        pj.load(tmp_path, {"model.weights": "ema"})


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    """With dropout and flips of the order of images in the middle of an epoch: all of it follows from the step."""
    recorded, record = [], training.Monitor.record

    def signalling(*arguments):
        recorded.append(record(*arguments))
        if len(recorded) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Monitor, "record", signalling)
    summary, printed = support.train(tmp_path, {"train.steps": STEPS})
    assert summary["stopped"] == "SIGTERM" and summary["steps"] == 5 and support.steps(tmp_path) == [5]
    assert "SIGTERM: saved at step 5; the same command goes on from there" in printed
    hours = summary["hours"]
    monkeypatch.undo()
    summary, printed = support.train(tmp_path, {"train.steps": STEPS})
    assert "starting at step 5" in printed and summary["steps"] == STEPS and summary["stopped"] is None
    assert summary["hours"] > hours
    support.assert_same_bits(support.arrays(tmp_path), support.arrays(finished[0]))
    assert support.losses(tmp_path) == support.losses(finished[0])


@pytest.mark.slow
def test_sigterm_to_a_command_saves_and_it_goes_on_to_the_same_bits(finished, tmp_path, cache):
    options = {"train.steps": STEPS, "train.checkpoint_every": 1}  # slow: the signal comes before the end
    process = support.start(tmp_path, cache, options)
    assert support.wait(process, lambda: len(support.rows(tmp_path)) >= 3), process.communicate()
    process.send_signal(signal.SIGTERM)
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 0 and not error
    report = json.loads((tmp_path / "report.json").read_text())["train"]
    stopped = report["steps"]
    assert report["stopped"] == "SIGTERM" and 3 <= stopped < STEPS
    assert f"SIGTERM: saved at step {stopped}; the same command goes on from there" in printed
    assert support.steps(tmp_path)[-1] == stopped

    summary, printed = support.train(tmp_path, {"train.steps": STEPS})
    assert f"starting at step {stopped}" in printed and summary["steps"] == STEPS and summary["stopped"] is None
    assert summary["hours"] > report["hours"]
    support.assert_same_bits(support.arrays(tmp_path), support.arrays(finished[0]))
    assert support.losses(tmp_path) == support.losses(finished[0])


@pytest.mark.slow
def test_kill_leaves_whole_checkpoints_and_the_run_goes_on_to_the_same_bits(rng, finished, tmp_path, cache):
    count = rng.integers(3, 7)
    process = support.start(tmp_path, cache, {"train.steps": STEPS, "train.checkpoint_every": 1})
    assert support.wait(process, lambda: len(support.rows(tmp_path)) >= count), process.communicate()
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for step in support.steps(tmp_path):
        support.arrays(tmp_path, step)
    support.train(tmp_path, {"train.steps": STEPS})
    support.assert_same_bits(support.arrays(tmp_path), support.arrays(finished[0]))
    assert support.losses(tmp_path) == support.losses(finished[0])
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_what_changed_is_said_and_a_finished_run_ends_at_once(copy):
    before = support.arrays(copy)
    options = {"train.lr": 1e-3, "train.grad_clip": 0.0, "train.optimizer": "adamw", "train.weight_decay": 0.1}
    summary, printed = support.train(copy, options | {"train.steps": STEPS, "data.num_points": 40})
    assert "changed since the checkpoint: config.train.lr was 0.01, is 0.001\n" in printed
    assert "changed since the checkpoint: config.train.optimizer was 'adam', is 'adamw'\n" in printed
    assert "the training set had 36 images, has 40" in printed
    assert "config.train.steps" not in printed and summary["steps"] == STEPS
    support.assert_same_bits(support.arrays(copy), before)


def test_another_model_or_loss_is_refused_by_name(copy):
    """Before anything of the old run is touched."""
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("[!.]*") if path.is_file()}
    refusals = {
        "model.nf was 4, is 8.*choose another workdir": {"model.nf": 8},
        "sde.gamma was 0.01, is 0.25; config.sde.nu was 4.01": {"sde.nu": 4.25, "sde.gamma": 0.25},
        "train.norm was 'l2', is 'l1'": {"train.norm": "l1"},
    }
    for message, options in refusals.items():
        with pytest.raises(ValueError, match=message):
            support.train(copy, {"train.steps": 20} | options)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("[!.]*") if path.is_file()} == times


def test_two_processes_do_not_train_in_one_directory(copy):
    with (
        checkpoint.TrainingCheckpoints(copy / "checkpoints", 2),
        pytest.raises(ValueError, match=f"another process trains in {copy}"),
    ):
        support.train(copy, {"train.steps": 20})


def test_an_average_that_was_not_kept_begins_with_the_weights(tmp_path):
    """A run that was begun with ``ema_decay=0`` may go on with one."""
    net, transformation = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), optax.sgd(0.1)
    state = create_state(net, transformation, ema=False)
    moved = state.online.updated(jax.tree.map(lambda leaf: leaf + 1, state.online.as_dict()))
    with checkpoint.TrainingCheckpoints(tmp_path / "checkpoints", 2) as checkpoints:
        checkpoints.save(3, training._items(dataclasses.replace(state, online=moved)), {})
        checkpoints.wait()
        with pytest.raises(ValueError, match="ema"):
            training._restore(checkpoints, 3, create_state(net, transformation, ema=True))
        found = training._restore(checkpoints, 3, create_state(net, transformation, ema=True), averaged=False)
    for weights in (found.online, found.ema):
        chex.assert_trees_all_equal(weights.as_dict(), moved.as_dict())
    assert found.ema.params["kernel"].get_value() is not found.online.params["kernel"].get_value()


def test_a_run_goes_on_without_the_network_that_it_began_with(copy, tmp_path):
    assert support.train(copy, {"train.steps": 12, "train.init": str(tmp_path / "gone")})[0]["steps"] == 12
    with pytest.raises(ValueError, match="gone"):
        support.train(tmp_path / "new", {"train.steps": 12, "train.init": str(tmp_path / "gone")})


def test_a_damaged_checkpoint_is_named(copy):
    manifest = copy / "checkpoints" / "12" / "ema" / "_METADATA"
    manifest.write_bytes(manifest.read_bytes()[:100])
    for opens in (pj.load, functools.partial(support.train, overrides={"train.steps": 20})):
        with pytest.raises(ValueError, match=f"{copy}/checkpoints/12 is damaged"):
            opens(copy)
    shutil.rmtree(manifest.parent)  # as if it had been trained without
    assert pj.load(copy).image_shape == (8, 8, 1)
    with pytest.raises(ValueError, match=f"{copy}/checkpoints/12 is damaged or does not fit the configuration.*ema"):
        support.train(copy, {"train.steps": 20})
    shutil.rmtree(copy / "checkpoints" / "12")
    assert support.steps(copy)[-1] == 10 and pj.load(copy).image_shape == (8, 8, 1)


@pytest.mark.slow
def test_losses_are_the_same_on_two_devices_and_a_run_goes_on_with_one(finished, tmp_path, cache):
    options = {"train.eval_every": 4, "train.eval_images": 20}
    process = support.start(tmp_path, cache, options | {"train.steps": 8}, devices=2)
    printed, error = process.communicate(timeout=300)
    assert process.returncode == 0 and not error and "2 cpu device(s)" in printed
    _, printed = support.train(tmp_path, options | {"train.steps": STEPS})
    assert "1 cpu device(s); starting at step 8" in printed
    # Sums over the batch in another order: float32 roundings, which twelve steps have no time to amplify.
    first, second = support.losses(finished[0]), support.losses(tmp_path)
    assert first.keys() == second.keys()
    np.testing.assert_allclose(list(second.values()), list(first.values()), rtol=1e-6)
    one, two = ([row for row in support.rows(path) if "held_out_loss" in row][-1] for path in (finished[0], tmp_path))
    np.testing.assert_allclose(two["held_out_loss"], one["held_out_loss"], rtol=1e-6)


@pytest.mark.slow
def test_a_run_that_diverges_ends_and_keeps_its_last_good_checkpoint(copy):
    before = support.arrays(copy)
    with pytest.raises(Diverged, match="^the loss .*$"):
        support.train(copy, {"train.steps": 30, "train.lr": 1e30, "train.checkpoint_every": 4})
    assert support.steps(copy)[-1] == STEPS
    support.assert_same_bits(support.arrays(copy), before)
    assert all(np.isfinite(array).all() for array in before.values())
    assert pj.load(copy).image_shape == (8, 8, 1)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_the_checkpoint_before_goes_on(copy, tmp_path):
    """Every file of more than 12 kB fails as on a full disk; Orbax notices in a thread, TensorStore in another.

    No compiled program is kept from before, so that JAX meets the full disk as well.
    """
    before = support.arrays(copy)
    options = {"train.steps": 20, "train.checkpoint_every": 2, "train.log_every": 2}
    process = support.start(copy, tmp_path / "compiled", options, file_size=12_000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.startswith(f"error: the checkpoint {copy}/checkpoints/14 cannot be written: ")
    assert "File too large" in error and error.count("\n") == 1
    assert support.steps(copy)[-1] == STEPS
    support.assert_same_bits(support.arrays(copy), before)
    _, printed = support.train(copy, {"train.steps": 14})
    assert "starting at step 12" in printed and support.steps(copy) == [12, 14]
    assert not list((copy / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.name": "mixture"},
            r"config.model.name='mixture' cannot be trained; .*'ncsnpp', 'ncsnpp_clf', 'edm', 'unet2d'",
        ),
        ({"train.steps": 0}, "config.train.steps=0 must be an integer >= 1"),
        ({"train.batch_size": 10, "train.accumulate": 4}, r"batch_size=10 .* 1 device\(s\) times .*accumulate=4"),
        ({"train.batch_size": 37}, "batch_size=37 is more than there are images .*choose a smaller one"),
        ({"train.sample_every": 5, "sampler.name": "reduced_obaa"}, "Did you mean 'reduced_oba'"),
        ({"train.sample_every": 5, "sampler.nfe": 1}, "nfe=1 is too small"),
        ({"train.optimizer": "adan"}, "unknown optimizer 'adan' .*Did you mean 'adam'"),
        ({"train.schedule": "cosin"}, "unknown learning rate schedule 'cosin' .*Did you mean 'cosine'"),
        (
            {"train.schedule": "cosine", "train.steps": 5, "train.warmup": 5},
            "warmup=5 must be less than config.train.steps=5",
        ),
        ({"train.objective": "ssm"}, "unknown training objective 'ssm'.*dsm, hsm"),
        ({"train.objective": "dsm"}, "objective='dsm' must be 'hsm', or data_std 0"),
        ({"train.time_sampling": "even"}, "unknown time sampling 'even'.*stratified, uniform"),
        ({"train.t_min": 0.0}, r"config.train.t_min=0.0 must lie in \[1e-6, 1\)"),
        ({"train.t_min": 1.0}, r"config.train.t_min=1.0 must lie in \[1e-6, 1\)"),
        ({"train.ema_decay": 1.0}, r"config.train.ema_decay=1.0 must lie in \[0, 1\)"),
        ({"train.lr": 0.0}, "learning rate 0.0 must be a finite number > 0"),
        ({"train.grad_clip": -1.0}, "config.train.grad_clip=-1.0 must be >= 0"),
        ({"train.divergence": 1.0}, "config.train.divergence=1.0 must be > 1"),
        ({"train.log_every": 0}, "config.train.log_every=0 must be an integer >= 1"),
        ({"train.keep_last": 0}, "config.train.keep_last=0 must be an integer >= 1"),
        ({"train.eval_every": 5, "data.holdout": 0.0}, "no test split: set holdout, e.g. 0.1"),
        ({"model.in_ch": 6, "model.out_ch": 3}, "1 channel.*convert_channels"),
        ({"model.out_ch": 2}, "out_ch=2 must be 1"),
        ({"model.nf": 2}, "nf=2 must be an integer >= 4"),
        ({"model.image_size": 16}, "8 x 8 pixels, not config.model.image_size=16; choose config.data.fit='pad'"),
        (CLASSIFIER | {"model.n_classes": 9}, "config.model.n_classes=9, but digits train.* has 10 classes"),
        ({"seed": -1}, "config.seed=-1 must be an integer from 0"),
    ],
)
def test_bad_configurations_are_named_before_anything_is_left(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        modes.run("train", support.config(overrides), tmp_path / "new" / "run", Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_bad_data_are_named_before_anything_is_left(tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    options = {"data.name": "folder", "data.path": str(data), "data.num_points": 0}

    def refused(message, **more):
        with pytest.raises(ValueError, match=message):
            modes.run("train", support.config(options | more), workdir, Console(quiet=True))
        assert not workdir.exists()

    refused(f"{data} holds no images: no file in it ends in ")
    for number in range(20):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(data / f"{number}.png")
    refused("0.png is in no subdirectory, which would name its class", **CLASSIFIER)
    refused("config.model.in_ch=3 must be divisible by the 2 blocks of psld", **{"model.in_ch": 3})
    options |= {"data.path": str(tmp_path / "none")}
    refused("none is no directory")
    np.save(tmp_path / "images.npy", np.zeros((20, 8, 8), np.uint8))
    options |= {"data.name": "arrays", "data.path": str(tmp_path / "images.npy")}
    refused("images.npy has no array 'labels'", **CLASSIFIER)


def test_an_error_takes_away_no_directory_that_was_there(tmp_path):
    with pytest.raises(ValueError, match="steps=0"):
        modes.run("train", support.config({"train.steps": 0}), tmp_path, Console(quiet=True))
    assert tmp_path.is_dir()
