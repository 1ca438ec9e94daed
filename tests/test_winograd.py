"""Winograd's convolutions: the values and derivatives of XLA's, where they are used, and what happens without them."""

import functools
import os
import stat
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds
from jax import export

from psld_jax._runtime import winograd
from psld_jax.models.fir import convolve

# Largest error of float32, relative to the largest result. Sums of a few hundred products round to 1e-6 of it at
# most; derivatives of derivatives, here below, are sums of such results.
TOLERANCE = 4e-6

needs_library = pytest.mark.skipif(
    jax.default_backend() != "cpu" or winograd.missing() is not None, reason="the library is not in use here"
)


def plain(x, kernel):
    """What :func:`convolve` is without us."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(n, height, width, c, d):
    shapes = (n, height, width, c), (3, 3, c, d), (n, height, width, d)
    return [jax.random.normal(seeds.key(f"array {i}"), shape, jnp.float32) for i, shape in enumerate(shapes)]


def assert_close(got, wanted, tolerance=TOLERANCE):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        largest = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


def is_ours(fn, *args, **options):
    return "Winograd" in jax.jit(fn, **options).lower(*args).as_text()


@needs_library
@pytest.mark.parametrize(
    "sizes",
    [
        (3, 13, 9, 32, 48),  # tiles that are cut off at both edges; a panel of one register
        (1, 1, 1, 16, 16),
        (2, 4, 70, 16, 64),
        (9, 16, 16, 96, 32),  # 144 tiles: two blocks, the last shorter
        (2, 5, 6, 160, 64),  # sums longer than a register's
    ],
)
def test_convolution_and_both_gradients_are_those_of_xla(sizes):
    x, kernel, y = arrays(*sizes)
    assert is_ours(convolve, x, kernel)

    def all_three(f):
        out, back = jax.vjp(f, x, kernel)
        return out, back(y)

    assert_close(all_three(convolve), all_three(plain))


@pytest.mark.slow
@needs_library
def test_derivatives_of_all_kinds_and_orders():
    x, kernel, _ = arrays(2, 8, 7, 16, 32)

    def loss(f, x, kernel):
        return jnp.sum(jnp.sin(f(x, kernel) / 12) ** 2)

    def gradient(f):
        return jax.grad(functools.partial(loss, f), argnums=(0, 1))

    def steepness(f, x, kernel):
        return sum(jnp.sum(leaf**2) for leaf in gradient(f)(x, kernel))

    for transform in (
        lambda f: jax.jvp(f, (x, kernel), (x[::-1], 2 * kernel)),
        lambda f: jax.jit(gradient(f))(x, kernel),
        lambda f: jax.jvp(gradient(f), (x, kernel), (x[::-1], 2 * kernel)),
        lambda f: jax.grad(functools.partial(steepness, f), argnums=(0, 1))(x, kernel),
        lambda f: jax.grad(jax.checkpoint(functools.partial(loss, f)), argnums=(0, 1))(x, kernel),
        lambda f: jax.linear_transpose(lambda x: f(x, kernel), x)(f(x, kernel)),
        lambda f: jax.vmap(f, (1, None), 1)(jnp.stack([x, 2 * x], 1), kernel),
        lambda f: jax.vmap(f, (None, 0))(x, jnp.stack([kernel, 2 * kernel])),
        lambda f: jax.vmap(gradient(f), (0, None))(jnp.stack([x, 2 * x]), kernel),
    ):
        assert_close(transform(convolve), transform(plain))


@pytest.mark.slow
@needs_library
def test_rounds_little_more_than_direct_sums():
    x, kernel, y = arrays(4, 16, 16, 256, 128)

    def error(got, wanted):
        return float(jnp.sqrt(jnp.mean((got - wanted) ** 2) / jnp.mean(wanted**2)))

    exact = jax.vjp(plain, *(a.astype(jnp.float64) for a in (x, kernel)))
    ours = jax.vjp(convolve, x, kernel)
    errors = error(ours[0], exact[0]), *map(error, ours[1](y), exact[1](y.astype(jnp.float64)))
    # Measured 0.8e-6; direct sums round to 0.4e-6. The usual points 0, 1, -1, 2, -2 give 1.8e-6, and sums that are not
    # taken in parts 1.5e-6.
    assert max(errors) < 1.1e-6


@needs_library
def test_an_image_does_not_depend_on_those_beside_it():
    x, kernel, _ = arrays(7, 12, 12, 32, 32)
    together = convolve(x, kernel)
    for part in (slice(0, 1), slice(2, 7)):
        np.testing.assert_array_equal(convolve(x[part], kernel), together[part])


def test_what_does_not_suit_is_left_to_xla():
    x, kernel, _ = arrays(2, 8, 8, 32, 32)
    for other in (
        lambda: convolve(x.astype(jnp.float64), kernel),
        lambda: convolve(x.astype(jnp.bfloat16), kernel),
        lambda: convolve(x[..., :3], kernel[:, :, :3]),
        lambda: convolve(x, kernel[:1, :1]),
        lambda: convolve(x, kernel, stride=2),
        lambda: convolve(x, kernel, up=2, padding=((2, 2), (2, 2))),
        lambda: convolve(x, kernel, padding="VALID"),
    ):
        assert not any(eqn.primitive.name in winograd.PRIMITIVES for eqn in jax.make_jaxpr(other)().eqns)
    wide = arrays(1, 4, 4, 512, 512)  # one tile is not worth the transform of this kernel
    assert not is_ours(convolve, *wide[:2]) and not is_ours(jax.grad(lambda *a: convolve(*a).sum(), 1), *wide[:2])


def test_programs_for_elsewhere_have_nothing_of_ours():
    x, kernel, _ = arrays(2, 8, 8, 32, 32)
    program = export.export(jax.jit(convolve), platforms=["cpu", "cuda"])(x, kernel)
    assert "Winograd" not in str(program.mlir_module())
    assert_close(program.call(x, kernel), plain(x, kernel))
    assert "Winograd" not in jax.jit(convolve).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()


def run(code, **variables):
    """Python on ``code`` in a process of its own."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@needs_library
