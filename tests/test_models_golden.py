"""The networks against the original's outputs, with the original's weights."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from models_support import fill, jit, logits_and_gradient, run

from psld_jax import convert, models

GOLDEN = Path(__file__).parent / "golden"
CLASSIFIERS = sorted(path.stem for path in GOLDEN.glob("ncsnpp_clf_*.ckpt"))
SCORE = sorted({path.stem for path in GOLDEN.glob("*ncsnpp_*.ckpt")} - set(CLASSIFIERS))


# Between them these have every layer and option; the others, which combine them otherwise, are slow tests.
MAIN = {
    *("ncsnpp_cifar_default_like", "ncsnpp_sota_like", "ncsnpp_groups32_clip", "ncsnpp_outputskip_inputskip_sum"),
    *("ncsnpp_noisecond_false_positional_ddpm", "ncsnpp_vp_3ch_odd_nf", "fixed_ncsnpp_ddpm_conv_fir_residual"),
}


def load(name):
    """The arrays, the configuration, the number of classes (or None) and the number of parameters of one file."""
    description = json.loads((GOLDEN / f"{name}.json").read_text())
    tree = description["config"]["clf" if name in CLASSIFIERS else "diffusion"]
    options = dict(tree["model"]["clf_fn" if name in CLASSIFIERS else "score_fn"])
    del options["name"]
    n_classes = options.pop("n_cls", None)
    config = models.NCSNppConfig(**options, image_size=tree["data"]["image_size"])
    return np.load(GOLDEN / f"{name}.npz"), config, n_classes, description["n_params"]


def with_weights(name, prefix, network, parameters, dtype):
    """The network with its weights in a checkpoint, each of which must be used exactly once."""
    with convert.read_checkpoint(GOLDEN / f"{name}.ckpt") as checkpoint:
        found = {key.removeprefix(prefix): value.read() for key, value in checkpoint.items() if key.startswith(prefix)}
    arrays = {p.path: jnp.asarray(p.convert(found.pop(p.source)), dtype) for p in parameters}
    assert not found
    return fill(network, arrays)


def nhwc(array, dtype=None):
    return jnp.asarray(np.moveaxis(array, 1, -1), dtype)


def tolerance(config):
    """Fourier features of thousands of radians: rounding of the argument shows in the output."""
    return 3e-4 if config.embedding_type == "fourier" else 1e-5


def check(actual, expected, tolerance):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in MAIN)) for n in SCORE])
def test_score_network(name):
    data, config, _, n_params = load(name)
    parameters, network = models.source_parameters(config), models.abstract(config)
    assert sum(np.prod(p.shape) for p in parameters) == n_params

    def output(prefix, dtype):
        filled = with_weights(name, prefix, network, parameters, dtype)
        out = run(filled, nhwc(data["z"], dtype), jnp.asarray(data["t"], dtype))
        assert out.dtype == dtype
        return out

    check(output("score_fn.", jnp.float32), nhwc(data["score_fn__out"]), tolerance(config))
    check(output("ema_score_fn.", jnp.float32), nhwc(data["ema_score_fn__out"]), tolerance(config))
    if config.embedding_type == "fourier":  # the other networks are held to less than this in float32
        check(output("score_fn.", jnp.float64), nhwc(data["score_fn__out_f64"]), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name):
    data, config, n_classes, n_params = load(name)
    parameters, network = models.source_parameters(config, n_classes), models.abstract(config, n_classes)
    assert sum(np.prod(p.shape) for p in parameters) == n_params

    filled = with_weights(name, "clf_fn.", network, parameters, jnp.float32)
    logits, chosen, grad = jit(logits_and_gradient)(filled, nhwc(data["z"]), jnp.asarray(data["t"]), data["y"])
    assert logits.dtype == jnp.float32
    check(logits, data["logits"], tolerance(config))
    check(chosen, data["selected_log_prob"], tolerance(config))
    check(grad, nhwc(data["grad"]), 1e-4 * np.abs(data["grad"]).max())
    if config.embedding_type == "fourier":
        filled = with_weights(name, "clf_fn.", network, parameters, jnp.float64)
        out = run(filled, nhwc(data["z"], jnp.float64), jnp.asarray(data["t"], jnp.float64))
        check(out, data["logits_f64"], 2e-5)


def test_a_weight_of_the_wrong_shape_is_refused():
    parameter = models.source_parameters(models.NCSNppConfig(nf=8, ch_mult=(1,), num_res_blocks=1))[0]
    with pytest.raises(ValueError, match=r"all_modules.0.W has shape \(9,\), this configuration expects \(8,\)"):
        parameter.convert(np.zeros(9))
