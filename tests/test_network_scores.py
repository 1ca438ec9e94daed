"""Networks as eps functions: blocks, zero padding, preconditioning, and models opened from directories."""

import json
from pathlib import Path

import closed_forms
import jax
import jax.numpy as jnp
import models_support
import numpy as np
import pytest
import seeds
from flax import nnx
from rich.console import Console

import psld_jax as pj
from psld_jax import build, convert, models, modes
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.sampling.generate import resolve

ROOT, GOLDEN = Path(__file__).parents[1], Path(__file__).parent / "golden"
TINY = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "image_size": 8, "dropout": 0.0}
CLD = pj.sde.PSLD(gamma=0.0, nu=4.0)


def tiny_network(seed=0, **options):
    options = {**TINY, "in_ch": 2, "out_ch": 2, "init_scale": 1.0, "embedding_type": "positional", **options}
    return models_support.random(models.abstract(models.NCSNppConfig(**options)), seed=seed)


def state(sde, n=3, channels=1, dtype=jnp.float32):
    return sde.prior_sample(seeds.key("state"), (n, 8, 8, channels), dtype)


@jax.jit
def call(fn, *arguments):
    """``fn(*arguments)`` compiled: op by op, a network takes half a minute."""
    return fn(*arguments)


@pytest.mark.slow
def test_blocks_go_in_and_come_out_side_by_side():
    sde, net = pj.sde.PSLD(), tiny_network()
    z = state(sde)
    eps = call(pj.scores.network(net, sde), z, jnp.float32(0.3))
    assert type(eps) is pj.PhaseState
    # One program or another: float32 in another order.
    expected = call(net, jnp.concatenate(z, axis=-1), jnp.float32(0.3))
    np.testing.assert_allclose(np.concatenate(eps, axis=-1), expected, rtol=1e-5, atol=1e-6)
    double = call(pj.scores.network(net, sde), jax.tree.map(lambda leaf: leaf.astype(jnp.float64), z), 0.3)
    assert all(leaf.dtype == jnp.float64 for leaf in double)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "block"),
    [(CLD, 1), (pj.sde.PSLD(gamma=4.0, nu=0.0, decomposition="upper"), 0)],
    ids=["momentum", "position"],
)
def test_half_width_networks_are_filled_up_with_zeros(sde, block):
    net = tiny_network(out_ch=1)
    z = state(sde)
    eps = call(pj.scores.network(net, sde), z, jnp.float32(0.3))
    expected = call(net, jnp.concatenate(z, axis=-1), jnp.float32(0.3))
    np.testing.assert_allclose(eps[block], expected, rtol=1e-5, atol=1e-6)
    assert not np.any(eps[1 - block])
    # The diffusion does not act on the other block: whatever its eps, a step of the ODE or SDE is the same.
    for name in ("euler", "euler_maruyama", "ddim"):
        stage = pj.integrators.get(name).stages(sde, 0.5, 0.4)[0]
        np.testing.assert_allclose(stage.B[0][:, 1 - block], 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("sde", "channels"),
    [
        (pj.sde.PSLD(), (2, 1)),
        (pj.sde.PSLD(gamma=0.0, nu=4.0, decomposition="upper"), (2, 1)),
        (pj.sde.PSLD(), (3, 3)),
        (pj.sde.PSLD(), (2, 3)),
        (pj.sde.PSLD().preconditioned(0.5), (2, 2)),
        (pj.sde.VPSDE(), (2, 1)),
    ],
)
def test_channels_that_do_not_fit_the_diffusion_are_named(sde, channels):
    with pytest.raises(ValueError, match="in_ch=|out_ch="):
        pj.scores.network(tiny_network(in_ch=channels[0], out_ch=channels[1]), sde)


def test_a_network_score_has_a_hash():
    """``jax.jit(score)`` asks for one, and parameters have none."""
    score = pj.scores.network(tiny_network(), pj.sde.PSLD())
    assert len({score, pj.scores.network(tiny_network(), pj.sde.PSLD()), score}) == 2


@pytest.mark.slow
def test_other_weights_run_the_same_program():
    sde = pj.sde.PSLD()
    table = pj.tabulate(pj.integrators.get("euler"), sde, pj.grids.uniform(3))
    z = state(sde)
    first, second = (pj.scores.network(tiny_network(seed), sde) for seed in (0, 1))
    compiled = []

    def listen(event, *_, **__):
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        outs = [pj.sample(first, table, z)]
        assert any("compile" in event for event in compiled)
        compiled.clear()
        outs.append(pj.sample(second, table, z))
        assert not any("compile" in event for event in compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert np.abs(np.asarray(outs[0].x - outs[1].x)).max() > 1e-3
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pj.scores.network(tiny_network(), sde)))


