"""Learned solvers: a table of numbers in a file, with what it was learned for."""

from __future__ import annotations

import dataclasses
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_flag, check_number
from psld_jax._runtime.errors import check_choice, check_counts, check_kind, why
from psld_jax._runtime.journal import replace
from psld_jax.integrators.baselines import LAST_STEPS
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.rows import HISTORIES
from psld_jax.sde import LinearSDE

#: The name of a sampler that is a learned solver.
LEARNED = "learned"

_FORMAT, _VERSION = "psld_jax solver", 1
#: A file of a thousand evaluations has some 200 kB.
_MOST_BYTES = 16 * 2**20
#: What a solver must say about itself.
_REQUIRED = ("diffusion", "network", "t_end", "denoise")
#: Fields of a table with one entry a row, by the number of their matrix axes; draws are integers.
_MATRICES = ("P", "Rpre", "U", "V", "A", "R")
_DRAWS = ("pre_draw", "post_draw")


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """A learned table; :func:`psld_jax.learn` makes one, :func:`load_solver` reads one.

    Attributes:
      table: its coefficients, float64, a row for each evaluation.
      about: what it was learned for, as JSON can hold it: ``diffusion``, ``network`` (a fingerprint of the weights, ""
        if there are none), ``t_end``, ``denoise``, and what else is worth knowing (loss, seed, scores).
    """

    table: Tableau
    about: dict[str, Any]

    @property
    def nfe(self) -> int:
        """Number of evaluations of the network, denoising included."""
        return self.table.nfe

    def describe(self) -> str:
        """Describe it in one line."""
        start = self.about.get("start", {}).get("sampler", "a table")
        return f"{LEARNED} solver of {self.nfe} evaluations, from {_line(start)}"

    def fits(self, sde: LinearSDE, t_end: float | None, denoise: bool | str, resample: int = 1) -> bool:
        """Tell whether the solver can be used so; :meth:`table_for` says what is wrong if not."""
        return not self._complaints(sde, t_end, denoise, resample)

    def is_for(self, fingerprint: str) -> bool:
        """Tell whether it was learned for the weights of that fingerprint, or for a network without one."""
        return self.about["network"] in ("", fingerprint)

    def table_for(
        self, sde: LinearSDE, nfe: int, *, t_end: float | None = None, denoise: bool | str = True, resample: int = 1
    ) -> Tableau:
        """Return the table, for a diffusion and a budget of at least :attr:`nfe` evaluations.

        Raises:
          ValueError: if it was learned for something else.
        """
        check_counts(nfe=nfe)
        complaints = self._complaints(sde, t_end, denoise, resample)
        if complaints:
            raise ValueError(f"the learned solver of {self.nfe} evaluations {complaints[0]}")
        if nfe < self.nfe:
            raise ValueError(f"nfe={nfe} is too few for a learned solver of {self.nfe} evaluations")
        return self.table

    def _complaints(self, sde: LinearSDE, t_end: float | None, denoise: bool | str, resample: int) -> list[str]:
        about, found = self.about, []
        if repr(sde) != about["diffusion"]:
            found.append(f"is for {_line(about['diffusion'])}; this model is {_line(repr(sde))}")
        if sde.num_blocks != self.table.num_blocks:
            found.append(f"has matrices for {self.table.num_blocks} blocks; this model has {sde.num_blocks}")
        if t_end is not None and t_end != about["t_end"]:
            found.append(f"ends at t_end={about['t_end']:g}; leave t_end={t_end:g} out")
        if bool(denoise) != bool(about["denoise"]) or (isinstance(denoise, str) and denoise != about["denoise"]):
            found.append(f"was learned with denoise={about['denoise']!r}; leave denoise={denoise!r} out")
        if resample != 1:
            found.append(f"takes no step back; leave resample={resample} out")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a dict that JSON can hold; :meth:`from_json` reads it to the bit."""
        table = self.table
        rows = {name: None if values is None else np.asarray(values).tolist() for name, values in table.rows().items()}
        ends = {"last_rows": np.asarray(table.last_rows).tolist(), "times": np.asarray(table.times).tolist()}
        if table.lead is not None:
            ends["lead"] = [float(table.lead[0]), np.asarray(table.lead[1]).tolist()]
        header = {"format": _FORMAT, "version": _VERSION, "about": self.about}
        return {**header, "num_draws": int(table.num_draws), **ends, "rows": rows}

    @classmethod
    def from_json(cls, values: Any, source: str = "a learned solver") -> Solver:
        """Read the solver that :meth:`to_json` wrote.

        Raises:
          ValueError: for anything that it did not write, with ``source`` in the message.
        """
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f"{source} holds no learned solver; --mode tune --config.tune.learn=table writes one")
        if values.get("version") != _VERSION:
            raise ValueError(f"{source} is of version {values.get('version')!r}; this psld_jax reads {_VERSION}")
        try:
            return cls(_table(values), _about(values["about"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{source} is damaged: {why(error)}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, whole or not at all. A line of the file has at most one number."""
        replace(Path(path), json.dumps(self.to_json(), indent=1) + "\n")


