"""The trained networks that ship: they open by name, they are small, and they are good."""

import jax
import numpy as np
import pytest

import psld_jax as pj
from psld_jax import assets


@pytest.mark.parametrize(("name", "megabytes"), [("mnist", 12), ("mnist_clf", 4), ("emoji", 13)])
def test_a_network_is_small_and_tells_nothing_of_where_it_was_made(name, megabytes):
    files = [path for path in assets.network(name).rglob("*") if path.is_file()]
    assert {"config.json", "index.json", "README.md"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= megabytes * 1e6
    assert pj.load(name).config.data.path == ""
    assert not any(b"/home/" in path.read_bytes() or b"/work/" in path.read_bytes() for path in files)


@pytest.mark.slow
def test_ten_evaluations_draw_digits_that_the_classifier_knows(key):
    with jax.enable_x64(False):
        model, classifier = pj.load("mnist"), pj.load("mnist_clf")
        assert model.image_shape == classifier.image_shape == (32, 32, 1)
        state, nfe = pj.generate_states(model, "exponential_multistep", nfe=10, n=64, seed=0)
        assert set(nfe) == {10}
        t = 1e-3
        noise = pj.PhaseState(*(jax.random.normal(one, state.x.shape) for one in jax.random.split(key, 2)))
        logits = classifier.logits_fn(classifier.sde.perturb(state.x, t, noise), np.float32(t))
    assert state.x.shape == (64, 32, 32, 1) and np.isfinite(state.x).all()
    # Held-out digits have 0.99 here, noise below 0.6. Seen with these seeds: see the model card.
    confidence = np.asarray(jax.nn.softmax(logits)).max(axis=-1)
    assert np.median(confidence) > 0.9
    assert len(set(np.asarray(logits).argmax(-1))) >= 7  # of ten digits
    # The corners of a digit are black; ten evaluations leave a little noise, 0.05 on average.
    assert np.abs(state.x[:, :2, :2] + 1).mean() < 0.1


def test_emoji_of_a_label_have_its_colours():
    """Smileys are yellow inside, and flags reach from side to side: with labels that were mixed up they would not."""
    with jax.enable_x64(False):
        model = pj.load("emoji")
        assert model.image_shape == (16, 16, 3) and model.n_classes == 9
        smileys, flags = (
            pj.generate(model, nfe=10, n=6, seed=0, batch_size=6, label=label, guidance=2.0) for label in (6, 2)
        )
    # Corners of both are white; seen 0.98.
    assert all(images[:, :2, :2].mean() > 0.8 for images in (smileys, flags))
    middle = smileys[:, 4:12, 4:12].mean(axis=(0, 1, 2))
    assert middle[0] > 0.4 and middle[2] < -0.4  # red, no blue; seen 0.65 and -0.65
    # At half height a flag begins further out than a round face; seen -0.45 and 0.30.
    assert flags[:, 8, 1].mean() < smileys[:, 8, 1].mean() - 0.3


@pytest.mark.parametrize("name", ["digits", "mnist", "emoji"])
def test_the_samplers_that_ship_were_tuned_for_their_model_and_keep_the_budget(name):
    model = pj.load(name)
    assert len(model.tuned) >= 3
    for tuned in model.tuned:
        assert tuned.setting.table(model.sde, tuned.nfe).nfe <= tuned.nfe
    if name == "digits":
        assert pj.load(name, {"sde.beta_min": 7.0, "sde.beta_max": 7.0}).tuned == ()


@pytest.mark.slow
def test_samples_are_near_the_statistics_of_mnist_and_noise_is_not(rng):
    """As many real images have 5.7, samples 8.5 (docs/results.md), with 256 of each; fewer have more."""
    law = pj.metrics.read_statistics(assets.statistics("mnist"), 64)
    features = pj.metrics.features("mnist")
    with jax.enable_x64(False):
        samples = pj.generate(pj.load("mnist"), nfe=10, n=64, seed=0)
        noise = rng.uniform(-1, 1, samples.shape).astype(np.float32)
        near, far = (pj.metrics.Gaussian(*pj.metrics.statistics(features(x))).distance(law) for x in (samples, noise))
    assert near < 40 < 1000 < far
