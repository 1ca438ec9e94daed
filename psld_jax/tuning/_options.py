"""How :func:`psld_jax.learn` learns: its options, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from psld_jax._runtime.checks import check_flag, check_number
from psld_jax._runtime.errors import check_choice, check_counts, shown
from psld_jax._runtime.journal import plain
from psld_jax.sampling.rows import HISTORIES
from psld_jax.tuning._coefficients import FREE

ERRORS = ("pixels", "features")


@dataclasses.dataclass(frozen=True)
class Options:
    """How :func:`learn` learns: its arguments of the same names, checked.

    Attributes:
      free, steps, history, consistent: what is learned of a table.
      error, distance, soft: the loss.
      num_samples, jacobian_batches, batch_size, iterations: how long, and on how many noises.
    """

    free: Sequence[str] = ("tau", "A", "B")
    steps: Sequence[int] = ()
    history: int = 4
    consistent: bool = False
    error: str = "pixels"
    distance: float = 0.0
    soft: float = 0.0
    num_samples: int = 512
    jacobian_batches: int = 0
    batch_size: int = 64
    iterations: int = 40

    def __post_init__(self) -> None:
        check_counts(num_samples=self.num_samples, batch_size=self.batch_size)
        check_counts(iterations=self.iterations, history=self.history)
        check_counts(0, jacobian_batches=self.jacobian_batches)
        if self.history > HISTORIES[-1]:
            raise ValueError(f"history={self.history} must be at most {HISTORIES[-1]}, which the loop keeps")
        check_choice("error", self.error, ERRORS)
        check_number("distance", self.distance, 0)
        check_number("soft", self.soft, 0, 1)
        check_flag("consistent", self.consistent)
        if isinstance(self.free, str) or not isinstance(self.free, Sequence) or not self.free:
            raise ValueError(f"free={self.free!r} must name coefficients, e.g. ('tau', 'A', 'B')")
        for name in self.free:
            check_choice("free", name, FREE)
        if isinstance(self.steps, str) or not isinstance(self.steps, Sequence):
            raise ValueError(f"steps={shown(self.steps)} must be numbers of rows from 0 on, or () for all")
        check_counts(0, **{f"steps[{i}]": step for i, step in enumerate(self.steps)})
        if self.num_samples % self.batch_size:
            raise ValueError(f"num_samples={self.num_samples} must be a multiple of batch_size={self.batch_size}")
        # Numbers of numpy and JAX become those of Python, which JSON can hold.
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    def check_budget(self, nfe: int) -> None:
        """Raise a ``ValueError`` unless a solver of ``nfe`` evaluations has the rows in ``steps``."""
        if max(self.steps, default=0) >= nfe:
            raise ValueError(f"steps={tuple(self.steps)} must be rows of {nfe} evaluations: 0 to {nfe - 1}")