def load_solver(path: str | os.PathLike[str]) -> Solver:
    """Read the solver that :meth:`Solver.write` or ``--mode tune --config.tune.learn=table`` wrote to a file.

    ``psld_jax.generate(model, solver=load_solver(FILE))`` uses it.

    Raises:
      ValueError: if there is no such file, or it is damaged, too large, or of another version.
    """
    check_kind("path", path, (str, os.PathLike), "the file of a learned solver")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} cannot be read: it is no file; give that of a learned solver")
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes; a learned solver has at most {_MOST_BYTES:,}")
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no file of a learned solver: {why(error)}") from None
    return Solver.from_json(values, str(file))


def _line(text: Any) -> str:
    """Return what a file says, which anyone may have edited, on one line of moderate length."""
    return textwrap.shorten(str(text), 200, placeholder="...")


def _about(values: Any) -> dict[str, Any]:
    """Return what a solver says about itself; check what is read of it."""
    check_kind("about", values, dict, "an object of JSON")
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise ValueError(f"about lacks {', '.join(missing)}")
    for name, kind, words in (("diffusion", str, "text"), ("network", str, "text"), ("start", dict, "an object")):
        check_kind(f"about.{name}", values.get(name, kind()), kind, words)
    check_number("about.t_end", values["t_end"], 0, 1, strict=True)
    if isinstance(values["denoise"], str):
        check_choice("about.denoise", values["denoise"], LAST_STEPS)
    else:
        check_flag("about.denoise", values["denoise"])
    return values


def _table(values: dict[str, Any]) -> Tableau:
    """Read the table in the JSON of a solver, and check everything that the loop relies on."""
    rows = values["rows"]
    check_kind("rows", rows, dict, "an object of JSON")
    tau = _floats("tau", rows["tau"], 1)
    size = len(tau)
    num_draws = int(_numbers("num_draws", [values["num_draws"]], 1, 0, 2 * size)[0])  # two in a row at most
    if not (size and (tau > 0).all() and (tau <= 1).all()):
        raise ValueError("tau must be times in (0, 1]")
    k = _floats("A", rows["A"], 3).shape[-1]
    history = _floats("B", rows["B"], 4).shape[1]
    if history > HISTORIES[-1]:
        raise ValueError(f"B combines {history} predictions; the loop keeps at most {HISTORIES[-1]}")
    arrays: dict[str, Any] = {"tau": tau, "B": _floats("B", rows["B"], 4, (size, history, k, k))}
    for name in _MATRICES:
        optional = name in ("P", "Rpre", "R")
        arrays[name] = None if optional and rows[name] is None else _floats(name, rows[name], 3, (size, k, k))
    for name in _DRAWS:
        arrays[name] = None if rows[name] is None else _numbers(name, rows[name], size, -1, num_draws - 1)
    together = (("P", "Rpre", "pre_draw"), ("R", "post_draw"))
    for names in together:
        if len({arrays[name] is None for name in names}) > 1:
            raise ValueError(f"{', '.join(names)} must be there together, or none of them")
    times = _floats("times", values["times"], 1)
    if len(times) < 2 or (np.diff(times) >= 0).any() or times[0] > 1 or times[-1] < 0:
        raise ValueError("times must fall, from 1 at most to 0 at least")
    last_rows = _numbers("last_rows", values["last_rows"], len(times) - 1, 0, size - 1)
    if last_rows[-1] != size - 1 or (np.diff(last_rows) <= 0).any():
        raise ValueError("last_rows must rise to the last row")
    lead = values.get("lead")
    if lead is not None:
        start, matrix = lead if isinstance(lead, list) and len(lead) == 2 else (0.0, np.eye(k))
        lead = float(_floats("the time of lead", start, 0)), _floats("the matrix of lead", matrix, 2, (k, k))
        if not 0 < lead[0] <= 1 or np.linalg.matrix_rank(lead[1]) < k:
            raise ValueError("lead must be a time in (0, 1] and a matrix that has an inverse")
    return Tableau(**arrays, last_rows=last_rows, times=times, num_draws=num_draws, lead=lead)


def _floats(name: str, values: Any, axes: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    array = np.array(values)
    if array.dtype.kind not in "iuf":  # numpy would make numbers of text
        raise ValueError(f"{name} holds something else than numbers")
    array = array.astype(np.float64)
    if array.ndim != axes or (shape is not None and array.shape != shape):
        raise ValueError(f"{name} has shape {array.shape}, expected {shape or f'{axes} axes'}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array


def _numbers(name: str, values: Any, size: int, low: int, high: int) -> np.ndarray:
    array = np.array(values)
    if array.shape != (size,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be {size} integers")
    if (array < low).any() or (array > high).any():
        raise ValueError(f"{name} must lie in {low} to {high}")
    return array
