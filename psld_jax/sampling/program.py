"""A network with the loop as one file, which runs any sampler with any budget without being traced again.

The program is StableHLO, by ``jax.export``, and the weights are arrays beside it: opening a file executes nothing,
and calling it only what XLA can express. The table is an input of the program, so one file serves every sampler and
budget. JAX promises that its versions of six months to come run the program.
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

from psld_jax import blocks, build
from psld_jax._runtime import random, xla
from psld_jax._runtime.checks import check_seed
from psld_jax._runtime.errors import check_counts, check_kind, is_count, why
from psld_jax._runtime.journal import replace
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.loop import run_rows
from psld_jax.sampling.rows import HISTORIES, MIN_ROWS, padded
from psld_jax.sampling.sampler import Sampler
from psld_jax.sampling.settings import Setting, Tuned

Array = Any

_FORMAT = 2
_TABLE = "table_"


def save_program(
    sampler: Sampler, path: str | os.PathLike[str], *, batch_size: int = 64, platforms: Sequence[str] = ()
) -> None:
    """Write the network of ``sampler`` with the loop to ``path``, a .npz that :class:`Program` opens.

    Args:
      sampler: from :func:`psld_jax.sampling.generate.prepare`; without conditions, and not adaptive. It is what the
        program runs unless another one is asked for.
      path: of the file; one that exists is replaced.
      batch_size: samples that a call of the program draws.
      platforms: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"tpu"``; by default the one that is in use.

    Raises:
      ValueError: for an adaptive solver, conditions, an unknown platform, or a batch size below 1.
    """
    check_counts(batch_size=batch_size)
    if sampler.table is None or sampler.steering is not None:
        raise ValueError("a program holds a sampler with a table and without conditions; name an integrator")
    model = sampler.model
    rows, count = _fitting(sampler.table)
    leaves, structure = jax.tree.flatten(blocks.as_pytree(model.eps_fn))

    def program(leaves: list[Array], seed: Array, numbers: Array, rows: dict[str, Array], count: Array) -> Array:
        keys = random.sample_keys(jax.random.key(seed), numbers)
        z_T = model.sde.prior_sample(keys, (batch_size, *model.image_shape))
        z = run_rows(jax.tree.unflatten(structure, leaves), rows, count, z_T, keys, None, None)
        return jnp.clip(z[0], -1, 1)

    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    number = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((batch_size,), jnp.uint32)
    of_table = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (rows, count))
    exported = export.export(jax.jit(program), platforms=list(platforms) or None)(shapes, *number, *of_table)
    about = {
        "format": _FORMAT,
        "nfe": sampler.nfe,
        "num_draws": sampler.table.num_draws,
        "platforms": list(exported.platforms),
        "sde": repr(model.sde),
        "network": model.fingerprint,
        "config": json.loads(model.config.to_json()),
        "tuned": [{"nfe": row.nfe, "setting": row.setting.to_json()} for row in model.tuned],
        **sampler.about(),
    }
    arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    given = {name: value for name, value in sampler.table.rows().items() if value is not None}
    arrays |= {_TABLE + name: value for name, value in {**given, "last_rows": sampler.table.last_rows}.items()}
    arrays["program"] = np.frombuffer(exported.serialize(), np.uint8)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    replace(Path(path), content.getvalue())


def check_budget(nfe: Any) -> None:
    """Raise a ``ValueError`` for more evaluations than a program holds, before so many rows are made."""
    if is_count(nfe) and nfe > MIN_ROWS:
        raise ValueError(f"nfe={nfe} is more than the {MIN_ROWS} evaluations that a program holds")


def _fitting(table: Tableau) -> tuple[dict[str, Array], np.int32]:
    """Return the rows of a table as a program takes them; raise a ``ValueError`` if they are more than it holds."""
    if table.nfe > MIN_ROWS or table.B.shape[1] > HISTORIES[0]:
        raise ValueError(
            f"a program holds tables of {MIN_ROWS} evaluations and a history of {HISTORIES[0]} at most; "
            f"this one has {table.nfe} and {table.B.shape[1]}"
        )
    return padded(table, jnp.float32)


class Program:
    """A network with the loop that :func:`save_program` wrote: ``program(n, seed)`` draws images.

    Args:
      path: the file.

    Attributes:
      batch_size: samples of one call of the program.
      image_shape: ``(H, W, C)``.
      about: the sampler that it was saved with (``nfe``, setting, times), its ``platforms`` and its diffusion.
      table: the :class:`psld_jax.Tableau` of that sampler.

    Raises:
      ValueError: if it is no such file, or for another platform than the one in use.
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            self.about: dict[str, Any] = json.loads(arrays.pop("about").tobytes())
            if self.about.get("format") != _FORMAT:
                raise ValueError(
                    f"it is of format {self.about.get('format')}, this version reads {_FORMAT}: save again"
                )
            exported = export.deserialize(bytearray(arrays.pop("program")))
            rows = {name.removeprefix(_TABLE): arrays.pop(name) for name in list(arrays) if name.startswith(_TABLE)}
            missing = dict.fromkeys(("P", "Rpre", "pre_draw", "R", "post_draw"))
            times = np.asarray(self.about["table"]["times"])
            self.table = Tableau(**{**missing, **rows}, times=times, num_draws=self.about["num_draws"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no program of a sampler: {why(error)}") from None
        platform = export.default_export_platform()
        if platform not in exported.platforms:
            raise ValueError(f"{path} is for {', '.join(exported.platforms)}, not {platform}: save it for that, too")
        self.batch_size, *self.image_shape = exported.out_avals[0].shape
        self._leaves = [jnp.asarray(arrays[f"leaf_{i}"]) for i in range(len(arrays))]
        self._call = jax.jit(exported.call, compiler_options=xla.options())

    def tabulate(self, sampler: str = "auto", **options: Any) -> Tableau:
        """Make the table of a sampler for the diffusion of this program.

        Args:
          sampler: as for :func:`psld_jax.generate`; ``"auto"`` is what was tuned for the network.
          options: ``nfe``, ``grid``, ``rho``, ``t_end``, ``denoise``, and the sampler's hyper-parameters.

        Raises:
          ValueError: for anything unknown or out of range; for an adaptive solver; or if the diffusion of the program
            is one of your own: then make the table with :func:`psld_jax.tabulate`.
        """
        check_budget(options.get("nfe"))
        config = build.from_dict(self.about["config"])
        sde = build.build_sde(config)
        if repr(sde) != self.about["sde"]:
            raise ValueError(
                f"the diffusion of this program, {self.about['sde']}, is not one that a configuration describes: "
                "make a table with psld_jax.tabulate and pass it as table=..."
            )
        tuned = tuple(Tuned(int(row["nfe"]), Setting.from_json(row["setting"])) for row in self.about["tuned"])
        model = build.Model(sde, lambda z, t: z, config, tuple(self.image_shape), tuned=tuned)
        # Without its weights it could not tell which solvers were learned for it.
        vars(model)["fingerprint"] = self.about.get("network", "")
        table = prepare(model, sampler, **options).table
        if table is None:
            raise ValueError(f"{sampler!r} is adaptive and has no table; name an integrator")
        return table

    def __call__(
        self, n: int = 64, seed: int = 0, sampler: str | None = None, *, table: Tableau | None = None, **options: Any
    ) -> np.ndarray:
        """Draw images, float32 ``[n, H, W, C]`` in [-1, 1]: those of :func:`psld_jax.generate` with that seed.

        Args:
          n: how many.
          seed: image ``i`` is a function of ``(seed, i)``.
          sampler, options: another sampler than the one that was saved, see :meth:`tabulate`.
          table: or the table itself.

        Raises:
          ValueError: for ``n`` below 1, a seed that is none, both a sampler and a table, a table that does not fit, or
            as :meth:`tabulate`.
        """
        check_counts(n=n)
        n, seed = int(n), check_seed(seed)
        asked = sampler is not None or bool(options)
        if asked and table is not None:
            raise ValueError("give a table, or a sampler with its options, not both")
        if asked:
            table = self.tabulate(sampler or "auto", **options)
        elif table is None:
            table = self.table
        check_kind("table", table, Tableau, "a table, such as psld_jax.tabulate makes")
        if table.num_blocks != self.table.num_blocks:
            raise ValueError(f"the table is of {table.num_blocks} blocks, the program of {self.table.num_blocks}")
        rows, count = _fitting(table)
        starts = range(0, n, self.batch_size)
        numbers = (np.arange(start, start + self.batch_size, dtype=np.uint32) for start in starts)
        calls = (self._call(self._leaves, np.uint32(seed), part, rows, count) for part in numbers)
        return np.concatenate([np.asarray(images) for images in calls])[:n]
