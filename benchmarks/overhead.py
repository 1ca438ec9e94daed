"""What the sampler costs beyond its network: time of ``sample`` over NFE times the time of the bare jitted network.

Run: ``python benchmarks/overhead.py``. Samplers and network are timed by turns; medians and quartiles are printed.
The network is a chain of matrix products that costs some 20 to 30 ms a call on two cores.
"""

import json
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

import psld_jax as pj

NFE, BATCH, FEATURES, DEPTH, ROUNDS = 20, 32, 1024, 12, 15
SAMPLERS = ("ddim", "reduced_velocity_verlet", "heun", "reduced_oba", "reduced_baoab", "euler_maruyama", "sscs")


def network(weights, z, t):
    """Both blocks side by side through ``DEPTH`` wide layers."""
    h = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in z], axis=1)
    for w in weights:
        h = jnp.tanh(h @ w) + t
    return pj.PhaseState(*(part.reshape(z.x.shape) for part in jnp.split(h, 2, axis=1)))


def seconds(fn):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def main():
    keys = jax.random.split(jax.random.key(0), DEPTH)
    weights = [jax.random.normal(k, (2 * FEATURES, 2 * FEATURES)) / np.sqrt(2 * FEATURES) for k in keys]
    eps_fn = jax.tree_util.Partial(network, weights)
    sde, bare = pj.sde.PSLD(), jax.jit(network)
    z = sde.prior_sample(jax.random.key(1), (BATCH, 32, 32, 1))
    t = jnp.float32(0.5)
    runs = {}
    for name in SAMPLERS:
        integrator = pj.integrators.get(name)
        table = pj.tabulate(integrator, sde, pj.grids.for_budget("quadratic", integrator, NFE + 1))
        runs[name] = (table, lambda table=table: pj.sample(eps_fn, table, z, jax.random.key(2)))

    def bare_calls(count):
        out = z
        for _ in range(count):
            out = bare(weights, out, t)
        return out

    report = {"network_ms": [], "ratio": {}}
    for name, (table, run) in runs.items():
        run(), bare_calls(1)
        ratios = []
        for _ in range(ROUNDS):
            network_time = seconds(lambda table=table: bare_calls(table.nfe))
            ratios.append(seconds(run) / network_time)
            report["network_ms"].append(1e3 * network_time / table.nfe)
        report["ratio"][name] = {"nfe": table.nfe, "quartiles": np.percentile(ratios, [25, 50, 75]).round(4).tolist()}
    report["network_ms"] = float(np.median(report["network_ms"]))
    report["machine"] = f"{platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
