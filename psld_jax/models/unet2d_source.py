"""Names and layouts of the parameters in diffusers, for reading and writing its files."""

from __future__ import annotations

import functools

from flax import nnx

from psld_jax.models import families
from psld_jax.models.original import SourceParameter
from psld_jax.models.unet2d_structure import UNet2DConfig, Unit, plan

_NORMS_AND_CONVOLUTIONS = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
}
_SUBMODULES = {
    "block": _NORMS_AND_CONVOLUTIONS | {"dense": "time_emb_proj"},
    "k_block": _NORMS_AND_CONVOLUTIONS | {"norm_1/dense": "norm1.linear", "norm_2/dense": "norm2.linear"},
    "attention": {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
}
_LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "frequencies": "weight", "embedding": "weight"}


@functools.lru_cache(8)
def source_parameters(config: UNet2DConfig) -> tuple[SourceParameter, ...]:
    """List all parameters in the order of the network's modules. Each on either side occurs exactly once.

    No arrays are allocated.
    """
    units = {unit.name: unit for unit in plan(config)}
    order = {name: i for i, name in enumerate(units)}
    state = nnx.to_flat_state(nnx.state(families.abstract("unet2d", config)))
    arrays = [(tuple(map(str, path)), array.shape) for path, array in state]
    arrays.sort(key=lambda item: order[item[0][1]])
    return tuple(_source_parameter(units[path[1]], path, shape) for path, shape in arrays)


def _source_parameter(unit: Unit, path: tuple[str, ...], shape: tuple[int, ...]) -> SourceParameter:
    """``path`` is ``("layers", name of the unit, sub-module if any, array)``."""
    inner, leaf = "/".join(path[2:-1]), path[-1]
    module = _SUBMODULES[unit.kind][inner] if inner else ""
    name = ".".join(part for part in (unit.source, module, _LEAVES[leaf]) if part)
    if leaf != "kernel":
        axes, laid_out = tuple(range(len(shape))), shape
    elif len(shape) == 4 or inner == "shortcut" or unit.kind == "conv1":
        axes, laid_out = (2, 3, 1, 0), shape if len(shape) == 4 else (1, 1, *shape)
    else:
        axes, laid_out = (1, 0), shape
    source_shape = tuple(laid_out[axes.index(i)] for i in range(len(axes)))
    return SourceParameter(name, source_shape, path, axes, shape)
