"""Pictures: what they draw, and what importing and drawing them leaves alone."""

import importlib

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from psld_jax.evaluation import plots


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figures that were saved, still open."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def words(axis):
    """What is written in and around an axis."""
    return [text.get_text() for text in axis.texts]


def test_a_grid_takes_a_list_of_images_and_names_what_is_none(rng):
    images = rng.uniform(-1, 1, (3, 4, 5, 1))
    np.testing.assert_array_equal(plots.image_grid(list(images)), plots.image_grid(images))
    for wrong in (images[0], [], [images[0], images[0, 1:]], "images"):
        with pytest.raises(ValueError, match=r"^images.*\[n, H, W, C\]$"):
            plots.image_grid(wrong)


def test_a_notebook_keeps_its_backend():
    before = matplotlib.get_backend()
    try:
        matplotlib.use("svg")
        importlib.reload(plots)
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)


def test_names_at_the_ends_of_lines_keep_their_order_and_their_distance(tmp_path):
    figure, axis = plt.subplots()
    axis.set(yscale="log", ylim=(1e-3, 10))
    plots.label_ends(axis, [(1.0, "b", "k"), (1.01, "a", "k"), (500.0, "off", "k"), (0.01, "low", "k")], gap=0.05)
    places = {text.get_text(): text.xyann[1] for text in axis.texts}
    ends = {text.get_text(): text.xy[1] for text in axis.texts}
    assert sorted(places, key=places.get) == ["low", "b", "a", "off"]
    assert np.diff(sorted(places.values())).min() > 0.05 - 1e-9 and max(places.values()) <= 1
    np.testing.assert_allclose([ends["low"], ends["b"], ends["off"]], [0.25, 0.75, 1.0])
    plt.close(figure)


def test_trajectories_are_the_same_few_in_every_panel_with_both_ends(rng, drawn, tmp_path):
    paths = {name: [rng.normal(size=(steps + 1, 6)) for _ in "xm"] for name, steps in (("one", 4), ("two", 7))}
    times = {name: np.linspace(1, 1e-3, len(x)) for name, (x, _) in paths.items()}
    plots.save_trajectories(tmp_path / "t.png", paths, times, np.array([-1.0, 0.5]))
    (figure,) = drawn
    colours = []
    for axis, (x, m) in zip(figure.axes, paths.values(), strict=True):
        curves = [line for line in axis.lines if len(line.get_xdata()) > 1]
        ends = [line for line in axis.lines if len(line.get_xdata()) == 1]
        np.testing.assert_array_equal([line.get_xdata() for line in curves], x[:, :3].T)
        np.testing.assert_array_equal(
            [line.get_xdata()[0] for line in ends], np.stack([x[0, :3], x[-1, :3]], 1).ravel()
        )
        assert f"|x| up to {np.abs(x[:, :3]).max():.1f}, |m| up to {np.abs(m[:, :3]).max():.1f}" in axis.get_title()
        colours.append([line.get_color() for line in curves])
    assert colours[0] == colours[1] and len(set(colours[0])) == 3
    assert words(figure.axes[0]) == ["values in the data"]
    assert "t = 1; " in figure.texts[0].get_text() and "t = 0.001" in figure.texts[0].get_text()


@pytest.mark.parametrize("held", [False, True])
def test_losses_are_named_at_their_lines(drawn, held, tmp_path):
    row = {"count_by_time": [4, 0, 4], "loss_by_time": [0.5, None, 0.25]}
    trained = [{**row, "step": step, "loss": 1 / step} for step in (1, 2, 4)]
    held_out = [{"step": 4, "held_out_loss": 0.3, "held_out_by_time": [0.5, 0.4, None]}] if held else []
    plots.save_losses(tmp_path / "loss.png", trained, held_out)
    left, right = drawn[0].axes
    assert words(left) == (["training", "held out (EMA)"] if held else ["training"])
    assert words(right)[:1] == ["training,\nlast quarter"] and len(words(right)) == 1 + held
    assert left.get_legend() is None and right.get_legend() is None
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [0.5, np.nan, 0.25])


@pytest.mark.parametrize("span", [(0.25, 0.45), (0.95, 1.03), (0.03, 0.9), (1e-3, 40.0)])
def test_levels_of_losses_can_be_read_wherever_they_lie(drawn, span, tmp_path):
    trained = [
        {"step": step, "loss": loss, "count_by_time": [4], "loss_by_time": [loss]}
        for step, loss in enumerate(np.geomspace(*span, 3), 1)
    ]
    plots.save_losses(tmp_path / "loss.png", trained, [])
    axis = drawn[0].axes[0]
    low, high = axis.get_ylim()
    assert sum(low <= level <= high for level in axis.get_yticks()) >= 3
    assert all(tick.get_text() for tick in axis.get_yticklabels())
    assert all(step.is_integer() for step in axis.get_xticks())
