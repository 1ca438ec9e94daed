"""The matching of tensors in a file to parameters of a network.

The correspondence of names and layouts is :func:`psld_jax.models.source_parameters`; here both sides are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from psld_jax.checkpoints.directory import unflatten
from psld_jax.checkpoints.reader import Checkpoint
from psld_jax.models import SourceParameter

from . import naming


class Tensor(Protocol):
    """A tensor that is still in its file."""

    @property
    def name(self) -> str:
        """Name of the tensor in the file."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as saved."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Dtype as saved."""
        ...

    def read(self) -> np.ndarray:
        """Read the values of the tensor, in its shape."""
        ...


_LISTED = 30
_ACCEPTED = ("score_fn.", "clf_fn.", "module.", "", "ema_score_fn.", "ema.")


def networks(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by name without prefix, of the ``online`` and, if there is one, the ``ema`` network.

    Counters and measures, which belong to no network, are not among them: ``psld_jax.convert.naming.is_buffer``.

    Raises:
      ValueError: for names of no network, several networks that are not two copies of one, or one of
        score_sde_pytorch that is not VP.
    """
    found: dict[str, dict[str, Tensor]] = {}
    prefixes: dict[str, str] = {}
    for name, tensor in checkpoint.items():
        prefix, rest = naming.split(name)
        if not rest.startswith("all_modules."):
            if naming.is_buffer(name):
                continue
            allowed = ", ".join(f"{prefix}all_modules.*" for prefix in _ACCEPTED)
            raise ValueError(f"{name!r} {tensor.shape} belongs to no known network: {allowed} are accepted")
        weights = "ema" if naming.is_average(prefix) else "online"
        if prefixes.setdefault(weights, prefix) != prefix:
            raise ValueError(f"the file holds two networks, {prefixes[weights]}* and {prefix}*; one is accepted")
        found.setdefault(weights, {})[rest] = tensor
    if not found:
        raise ValueError("it holds no network: none of its names begins with all_modules")
    if "ema" in prefixes and "clf_fn." in prefixes.get("online", ""):
        raise ValueError("the file holds a score network and a classifier; one network is accepted")
    if checkpoint.layout == "score_sde" and "all_modules.0.W" in found.get("online", {}):
        raise ValueError(
            "its network has Fourier features, which score_sde_pytorch gives log sigma of a VE diffusion; VE is not "
            "supported, VP is"
        )
    return found


def match(tensors: Mapping[str, Tensor], parameters: Sequence[SourceParameter]) -> list[tuple[Tensor, SourceParameter]]:
    """Pair tensors and parameters in the order of the network. Each occurs once.

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
    """Return the parameters as a nested dict of float32 arrays. One tensor at a time is read from the file.

    Raises:
      ValueError: naming the first tensor with a value that is not finite.
    """

    def read(tensor: Tensor, parameter: SourceParameter) -> np.ndarray:
        array = np.ascontiguousarray(parameter.convert(tensor.read()), np.float32)
        finite = np.isfinite(array)
        if not finite.all():
            raise ValueError(
                f"{tensor.name} {tensor.shape} has {array.size - finite.sum()} values that are NaN or infinite: the "
                "network was saved broken"
            )
        return array

    return unflatten((parameter.path, read(tensor, parameter)) for tensor, parameter in pairs)


def described(pairs: Iterable[tuple[Tensor, SourceParameter]]) -> dict[str, dict[str, object]]:
    """Return name, shape and dtype of each parameter's tensor in the file, by path."""
    return {
        "/".join(parameter.path): {
            "source": tensor.name,
            "source_shape": list(tensor.shape),
            "source_dtype": str(tensor.dtype),
        }
        for tensor, parameter in pairs
    }
