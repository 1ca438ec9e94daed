"""Which tensor of the file fills which parameter of the network.

The correspondence of names and layouts is :func:`psld_jax.models.source_parameters`; here both sides are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from psld_jax.checkpoints.directory import unflatten
from psld_jax.checkpoints.reader import Checkpoint, Tensor
from psld_jax.models import SourceParameter

#: Prefixes of the networks in a state dict; a bare network has none.
ONLINE = ("score_fn.", "clf_fn.", "module.", "")
EMA = ("ema_score_fn.", "ema.")
_LISTED = 30


def networks(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """The tensors by name without prefix, of the ``online`` and, if there is one, the ``ema`` network.

    Raises:
      ValueError: for names of no network, several networks that are not two copies of one, or one of
        score_sde_pytorch that is not VP.
    """
    found: dict[str, dict[str, Tensor]] = {}
    prefixes: dict[str, str] = {}
    for name, tensor in checkpoint.items():
        prefix = name.partition("all_modules.")[0]
        if prefix not in ONLINE + EMA or not name.startswith(f"{prefix}all_modules."):
            allowed = ", ".join(f"{prefix}all_modules.*" for prefix in ONLINE + EMA)
            raise ValueError(f"{name!r} {tensor.shape} belongs to no known network: {allowed} are accepted")
        weights = "ema" if prefix in EMA else "online"
        if prefixes.setdefault(weights, prefix) != prefix:
            raise ValueError(f"the file holds two networks, {prefixes[weights]}* and {prefix}*; one is accepted")
        found.setdefault(weights, {})[name.removeprefix(prefix)] = tensor
    if "ema" in prefixes and prefixes.get("online") == "clf_fn.":
        raise ValueError("the file holds a score network and a classifier; one network is accepted")
    if checkpoint.layout == "score_sde" and "all_modules.0.W" in found.get("online", {}):
        raise ValueError(
            "its network has Fourier features, which score_sde_pytorch gives log sigma of a VE diffusion; VE is not "
            "supported, VP is"
        )
    return found


def match(tensors: Mapping[str, Tensor], parameters: Sequence[SourceParameter]) -> list[tuple[Tensor, SourceParameter]]:
    """Pairs in the order of the network: every tensor once, every parameter once.

    Raises:
      ValueError: listing names and shapes on both sides, unless the correspondence is complete.
    """
    expected = {parameter.source: parameter for parameter in parameters}
    unused = [f"{name} {tensor.shape}" for name, tensor in tensors.items() if name not in expected]
    unfilled = [
        f"{name} {parameter.source_shape} ({'/'.join(parameter.path)} {parameter.shape})"
        for name, parameter in expected.items()
        if name not in tensors
    ]
    unequal = [
        f"{name}: {tensors[name].shape} in the file, {parameter.source_shape} for {'/'.join(parameter.path)}"
        for name, parameter in expected.items()
        if name in tensors and tensors[name].shape != parameter.source_shape
    ]
    unreal = [
        f"{name}: {tensors[name].dtype}"
        for name in expected
        if name in tensors and not jnp.issubdtype(tensors[name].dtype, jnp.floating)
    ]
    problems = [
        _listing("in the file without a place in the network", unused),
        _listing("in the network without a tensor in the file", unfilled),
        _listing("of different shape", unequal),
        _listing("that hold no floating-point numbers", unreal),
    ]
    if any(problems):
        raise ValueError("the file does not fit the network.\n" + "\n".join(filter(None, problems)))
    return [(tensors[name], parameter) for name, parameter in expected.items()]


def _listing(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f"\n  and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{len(items)} parameters {what}:\n  " + "\n  ".join(items[:_LISTED]) + more


def fill(pairs: Iterable[tuple[Tensor, SourceParameter]]) -> dict[str, object]:
    """The parameters as a nested dict of float32 arrays; one tensor at a time is read from the file."""
    return unflatten(
        (parameter.path, np.ascontiguousarray(parameter.convert(tensor.read()), np.float32))
        for tensor, parameter in pairs
    )
