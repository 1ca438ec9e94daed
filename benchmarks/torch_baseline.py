"""Groups ``torch_forward`` and ``torch_train_step``: the networks and steps in PyTorch, by turns with JAX, on a CPU.

Both sides have the same random weights, images, times and noise, and no dropout; their results are compared before
anything is timed. Peak memory is that of processes of their own (:mod:`benchmarks.peak`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from benchmarks import measure, network, start, torch_edm
from benchmarks.networks import load_config, random_network
from benchmarks.torch_ncsnpp import from_flax
from psld_jax import blocks, build

SIDES = ("jax", "eager", "compiled")


def torch_baseline(kind: str, options: measure.Options) -> Iterator[dict[str, Any]]:
    """Seconds of JAX, of PyTorch as it is and of ``torch.compile``; ratios; largest differences; peak memory."""
    for name in options.configs:
        config = load_config(name, options.small, dropout=0.0)
        for batch in options.batches:
            case = {"config": name, "batch": batch, "threads": torch.get_num_threads()}
            yield {
                "case": case,
                **_timings(kind, config, batch, options),
                **_peaks(kind, name, batch, options.small),
            }


def forward(side: str, config: Any, batch: int) -> measure.Program:
    """Predictions ``[n, H, W, out_ch]`` of the network, by ``eps_fn`` as samplers call it or by PyTorch."""
    eps_fn, z, t = network.evaluation(config, batch)
    if side == "jax":
        program, _ = measure.compiled(_predicted, eps_fn, z, t)
        return functools.partial(program, eps_fn, z, t)
    if config.model.name == "edm":
        return _denoise(_network(side, config).eval(), z[0], float(build.build_sde(config).sigma(float(t))))
    fed = z if eps_fn.inputs is None else blocks.apply(eps_fn.inputs(t), z)
    net = _network(side, config).eval()
    images, times = _channels_first(jnp.concatenate(fed, axis=-1)), torch.full((batch,), float(t))

    def run() -> Tensor:
        with torch.inference_mode():
            return net(images, times).permute(0, 2, 3, 1)

    return run


def _denoise(net: Any, z: Any, sigma: float) -> measure.Program:
    """Expected images of EDM's network, which is told the noise level."""
    images, levels = _channels_first(z), torch.full((len(z),), sigma)

    def run() -> Tensor:
        with torch.inference_mode():
            return net(images, levels).permute(0, 2, 3, 1)

    return run


def train_step(side: str, config: Any, batch: int) -> measure.Program:
    """One step further each time: losses of the samples, and the norm of the gradient before clipping."""
    if side == "jax":
        run, _ = network.training(config, batch)
        return lambda: [(metrics := run())["loss"], metrics["grad_norm"]]
    return Training(_network(side, config).train(), config, batch)


#: Functions from (side, configuration, batch) to a program.
KINDS: dict[str, Callable[[str, Any, int], measure.Program]] = {"forward": forward, "train_step": train_step}


