"""The largest network of the paper beside a bare convolution: compile time, time per call, effective GFLOP/s.

Run: ``python benchmarks/network.py [float32|bfloat16] [batch ...]``. Network and convolution are timed by turns in one
process; medians, and the median ratio of their rates, are printed as JSON.
"""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import psld_jax as pj
from psld_jax import build

ROUNDS = 5
#: Multiply-adds of the 97,627,910-parameter network for one sample.
GMAC = 38.2


def seconds(fn):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def convolution(batch, dtype):
    """Bare 3x3 convolution, 128 to 128 channels at 32 x 32, and its GFLOP."""
    x = jax.random.normal(jax.random.key(0), (batch, 32, 32, 128), dtype)
    w = jax.random.normal(jax.random.key(1), (3, 3, 128, 128), dtype)
    names = ("NHWC", "HWIO", "NHWC")
    conv = jax.jit(
        functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=names)
    )
    return lambda: conv(x, w), 2 * batch * 32 * 32 * 9 * 128 * 128 / 1e9


def main():
    dtype, batches = (sys.argv[1:2] or ["float32"])[0], [int(b) for b in sys.argv[2:]] or [4, 16]
    config = build.override(build.load_config("cifar10_sota"), {"model.dtype": dtype})
    net = pj.models.NCSNpp(build.network_options(config), rngs=nnx.Rngs(0))
    sde = build.build_sde(config)
    eps_fn, run = pj.scores.network(net, sde), jax.jit(lambda f, z, t: f(z, t))
    report = {"dtype": dtype, "device": jax.devices()[0].device_kind, "jax": jax.__version__, "batch": {}}
    for batch in batches:
        z, t = sde.prior_sample(jax.random.key(2), (batch, 32, 32, 3)), jnp.float32(0.5)
        start = time.perf_counter()
        compiled = run.lower(eps_fn, z, t).compile()
        compile_seconds = time.perf_counter() - start
        conv, conv_gflop = convolution(batch, dtype)
        call = functools.partial(compiled, eps_fn, z, t)
        call(), conv()
        calls, rates, ratios = [], [], []
        for _ in range(ROUNDS):
            bare = np.median([seconds(conv) for _ in range(20)])
            calls.append(seconds(call))
            rates.append(2 * GMAC * batch / calls[-1])
            ratios.append(rates[-1] / (conv_gflop / bare))
        report["batch"][batch] = {
            "compile_s": round(compile_seconds, 2),
            "call_s": round(float(np.median(calls)), 3),
            "gflops": round(float(np.median(rates)), 1),
            "ratio_to_bare_convolution": round(float(np.median(ratios)), 3),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