def test_devices_share_a_batch():
    """Named by ``shard_map``, each runs ours; where XLA splits the program, it convolves, and gathers nothing."""
    code = """
import jax, numpy as np, test_winograd as t
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
x, kernel, y = t.arrays(4, 8, 8, 16, 32)
mesh = Mesh(np.array(jax.devices()), ("data",))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
def all_three(f, x, kernel, y):
    out, back = jax.vjp(f, x, kernel)
    return out, *back(y)
ours, wanted = (lambda *a: all_three(t.convolve, *a)), all_three(t.plain, x, kernel, y)
by_xla = jax.jit(ours, in_shardings=(split, whole, split), out_shardings=(split, split, whole))
t.assert_close(by_xla(x, kernel, y), wanted)
text = by_xla.lower(x, kernel, y).compile().as_text()
assert "all-gather" not in text and "Winograd" not in text
for check in (False, True):
    def part(x, kernel, y):
        out, to_x, to_kernel = ours(x, kernel, y)
        return out, to_x, to_kernel if check else jax.lax.psum(to_kernel, "data")
    mapped = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(P("data"), P(), P("data")),
                                   out_specs=(P("data"), P("data"), P()), check_vma=check))
    t.assert_close(mapped(x, kernel, y), wanted)
    assert ("Winograd" in mapped.lower(x, kernel, y).as_text()) == (not check)
print("done")
"""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    ended = run(code, XLA_FLAGS="--xla_force_host_platform_device_count=2", PYTHONPATH=path)
    assert ended.stdout == "done\n", ended.stderr


CONVOLVE = """
import jax.numpy as jnp
from psld_jax._runtime import winograd
from psld_jax.models.fir import convolve
out = convolve(jnp.ones((1, 4, 4, 16)), jnp.ones((3, 3, 16, 16)))
print(round(float(out[0, 1, 1, 0]), 3), winograd.missing())
"""


def asked(monkeypatch, **variables):
    """What :func:`missing` says with these in the environment."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return winograd.missing.__wrapped__()


def test_off_is_off_and_says_nothing(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked(monkeypatch, PSLD_JAX_WINOGRAD="off") == "PSLD_JAX_WINOGRAD is off"


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "{failing}"])
def test_without_a_compiler_a_warning_says_why(compiler, tmp_path, monkeypatch):
    failing = tmp_path / "c++"
    failing.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "out of order" >&2; exit 1; }\n')
    failing.chmod(failing.stat().st_mode | stat.S_IEXEC)
    why = {"no-such-compiler": "no-such-compiler is not found", "false": "exit status 1"}.get(compiler, "out of order")
    monkeypatch.setenv("CXX", compiler.format(failing=failing))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match=f"convolutions are XLA's.*{why}"):
        assert why in asked(monkeypatch, PSLD_JAX_WINOGRAD="auto")
    with pytest.raises(ValueError, match=f"PSLD_JAX_WINOGRAD is on, but.*{why}"):
        asked(monkeypatch, PSLD_JAX_WINOGRAD="on")
    assert not list(tmp_path.glob("psld_jax/kernels/*"))


def test_another_word_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'of'.*auto"):
        asked(monkeypatch, PSLD_JAX_WINOGRAD="of")


@pytest.mark.slow
@needs_library
def test_processes_that_compile_at_the_same_time_end_with_one_library(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "PSLD_JAX_WINOGRAD": "on"}
    started = [
        subprocess.Popen([sys.executable, "-c", CONVOLVE], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=300)[0] for process in started] == ["144.0 None\n"] * 2
    assert len(list(tmp_path.glob("psld_jax/kernels/*"))) == 1