@pytest.mark.slow
def test_tiles_change_nothing_and_make_samples_independent_of_their_batch():
    sde, net = pj.sde.PSLD(), tiny_network()
    z = state(sde, n=11)
    whole = call(pj.scores.network(net, sde, tile=0), z, jnp.float32(0.3))
    tiled = pj.scores.network(net, sde, tile=4)
    out = call(tiled, z, jnp.float32(0.3))
    np.testing.assert_allclose(np.stack(out), np.stack(whole), rtol=1e-4, atol=1e-5)  # float32 in another order
    for part in (slice(0, 5), slice(3, 11)):
        alone = call(tiled, jax.tree.map(lambda leaf, part=part: leaf[part], z), jnp.float32(0.3))
        np.testing.assert_array_equal(np.stack(alone), np.stack(out)[:, part])
    with pytest.raises(ValueError, match="tile=-1"):
        pj.scores.network(net, sde, tile=-1)


# Preconditioning.


@pytest.mark.parametrize("sde", [pj.sde.PSLD(), pj.sde.PSLD(0.25, 4.25, beta_min=3.0), pj.sde.VPSDE()], ids=repr)
@pytest.mark.parametrize("t", [1e-4, 0.02, 0.4, 1.0])
def test_a_preconditioned_network_sees_and_predicts_unit_variance(sde, t):
    """For Gaussian data of that variance nothing is left to predict; what else is left has unit variance."""
    std, pre = 0.7, sde.preconditioned(0.7)
    k, mu = sde.num_blocks, sde.mean(t)
    total = sde.cov(t) + std**2 * mu @ mu.T
    # The Gaussian-optimal score is the skip alone.
    np.testing.assert_allclose(pre.score_skip(t), -np.linalg.inv(total), rtol=1e-9)
    c_in = pre.input_matrix(t)
    np.testing.assert_allclose(c_in @ total @ c_in.T, np.eye(k), atol=1e-9)
    # Target covariance: that of the true score minus the skip, C E[N N^T] C^T with N of unit variance.
    left_over = np.linalg.inv(sde.cov(t)) - np.linalg.inv(total)
    c = pre.score_matrix(t)
    np.testing.assert_allclose(c @ c.T, left_over, atol=1e-9 * np.abs(left_over).max() + 1e-6)
    assert np.all(c[:, 1:] == 0)
    assert sde.data_std is None and np.all(sde.score_skip(t) == 0)


def test_for_one_block_preconditioning_is_edm_s():
    """Karras et al. (2022), table 1, in x = z / mu, sigma^2 = Sigma / mu^2: D = c_skip x + c_out N(c_in x)."""
    sde, std = pj.sde.VPSDE(), 0.5
    pre = sde.preconditioned(std)
    for t in (0.01, 0.3, 0.9):
        mu, cov = sde.mean(t)[0, 0], sde.cov(t)[0, 0]
        sigma2 = cov / mu**2
        # score of z = (mu D - z) / Sigma; so D = (z + Sigma score) / mu.
        c_skip = (1 + cov * pre.score_skip(t)[0, 0]) / mu * mu
        c_out = cov * pre.score_matrix(t)[0, 0] / mu
        np.testing.assert_allclose(c_skip, std**2 / (sigma2 + std**2), rtol=1e-9)
        np.testing.assert_allclose(c_out, np.sqrt(sigma2) * std / np.sqrt(sigma2 + std**2), rtol=1e-9)
        np.testing.assert_allclose(pre.input_matrix(t)[0, 0] * mu, 1 / np.sqrt(sigma2 + std**2), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler", "heun", "euler_maruyama", "sscs", "naive_baoab", "naive_velocity_verlet"])
def test_integrators_that_freeze_the_score_do_not_care_how_it_is_predicted(key, name, digits_model):
    """Cskip reaches every integrator: with the exact score both parametrisations give the same samples.

    Not so where two updates share one eps: then ``Cskip z`` follows the state from one to the next.
    """
    sde = digits_model.sde
    pre = sde.preconditioned(0.6)
    z = sde.prior_sample(jax.random.fold_in(key, 2), (4, 8, 8, 1), jnp.float64)
    outs = []
    for one in (sde, pre):
        eps_fn = pj.scores.mixture(digits_model.data[:50], 0.05, one)
        table = pj.tabulate(pj.integrators.get(name), one, pj.grids.quadratic(12))
        outs.append(np.stack(pj.sample(eps_fn, table, z, jax.random.fold_in(key, 3))))
    # The mixture's coefficients of time are splines good to 1e-9, and the unstable first steps amplify.
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-4, atol=1e-4 * np.abs(outs[0]).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "lambda_ddim_ii", "conjugate_velocity_verlet", "conjugate_obab", "heun"])
def test_preconditioned_conjugate_integrators_converge_too(name):
    sde = pj.sde.PSLD(0.25, 4.25, beta_min=3.0, beta_max=9.0)
    pre, data = sde.preconditioned(0.4), closed_forms.GaussianData(sde, mean=0.0, variance=0.3)
    jacobian, integrator = pj.analysis.gaussian_jacobian(pre, 0.3), pj.integrators.get(name)
    start, errors = (data.mean(1.0), data.cov(1.0)), []
    for n in (200, 400):
        table = pj.tabulate(integrator, pre, pj.grids.uniform(n, t_end=0.05), denoise=False)
        if integrator.stochastic:
            errors.append(pj.analysis.propagate(table, jacobian, *start)[1] - data.cov(0.05))
        else:
            columns = [pj.analysis.propagate(table, jacobian, e, np.zeros((2, 2)))[0] for e in np.eye(2)]
            errors.append(np.stack(columns, axis=1) - data.ode_flow(1.0, 0.05)[0])
    slope = np.log2(np.abs(errors[0]).max() / np.abs(errors[1]).max())
    np.testing.assert_allclose(slope, integrator.order, atol=0.2)


