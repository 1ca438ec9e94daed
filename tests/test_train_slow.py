"""A run that is killed twenty times."""

import signal
import time

import pytest
import train_support as support

STEPS = 400
KILLS = 20


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_in_the_same_bits(rng, tmp_path):
    """At random moments: a third while it starts, reads its checkpoint or compiles, the rest while it trains and saves.

    After each, every checkpoint that is there under its final name can be read.
    """
    cache, undisturbed, workdir = (tmp_path / name for name in ("compiled", "undisturbed", "killed"))
    options = {"train.steps": STEPS, "train.checkpoint_every": 2, "train.keep_last": 3, "train.keep_every": 50}
    process = support.start(undisturbed, cache, options, optimized=True)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error

    reached = [0]
    for kill in range(KILLS):
        process = support.start(workdir, cache, options, optimized=True)
        if rng.random() < 1 / 3:
            time.sleep(rng.uniform(0, 6))
        elif support.wait(process, lambda: support.steps(workdir)[-1:] > reached[-1:]):
            time.sleep(rng.uniform(0, 1.5))
        process.kill()
        _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL, (kill, error)
        found = support.steps(workdir)
        for step in found:
            support.arrays(workdir, step)
        assert found or reached[-1] == 0
        reached.append(max(found, default=0))
    assert reached == sorted(reached) and len(set(reached)) > 5, reached
    process = support.start(workdir, cache, options, optimized=True)
    printed, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert f"starting at step {reached[-1]}" in printed

    assert support.losses(workdir) == support.losses(undisturbed)
    assert support.steps(workdir) == support.steps(undisturbed) == [*range(50, STEPS - 49, 50), 396, 398, 400]
    for step in support.steps(workdir):
        support.assert_same_bits(support.arrays(workdir, step), support.arrays(undisturbed, step))
    print(f"killed soon after the checkpoints of steps {reached[1:]}")
