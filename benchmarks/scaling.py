"""What sampling and training take on accelerators, predicted: python -m benchmarks.scaling [--help]

Operations are counted in the traced programs, bytes from the shapes of their arrays. The speed of a device is its peak
times the fraction of it that networks like these are assumed to reach; give what you have measured.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.networks import CONFIGS
from psld_jax import build, scores

#: Operations of a training step for one of a forward pass: two more passes of the same size go back.
_BACKWARD = 3
#: Bytes of a parameter in the state: itself, its average, and two moments of Adam, float32.
_STATE = 16

SAMPLES, NFE, STEPS, BATCH = 50_000, 50, 800_000, 128


@dataclasses.dataclass(frozen=True)
class Network:
    """What a forward pass costs: operations for an image, and numbers that are trained."""

    name: str
    flops: float
    parameters: int

    @classmethod
    def of(cls, name: str) -> Network:
        """The network of a configuration, traced for one image; nothing is allocated."""
        config = build.load_config(name)
        net, sde, size = build.abstract_network(config), build.build_sde(config), config.model.image_size
        shape = jax.ShapeDtypeStruct((1, size, size, config.model.in_ch // sde.num_blocks), jnp.float32)
        state = jax.eval_shape(lambda z: sde.state(*[z] * sde.num_blocks), shape)
        eps_fn = scores.network(net, sde, tile=0)
        traced = jax.jit(lambda f, z: f(z, jnp.float32(0.5))).trace(eps_fn, state)
        leaves = jax.tree.leaves(nnx.state(net, nnx.Param))
        return cls(name, measure.flops(traced.jaxpr.jaxpr), sum(int(np.prod(leaf.shape)) for leaf in leaves))


@dataclasses.dataclass(frozen=True)
class Machine:
    """``devices`` of a speed in FLOP/s, and bytes per second that each of them sends to the others."""

    devices: int
    speed: float
    bandwidth: float

    def sampling_hours(self, net: Network) -> float:
        """All samples; devices send each other nothing."""
        return SAMPLES * NFE * net.flops / (self.devices * self.speed) / 3600

    def step_seconds(self, net: Network) -> tuple[float, float]:
        """Of a training step: the operations, and summing gradients over a ring of devices, 2 (N - 1) / N of them."""
        compute = _BACKWARD * BATCH * net.flops / (self.devices * self.speed)
        return compute, 2 * 4 * net.parameters * (self.devices - 1) / self.devices / self.bandwidth


def main() -> None:
    parser = measure.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=400, help="TFLOP/s of a device in the dtype that is used")
    parser.add_argument("--fraction", type=float, default=0.25, help="of the peak that is reached")
    parser.add_argument("--bandwidth", type=float, default=50, help="GB/s that a device sends to the others")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    options = parser.parse_args()
    speed, bandwidth = options.peak * 1e12 * options.fraction, options.bandwidth * 1e9
    machines = [Machine(count, speed, bandwidth) for count in options.devices]
    facts = Table("network", "parameters", "forward, GFLOP an image", "state, MiB", "gradient, MiB")
    times = Table("network", *(f"{m.devices}: {what}" for what in ("sampling, h", "training, h") for m in machines))
    shares = Table("network", *(f"{m.devices}: ms to compute + send" for m in machines))
    for net in map(Network.of, CONFIGS):
        p, steps = net.parameters, [machine.step_seconds(net) for machine in machines]
        facts.add_row(
            net.name, f"{p:,}", f"{net.flops / 1e9:.1f}", f"{_STATE * p / 2**20:,.0f}", f"{4 * p / 2**20:,.0f}"
        )
        sampling = [f"{machine.sampling_hours(net):.2f}" for machine in machines]
        training = [f"{STEPS * sum(step) / 3600:.1f}" for step in steps]
        times.add_row(net.name, *sampling, *training)
        shares.add_row(net.name, *(f"{1e3 * compute:.1f} + {1e3 * send:.1f}" for compute, send in steps))
    console = Console(width=150)
    console.print(f"{options.peak:g} TFLOP/s at {options.fraction:g}, {options.bandwidth:g} GB/s")
    for title, table in (
        ("", facts),
        (f"{SAMPLES:,} samples of {NFE} evaluations; {STEPS:,} steps of {BATCH} images; on so many devices", times),
        ("a training step, if nothing of it goes on at the same time", shares),
    ):
        table.title = title
        console.print(table)


if __name__ == "__main__":
    main()
