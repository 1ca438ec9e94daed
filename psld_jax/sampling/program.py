"""A sampler with its network as one file, which runs without being traced again.

The program is StableHLO, by ``jax.export``, and the weights are arrays beside it: opening a file executes nothing,
and calling it only what XLA can express. JAX promises that its versions of six months to come run the program.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from psld_jax import blocks
from psld_jax._runtime import random, xla
from psld_jax._runtime.errors import check_counts
from psld_jax._runtime.journal import replace
from psld_jax.sampling.generate import Sampler

Array = Any

_FORMAT = 1


def save_program(
    sampler: Sampler, path: str | os.PathLike[str], *, batch_size: int = 64, platforms: Sequence[str] = ()
) -> None:
    """Write ``sampler`` to ``path``, a .npz that :class:`Program` opens.

    Args:
      sampler: from :func:`psld_jax.sampling.generate.prepare`; without conditions, and not adaptive.
      path: of the file; one that exists is replaced.
      batch_size: samples that a call of the program draws.
      platforms: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"tpu"``; by default the one that is in use.

    Raises:
      ValueError: for an adaptive solver, conditions, an unknown platform, or a batch size below 1.
    """
    check_counts(batch_size=batch_size)
    if sampler.table is None or sampler.steering is not None:
        raise ValueError("a program holds a sampler with a table and without conditions; name an integrator")
    leaves, structure = jax.tree.flatten(blocks.as_pytree(sampler.model.eps_fn))

    def program(leaves: list[Array], seed: Array, numbers: Array) -> Array:
        keys = random.sample_keys(jax.random.key(seed), numbers)
        z, _ = sampler.run(jax.tree.unflatten(structure, leaves), keys, {})
        return jnp.clip(z[0], -1, 1)

    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    number = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((batch_size,), jnp.uint32)
    exported = export.export(jax.jit(program), platforms=list(platforms) or None)(shapes, *number)
    about = {"format": _FORMAT, "nfe": sampler.nfe, "platforms": list(exported.platforms), **sampler.about()}
    arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    arrays["program"] = np.frombuffer(exported.serialize(), np.uint8)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    replace(Path(path), content.getvalue())


class Program:
    """A sampler that :func:`save_program` wrote.

    Args:
      path: the file.

    Attributes:
      batch_size: samples of one call of the program.
      image_shape: ``(H, W, C)``.
      about: its ``nfe``, ``platforms``, setting and times.

    Raises:
      ValueError: if it is no such file, or for another platform than the one in use.
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            self.about: dict[str, Any] = json.loads(arrays.pop("about").tobytes())
            exported = export.deserialize(bytearray(arrays.pop("program")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no program of a sampler: {error}") from None
        platform = export.default_export_platform()
        if platform not in exported.platforms:
            raise ValueError(f"{path} is for {', '.join(exported.platforms)}, not {platform}: save it for that, too")
        self.batch_size, *self.image_shape = exported.out_avals[0].shape
        self._leaves = [jnp.asarray(arrays[f"leaf_{i}"]) for i in range(len(arrays))]
        self._call = xla.jit(exported.call)

    def __call__(self, n: int = 64, seed: int = 0) -> np.ndarray:
        """Images, float32 ``[n, H, W, C]`` in [-1, 1]: those of :func:`psld_jax.generate` with that seed.

        Raises:
          ValueError: for ``n`` below 1.
        """
        check_counts(n=n)
        starts = range(0, n, self.batch_size)
        numbers = (np.arange(start, start + self.batch_size, dtype=np.uint32) for start in starts)
        return np.concatenate([np.asarray(self._call(self._leaves, np.uint32(seed), part)) for part in numbers])[:n]
