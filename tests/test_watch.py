"""What a run writes about itself, and when it gives up."""

import io
import json
import resource

import numpy as np
import pytest
import train_support as support
from rich.console import Console

from psld_jax.training.watch import TIME_BINS, Diverged, Monitor, by_time, read_rows

T = np.array([0.1, 0.9])


def monitor(workdir, console=None, **options):
    defaults = {"start": 0, "steps": 10, "batch_size": 2, "divergence": 10.0}
    return Monitor(workdir, console or Console(quiet=True), **(defaults | options))


def metrics(losses, grad_norm=1.0, lr=0.1):
    return {"loss": np.asarray(losses), "grad_norm": np.asarray(grad_norm), "lr": np.asarray(lr)}


def test_by_time_has_the_mean_and_the_number_of_each_bin():
    means, counts = by_time(np.array([0.0, 0.049, 0.051, 0.5, 1.0]), np.array([1.0, 2.0, 5.0, 7.0, 9.0]))
    assert len(means) == len(counts) == TIME_BINS == 20 and sum(counts) == 5
    assert (means[0], means[1], means[10], means[19]) == (1.5, 5.0, 7.0, 9.0)  # t = 1 is in the last bin
    assert (counts[0], counts[1], counts[10], counts[19]) == (2, 1, 1, 1)
    assert all((mean is None) == (count == 0) for mean, count in zip(means, counts, strict=True))
    json.dumps([means, counts])


