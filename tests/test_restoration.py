"""PSNR and SSIM: by hand, in known limits, and bad input."""

import numpy as np
import pytest

from psld_jax import metrics


@pytest.fixture
def pair(rng):
    truth = rng.uniform(-1, 1, (3, 16, 13, 2))
    return truth + 0.1 * rng.standard_normal(truth.shape), truth


def test_psnr_of_a_known_error(pair):
    _, truth = pair
    # An error of 0.2 everywhere on a range of 2: 20 dB.
    np.testing.assert_allclose(metrics.psnr(truth + 0.2, truth), 20.0, rtol=1e-12)
    np.testing.assert_allclose(metrics.psnr(truth / 2 + 0.1, truth / 2, data_range=1.0), 20.0, rtol=1e-12)
    assert np.all(metrics.psnr(truth, truth) == np.inf)


def test_ssim_is_its_formula_at_one_place(pair):
    """Images as large as the window have one place: sums by hand."""
    image, truth = (values[:1, :11, :11, :1] for values in pair)
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(taps, taps) / taps.sum() ** 2
    a, b = image[0, ..., 0], truth[0, ..., 0]
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    cov = (weights * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    np.testing.assert_allclose(metrics.ssim(image, truth), [expected], rtol=1e-12)


def test_ssim_in_its_limits(pair, rng):
    image, truth = pair
    np.testing.assert_allclose(metrics.ssim(truth, truth), 1.0, rtol=1e-12)
    assert np.all(metrics.ssim(image, truth) > metrics.ssim(truth + 0.5 * rng.standard_normal(truth.shape), truth))
    # Of white noise without relation the covariance is 0 on average; 3 samples of 18 places, 2 channels.
    assert np.abs(metrics.ssim(rng.uniform(-1, 1, truth.shape), truth).mean()) < 0.15
    # Each image by itself, and one truth for all.
    np.testing.assert_allclose(metrics.ssim(image, truth)[1], metrics.ssim(image[1:2], truth[1:2])[0], rtol=1e-12)
    np.testing.assert_array_equal(metrics.ssim(image, truth[:1])[0], metrics.ssim(image, truth)[0])
    np.testing.assert_array_equal(metrics.ssim(image, truth, window=11.0), metrics.ssim(image, truth))
    # The same for another unit.
    np.testing.assert_allclose(
        metrics.ssim(127.5 * image, 127.5 * truth, data_range=255.0), metrics.ssim(image, truth), rtol=1e-10
    )


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
def test_bad_input(measure, pair):
    image, truth = pair
    for a, b, options, message in (
        (image, truth[:, :5], {}, "must be the same"),
        (image[0], truth[0], {}, "must be the same"),
        (image, truth * np.nan, {}, "not finite"),
        ("x", truth, {}, "arrays of numbers"),
        (image, truth, {"data_range": 0.0}, "data_range=0.0 must be"),
        ((image * 0).astype(np.uint8), truth, {}, "levels 0 to 255 have data_range=255, not 2"),
        (image, (truth * 0).astype(np.uint8), {"data_range": 1.0}, "levels 0 to 255"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(a, b, **options)
    for window in (15, 10, 0, 2.5):
        with pytest.raises(ValueError, match=r"window=.* at most 13 for 16 x 13"):
            metrics.ssim(image, truth, window=window)
