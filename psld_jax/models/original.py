"""Names and layouts of the parameters in the original PyTorch code, for reading its checkpoints."""

from __future__ import annotations

import dataclasses

import numpy as np
from flax import nnx

from psld_jax.models.ncsnpp import abstract
from psld_jax.models.structure import Entry, NCSNppConfig, plan

# Our sub-modules and the original's, for each kind of module.
_RESBLOCK = {
    "norm_0": "GroupNorm_0",
    "conv_0": "Conv_0",
    "dense_0": "Dense_0",
    "norm_1": "GroupNorm_1",
    "conv_1": "Conv_1",
}
_SUBMODULES = {
    "resblock_ddpm": _RESBLOCK | {"shortcut": "NIN_0"},
    "resblock_biggan": _RESBLOCK | {"shortcut": "Conv_2"},
    "attention": {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"},
    "combine": {"conv": "Conv_0"},
}


@dataclasses.dataclass(frozen=True)
class SourceParameter:
    """The place in our network of one parameter of the original.

    Attributes:
      source: its name there, ``all_modules.<i>...``, after the prefix of the network (``score_fn.`` and so on).
      source_shape: its shape there.
      path: our parameter, as in ``nnx.to_flat_state(nnx.state(network))``.
      axes: the transposition from the original's layout to ours; 1x1 kernels then lose their two axes of size 1.
      shape: its shape here.
    """

    source: str
    source_shape: tuple[int, ...]
    path: tuple[str, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def convert(self, array: np.ndarray) -> np.ndarray:
        """Bring the original's array, of ``source_shape``, into our layout, of shape ``shape``; same dtype.

        Raises:
          ValueError: if it has another shape than the configuration asks for.
        """
        if array.shape != self.source_shape:
            raise ValueError(
                f"{self.source} has shape {array.shape}, this configuration expects {self.source_shape}; "
                "check the configuration against the checkpoint"
            )
        return np.transpose(array, self.axes).reshape(self.shape)

    def invert(self, array: np.ndarray) -> np.ndarray:
        """Bring our array, of shape ``shape``, into the original's layout, ``source_shape``: inverse of `convert`."""
        laid_out = array.reshape([self.source_shape[axis] for axis in self.axes])
        return np.transpose(laid_out, np.argsort(self.axes))


def source_parameters(config: NCSNppConfig, n_classes: int | None = None) -> tuple[SourceParameter, ...]:
    """List all parameters of the score network (with ``n_classes``, of the classifier) in order of ``all_modules``.

    Each parameter on either side occurs exactly once, those that ``noise_cond=False`` leaves unused included.
    No arrays are allocated.
    """
    network = abstract(config, n_classes)
    entries = {entry.name: entry for entry in plan(config, n_classes)}
    arrays = [(tuple(map(str, path)), array.shape) for path, array in nnx.to_flat_state(nnx.state(network))]
    arrays.sort(key=lambda item: entries[item[0][1]].index)
    return tuple(_source_parameter(config, entries[path[1]], path, shape) for path, shape in arrays)


def _source_parameter(
    config: NCSNppConfig, entry: Entry, path: tuple[str, ...], shape: tuple[int, ...]
) -> SourceParameter:
    """``path`` is ``("layers", entry name, sub-module if any, array)``."""
    if entry.kind == "resample_conv":
        module = "Conv2d_0" if config.fir else "Conv_0"
    else:
        module = _SUBMODULES[entry.kind][path[2]] if entry.kind in _SUBMODULES else ""
    nin = module.startswith("NIN")
    leaf = {"kernel": "W" if nin else "weight", "bias": "b" if nin else "bias", "scale": "weight", "frequencies": "W"}
    name = ".".join(part for part in ("all_modules", str(entry.index), module, leaf[path[-1]]) if part)
    if path[-1] != "kernel" or nin:
        axes, laid_out = tuple(range(len(shape))), shape
    elif "Conv" in module or entry.kind == "conv3x3":
        axes, laid_out = (2, 3, 1, 0), shape if len(shape) == 4 else (1, 1, *shape)
    else:
        axes, laid_out = (1, 0), shape
    source_shape = tuple(laid_out[axes.index(i)] for i in range(len(axes)))
    return SourceParameter(name, source_shape, path, axes, shape)