def test_rows_end_where_a_crash_cut_them_off(tmp_path):
    assert read_rows(tmp_path) == []
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    whole = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 3, "lo')
    assert read_rows(tmp_path) == rows
    with monitor(tmp_path, start=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == whole  # and the next row starts a line of its own


def test_flush_writes_means_over_the_interval_in_both_places(tmp_path):
    with monitor(tmp_path) as watch:
        watch.record(T, metrics([1.0, 2.0], grad_norm=1.0, lr=0.1) | {"accuracy": np.array([0.0, 1.0])})
        watch.record(T + 0.01, metrics([3.0, 6.0], grad_norm=3.0, lr=0.2) | {"accuracy": np.array([1.0, 1.0])})
        watch.flush(2)
        watch.flush(2)  # nothing since
        watch.record(T, metrics([1.0, 1.0]))
        watch.flush(3)
    row, last = support.rows(tmp_path)
    assert (row["step"], row["loss"], row["accuracy"], row["grad_norm"]) == (2, 3.0, 0.75, 2.0)
    assert row["lr"] == pytest.approx(0.2)  # the last one
    assert row["images_per_second"] > 0
    assert (row["loss_by_time"][2], row["loss_by_time"][18]) == (2.0, 4.0)
    assert (row["count_by_time"][2], row["count_by_time"][18], sum(row["count_by_time"])) == (2, 2, 4)
    assert (last["step"], last["loss"]) == (3, 1.0)
    values = {(e.step, v.tag): v.simple_value for e in support.events(tmp_path) for v in e.summary.value}
    assert values[2, "loss"] == 3.0 and values[2, "accuracy"] == 0.75 and values[3, "loss"] == 1.0


def test_held_out_means_and_pictures(tmp_path):
    with monitor(tmp_path) as watch:
        assert watch.held_out(4, T, {"loss": np.array([1.0, 2.0]), "accuracy": np.array([0.0, 1.0])}) == 1.5
        watch.picture(4, np.linspace(0, 1, 12).reshape(3, 4, 1))
    (row,) = support.rows(tmp_path)
    assert (row["step"], row["held_out_loss"], row["held_out_accuracy"]) == (4, 1.5, 0.5)
    assert (row["held_out_by_time"][2], row["held_out_by_time"][18], sum(row["held_out_count"])) == (1.0, 2.0, 2)
    pictures = [v.image for e in support.events(tmp_path) for v in e.summary.value if v.tag == "samples"]
    assert [(image.height, image.width) for image in pictures] == [(3, 4)]


def test_rows_after_the_checkpoint_are_dropped_and_hidden(tmp_path):
    with monitor(tmp_path) as watch:
        for step in range(1, 7):
            watch.record(T, metrics([1.0, float(step)]))
            watch.flush(step)
    with monitor(tmp_path, start=4) as watch:
        watch.record(T, metrics([2.0, 2.0]))
        watch.flush(5)
    assert [(row["step"], row["loss"]) for row in support.rows(tmp_path)] == [
        *((step, (1 + step) / 2) for step in range(1, 5)),
        (5, 2.0),
    ]
    restarts = [event.step for event in support.events(tmp_path) if event.HasField("session_log")]
    assert restarts[-1] == 5  # TensorBoard purges this step and later ones of the files before


@pytest.mark.parametrize("bad", [metrics([1.0, np.nan]), metrics([np.inf, 1.0]), metrics([1.0, 1.0], grad_norm=np.nan)])
def test_what_is_not_finite_is_divergence_and_is_not_written(tmp_path, bad):
    with monitor(tmp_path) as watch:
        watch.record(T, metrics([1.0, 1.0]))
        watch.record(T, bad)
        watch.record(T, metrics([1.0, 1.0]))
        with pytest.raises(Diverged, match="the loss or its gradient is not finite between steps 4 and 7"):
            watch.flush(7)
    assert support.rows(tmp_path) == []


def test_divergence_is_measured_from_the_first_interval_of_the_run(tmp_path):
    with monitor(tmp_path, divergence=3.0) as watch:
        for step, loss in enumerate((2.0, 0.1, 6.0), 1):  # 6 is three times what it began with, not more
            watch.record(T, metrics([loss, loss]))
            watch.flush(step)
        watch.record(T, metrics([6.1, 6.1]))
        with pytest.raises(Diverged, match="the loss is 6.1 at step 4, more than 3 times what it began with, 2"):
            watch.flush(4)
    with monitor(tmp_path, divergence=3.0, start=2) as watch:  # resumed: the beginning is still the beginning
        watch.record(T, metrics([6.1, 6.1]))
        with pytest.raises(Diverged, match="what it began with, 2$"):
            watch.flush(3)


def test_a_line_for_each_interval_where_there_is_no_terminal(tmp_path):
    printed = io.StringIO()
    with monitor(tmp_path, Console(file=printed), steps=1000) as watch:
        watch.record(T, metrics([1.0, 2.0]))
        watch.flush(1)
        watch.held_out(1, T, {"loss": np.array([1.0, 2.0])})
    first, second = printed.getvalue().splitlines()
    assert first.startswith("step 1 of 1000: loss 1.5000, ") and first.endswith(" left") and " images/s, " in first
    assert second == "step 1: held-out loss 1.5000"


def test_a_bar_on_a_terminal(tmp_path):
    printed = io.StringIO()
    with monitor(tmp_path, Console(file=printed, force_terminal=True, width=100)) as watch:
        for step in range(1, 11):
            watch.record(T, metrics([1.0, 2.0]))
            watch.flush(step)
    assert "training" in printed.getvalue() and "10/10" in printed.getvalue()
    assert "loss 1.5000" in printed.getvalue() and "step 10 of 10" not in printed.getvalue()


def test_a_full_disk_is_an_error_and_no_endless_wait(rng, tmp_path):
    """tensorboardX's own writer loses its thread to the error, and after ten more events its queue blocks forever."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monitor(tmp_path) as watch:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                for step in range(1, 100):
                    watch.picture(step, rng.random((64, 64, 1)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_event_files_are_left_out_by_choice_and_rows_are_not(tmp_path):
    told = []
    with monitor(tmp_path, tensorboard=False, tell=told.append) as watch:
        watch.record(T, metrics([1.0, 3.0]))
        watch.flush(1)
        watch.held_out(1, T, {"loss": np.array([1.0, 2.0])})
        watch.picture(1, np.zeros((2, 2, 1)))
    assert not (tmp_path / "tensorboard").exists()
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 1]
    assert told[0] == {"step": 0, "steps": 10}  # before the first step
    assert len(told) == 4 and told[1] == told[3]
    assert told[1]["step"] == 1 and told[1]["loss"] == 2.0 and told[1]["seconds_left"] > 0