class Training:
    """Hybrid score matching, clipping, Adam and EMA in PyTorch; calling it takes one step on the same batch."""

    def __init__(self, net: Any, config: Any, batch: int):
        c = config.train
        if config.model.name == "edm":
            raise ValueError("the training step in PyTorch is that of NCSN++: leave out torch_train_step for EDM")
        if (c.weighting, c.norm, c.optimizer, c.weight_decay) != ("fid", "l2", "adam", 0) or not c.reduce_mean:
            raise ValueError("the training step in PyTorch is that of the published configurations: l2, fid, adam")
        self.net, self.config, self.count = net, c, 0
        images, _, coefficients, noise = network.step_inputs(config, batch)
        self.images = torch.stack([_channels_first(image) for image in (images, *noise)])  # [1 + D, n, C, H, W]
        kernel = coefficients.kernel if coefficients.inputs is None else coefficients.inputs @ coefficients.kernel
        self.t, self.kernel, self.target = (_tensor(a) for a in (coefficients.t, kernel, coefficients.target))
        self.rate = build.build_optimizer(config)[1]
        self.params = list(net.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        betas = (c.beta_1, c.beta_2)
        self.adam = torch.optim.Adam(self.params, lr=torch.tensor(0.0), betas=betas, eps=c.adam_eps, fused=True)

    def __call__(self) -> list[Tensor]:
        self.adam.param_groups[0]["lr"].fill_(float(self.rate(self.count)))
        errors = self.net(self._combine(self.kernel), self.t) - self._combine(self.target)
        losses = errors.square().mean(dim=(1, 2, 3))
        self.adam.zero_grad()
        losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.config.grad_clip or float("inf"))
        self.adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.params, 1 - self._decay())
        self.count += 1
        return [losses.detach(), norm.detach()]

    def _combine(self, matrix: Tensor) -> Tensor:
        """``[n, P, 1 + D]`` times image and noises: P blocks side by side on the channels."""
        return torch.einsum("npd,dnchw->npchw", matrix, self.images).flatten(1, 2)

    def _decay(self) -> float:
        c = self.config
        return min(c.ema_decay, (1 + self.count) / (10 + self.count)) if c.ema_warmup else c.ema_decay


def _timings(kind: str, config: Any, batch: int, options: measure.Options) -> dict[str, Any]:
    """Seconds of each side, how JAX compares, and how far results are from those of JAX, relative to the largest."""
    programs, results, row = {}, {}, {}
    for side in SIDES[:2] if options.small or options.eager else SIDES:
        program = KINDS[kind](side, config, batch)
        try:
            results[side] = _numpy(program())
        except Exception as error:  # whatever a machine without a C++ compiler makes of torch.compile
            if side != "compiled":
                raise
            first_line, *_ = str(error).split("\n")
            row["unavailable"] = f"torch.compile: {type(error).__name__}: {first_line}"
        else:
            programs[side] = program
    times = measure.by_turns(programs, options.rounds, settle=True)
    for side in programs:
        row[f"{side}_seconds"] = measure.spread(times[side])
    for side in (side for side in programs if side != "jax"):
        row[f"jax_over_{side}"] = measure.spread(times["jax"] / times[side])
        difference = np.abs(results[side] - results["jax"]).max()
        row[f"{side}_difference"] = float(difference / np.abs(results["jax"]).max())
    return row


def _peaks(kind: str, name: str, batch: int, small: bool) -> dict[str, float]:
    """Peak memory in MiB, beyond imports, of a process that does nothing else: running, and built and compiled."""
    peaks: dict[str, float] = {}
    if sys.platform != "linux":  # only there does a process know its own peak
        return peaks
    for side in ("jax", "eager"):
        arguments = ["-m", "benchmarks.peak", side, kind, name, str(batch), *(["--small"] if small else [])]
        running, building = start.run(arguments, {}).split()
        peaks |= {f"{side}_running_mib": float(running), f"{side}_building_mib": float(building)}
    return peaks


def _predicted(eps_fn: Any, z: Any, t: Any) -> Any:
    """The blocks that the network predicts, side by side."""
    eps = eps_fn(z, t)
    if len(z) == 1:
        return eps[0]
    return jnp.concatenate([eps[k] for k in eps_fn.predicted], axis=-1)


def _network(side: str, config: Any) -> Any:
    net = random_network(config)
    net = torch_edm.from_flax(net) if config.model.name == "edm" else from_flax(net)
    return torch.compile(net) if side == "compiled" else net


def _channels_first(images: Any) -> Tensor:
    return _tensor(np.moveaxis(np.asarray(images), -1, 1))


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy: JAX's own memory must not be written to


def _numpy(results: Any) -> np.ndarray:
    """All numbers of a result in one row."""
    return np.concatenate(
        [np.ravel(np.asarray(part)) for part in (results if isinstance(results, list) else [results])]
    )