def test_ddim_with_preconditioning_is_exact_for_gaussian_data():
    """Nothing is left for the network: one long step is the exact flow."""
    sde = pj.sde.PSLD()
    data = closed_forms.GaussianData(sde, mean=0.0, variance=0.36)
    stage = pj.integrators.get("ddim").stages(sde.preconditioned(0.6), 0.9, 0.1)[0]
    np.testing.assert_allclose(stage.A, data.ode_flow(0.9, 0.1)[0], rtol=1e-8, atol=1e-9)


def test_a_preconditioned_network_is_fed_and_filled_up():
    sde = pj.sde.PSLD().preconditioned(0.5)
    net, z, t = tiny_network(out_ch=1), state(sde), 0.3
    eps = call(pj.scores.network(net, sde), z, jnp.float32(t))
    fed = np.einsum("kl,l...->k...", sde.input_matrix(t), np.stack(z))
    expected = call(net, jnp.concatenate(jnp.asarray(fed, jnp.float32), axis=-1), jnp.float32(t))
    np.testing.assert_allclose(eps.x, expected, rtol=1e-4, atol=1e-5)
    assert not np.any(eps.m)
    with pytest.raises(ValueError, match="data_std=-1.0"):
        pj.sde.PSLD().preconditioned(-1.0)


# Models from directories.


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The two real Lightning checkpoints, converted with what their configuration says."""
    out = tmp_path_factory.mktemp("converted")
    for name, key in (("psld", "score_fn"), ("clf", "clf_fn")):
        stored = json.loads((GOLDEN / f"lightning_{name}_tiny.json").read_text())["config"]
        node = stored["diffusion" if name == "psld" else "clf"]
        options = node["model"][key]
        overrides = [
            f"model.{field}={options[field]!r}" for field in ("nonlinearity", "skip_rescale", "fir", "fir_kernel")
        ]
        if name == "psld":
            sde = stored["diffusion"]["model"]["sde"]
            overrides += [f"model.image_size={node['data']['image_size']}", "sde.name=psld", "sde.decomposition=lower"]
            overrides += [f"sde.{field}={sde[field]}" for field in ("beta_min", "beta_max", "gamma", "nu", "kappa")]
        weights = "both" if name == "psld" else None
        convert.convert(
            GOLDEN / f"lightning_{name}_tiny.ckpt", "auto", out / name, weights=weights, overrides=overrides
        )
    return out


def golden_state(data):
    return pj.PhaseState(*jnp.split(jnp.asarray(np.moveaxis(data["z"], 1, -1)), 2, axis=-1))


@pytest.mark.parametrize(
    ("weights", "output"), [("ema", "out_ema_score_fn"), ("online", "out_score_fn"), (None, "out_ema_score_fn")]
)
def test_load_gives_the_original_s_network(converted, weights, output):
    data = np.load(GOLDEN / "lightning_psld_tiny.npz")
    model = pj.load(converted / "psld", {"model.weights": weights} if weights else None)
    assert isinstance(model, pj.Model) and model.image_shape == (16, 16, 3)
    z = golden_state(data)
    for i, t in enumerate(data["t"]):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], z)
        eps = np.concatenate(call(model.eps_fn, one, jnp.float32(t)), axis=-1)
        # 3e-4: Fourier embedding of thousands of radians in float32.
        assert np.abs(np.moveaxis(eps, -1, 1) - data[output][i : i + 1]).max() < 3e-4


def test_load_opens_classifiers(converted):
    data = np.load(GOLDEN / "lightning_clf_tiny.npz")
    model = pj.load(converted / "clf")
    assert isinstance(model, pj.Classifier)
    z = golden_state(data)
    one = jax.tree.map(lambda leaf: leaf[:1], z)
    np.testing.assert_allclose(call(model.logits_fn, one, jnp.float32(data["t"][0])), data["logits"][:1], atol=3e-4)


@pytest.mark.slow
def test_samples_from_a_converted_checkpoint_by_its_mode_and_in_python(converted, tmp_path):
    options = {"sampler.name": "ROBA", "sampler.nfe": 6, "sampling.num_samples": 3}
    config = build.override(build.load_config("saved"), options | {"model.checkpoint": str(converted / "psld")})
    with jax.enable_x64(False):
        modes.run("sample", config, tmp_path, Console(quiet=True))
    report = json.loads((tmp_path / "report.json").read_text())["sample"]
    assert report["nfe_mean"] == 6 and report["model"]["nf"] == 8 and report["sde"]["gamma"] == 0.01
    assert (tmp_path / "samples.png").stat().st_size > 1000
    with jax.enable_x64(False):
        images = pj.generate(pj.load(converted / "psld"), "ROBA", nfe=6, n=3, seed=0)
    assert images.shape == (3, 16, 16, 3) and np.isfinite(images).all() and images.std() > 0.1


def test_a_configuration_must_agree_with_the_directory_it_opens(converted):
    config = build.override(build.load_config("cifar10"), {"model.checkpoint": str(converted / "psld")})
    with pytest.raises(ValueError, match="disagrees.*model.nf is 128, stored is 8.*'saved' takes what is stored"):
        build.build_model(config)
    stored = build.from_dict(checkpoint.read_converted(converted / "psld")[0])
    assert isinstance(
        build.build_model(build.override(stored, {"model.checkpoint": str(converted / "psld")})), pj.Model
    )


def test_a_path_is_a_directory_first_and_a_name_where_there_is_none(converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pj.load(Path("digits")).image_shape == pj.load("digits").image_shape
    assert pj.load(Path("mnist")).image_shape == (32, 32, 1)
    Path("mnist").symlink_to(converted / "psld")
    assert pj.load(Path("mnist")).image_shape == pj.load(converted / "psld").image_shape != (32, 32, 1)
    assert pj.load("mnist").image_shape == (32, 32, 1)


def test_what_cannot_be_opened_is_named(converted, tmp_path):
    with pytest.raises(ValueError, match="needs weights"):
        build.build_model(build.load_config("cifar10"))
    with pytest.raises(ValueError, match="holds no converted checkpoint"):
        pj.load(tmp_path)
    with pytest.raises(ValueError, match="contradicts"):
        pj.load(converted / "psld", {"model.nf": 16})
    with pytest.raises(ValueError, match="no 'emma' weights"):
        pj.load(converted / "psld", {"model.weights": "emma"})
    config = build.override(
        build.load_config("saved"), {"model.checkpoint": str(converted / "clf"), "sampling.num_samples": 1}
    )
    with pytest.raises(ValueError, match="classifier cannot be sampled"):
        modes.run("sample", config, tmp_path, Console(quiet=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # 97,627,910 is the original's own count; the others were counted with this code once its networks agreed.
        ("cifar10", 39_397_254),
        pytest.param("cifar10_55m", 55_743_110, marks=pytest.mark.slow),
        ("cifar10_sota", 97_627_910),
        ("cifar10_vp", 61_804_419),
        pytest.param("cifar10_ddpmpp", 61_804_419, marks=pytest.mark.slow),
        ("celeba64", 62_769_286),
        pytest.param("celeba64_vp", 86_020_227, marks=pytest.mark.slow),
        ("afhqv2_64", 62_769_286),
        pytest.param("afhqv2_64_vp", 62_758_915, marks=pytest.mark.slow),
        pytest.param("afhqv2_128", 128_453_766, marks=pytest.mark.slow),
        pytest.param("afhqv2_128_vp", 128_445_123, marks=pytest.mark.slow),
        ("cifar10_clf", 56_666_368),
    ],
)
def test_published_configurations_have_the_published_size_and_fit_their_diffusion(name, count):
    config = build.load_config(name)
    network = build.abstract_network(config)
    shapes = [leaf.shape for _, leaf in nnx.to_flat_state(nnx.state(network))]
    assert sum(int(np.prod(shape)) for shape in shapes) == count
    sde = build.build_sde(config)
    assert config.model.in_ch == 3 * sde.num_blocks
    sampler = config.sampler
    setting = resolve(build.Model(sde, print, config, ()), sampler.name, sampler.nfe, grid=sampler.grid)
    assert setting.table(sde, sampler.nfe).times[-2] == (sampler.t_end or sde.t_end)


def test_every_configuration_file_is_complete_and_locked():
    files = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    default = build.fields(build.load_config("default"))
    for name in files:
        config = build.load_config(name)
        assert build.fields(config) == default, name
        with pytest.raises((AttributeError, KeyError)):
            config.model.unheard_of = 1
