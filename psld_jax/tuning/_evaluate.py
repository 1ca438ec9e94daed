"""The measures of the tuner: the error of a sampler to the exact ODE solution, and the distance of its samples."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import metrics
from psld_jax._runtime import random
from psld_jax._runtime.checks import check_finite
from psld_jax.build import Model
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.loop import sample
from psld_jax.sampling.settings import Setting

Array = Any

#: The fine solution that stands for the exact one.
FINE = Setting("predictor_corrector", "power", 4.0, {"order": 3})
FINE_NFE = 100

#: Samples of it that make a target where there is none.
_NUM_TARGET = 512

#: Differences of the distance below this part of the fine solution's own are noise.
_NOISE = 0.05


@dataclasses.dataclass(frozen=True)
class Score:
    """The result of one sampler: its error and its distance.

    Attributes:
      rmse: of ``x`` to the fine solution from the same noise; ``None`` if the sampler is stochastic.
      distance: Frechet distance of the samples to the target.
      floor: that of the fine solution's.
    """

    rmse: float | None
    distance: float
    floor: float

    @property
    def loss(self) -> float:
        """The number that the tuner makes small: the distance, or for a deterministic sampler ``rmse^2 excess``.

        The error alone would take a blurred image, the mean of all that are possible, for the best at few evaluations;
        the distance alone, near its floor, is noise. In the product a change counts by its ratio.
        """
        value = self.distance if self.rmse is None else self.rmse**2 * excess(self.distance, self.floor)
        return value if np.isfinite(value) else np.inf


def excess(distance: Array, floor: Array) -> Array:
    """Return a distance less its ``floor``, but not less than its noise; scalars, or equal shapes."""
    above, noise = distance - floor, _NOISE * floor
    where: Any = jnp.where if isinstance(above, jax.Array) else np.where  # numbers of the host stay float64
    return where(above > noise, above, noise)


def _check(images: np.ndarray) -> None:
    what = f"the fine solution by {FINE.sampler} with {FINE_NFE} evaluations"
    check_finite(what, [images], len(images), "Look at the weights, or take a larger t_end")


class Evaluator:
    """Runs samplers from one fixed set of noise, and compares their samples, denoised if the samplers denoise.

    Args:
      model: from ``psld_jax.load``.
      target: images ``[m, H, W, C]`` in [-1, 1] to whose law the samples are compared; by default 512 samples of the
        fine solution, from other noise.
      features: what the distance is taken of; by default the pixels.
      t_end, denoise, seed: of the samplers.
      batch_size: samples that run at a time.
    """

    def __init__(
        self,
        model: Model,
        *,
        target: Array | None = None,
        features: metrics.Features | None = None,
        t_end: float | None = None,
        denoise: bool | str = True,
        seed: int = 0,
        batch_size: int = 64,
    ):
        self.model, self.denoise, self.batch_size = model, denoise, batch_size
        self.t_end = model.sde.t_end if t_end is None else t_end
        self.features = features or metrics.features("pixels")
        self.features.check(model.image_shape)
        self._draw(seed)
        #: What the distance is taken to; made when it is first asked for.
        self.target = functools.cache(lambda: self._make_target(target, jax.random.key(seed)))

    def with_seed(self, seed: int) -> Evaluator:
        """Return the same evaluator with other noise. The target is shared."""
        other = copy.copy(self)
        other._draw(seed)
        return other

    def _draw(self, seed: int) -> None:
        self.seed = seed
        self._key = jax.random.split(jax.random.key(seed))[0]
        self._exact = np.zeros((0, *self.model.image_shape), np.float32)
        self._floors: dict[int, float] = {}

    def __call__(self, setting: Setting, nfe: int, n: int, paired: bool = True) -> Score:
        """Return the score of ``n`` samples with ``nfe`` evaluations, without an error if not ``paired``."""
        table = self._table(setting, nfe)
        return self.judge(
            np.concatenate([self.run(table, start) for start in range(0, n, self.batch_size)])[:n], paired
        )

    def judge(self, x: np.ndarray, paired: bool = True) -> Score:
        """Return the score of samples from the first ``n`` noises, ``[n, H, W, C]``."""
        n, finite = len(x), np.isfinite(x).all()
        distance = self._distance(x) if finite else np.inf
        rmse = np.inf if paired else None
        if paired and finite:
            rmse = float(np.sqrt(np.mean((x.astype(float) - self.exact(n)) ** 2)))
        return Score(rmse, distance, self.floor(n))

    def run(self, table: Tableau, start: int) -> np.ndarray:
        """Return ``x`` of a batch of samples, from number ``start`` on, ``[batch_size, H, W, C]``."""
        return self._run(table, start, self._key)

    def run_from(self, table: Tableau, z_T: Any, keys: Any) -> np.ndarray:
        """``x`` of samples that start at ``z_T`` with these keys, ``[batch_size, H, W, C]``."""
        return np.asarray(sample(self.model.eps_fn, table, z_T, keys)[0])

    def start(self, start: int) -> tuple[Any, Any]:
        """Return keys and noise of that batch."""
        keys = random.sample_keys(self._key, np.arange(start, start + self.batch_size))
        return keys, self._prior(keys)

    def exact(self, n: int) -> np.ndarray:
        """Return ``x`` at the end of the fine solution from the first ``n`` noises, ``[n, H, W, C]``."""
        missing = range(len(self._exact), n, self.batch_size)
        if missing:
            table = self._table(FINE, FINE_NFE)
            self._exact = np.concatenate([self._exact, *(self._run(table, start, self._key) for start in missing)])
            _check(self._exact)
        return self._exact[:n]

    def _make_target(self, images: Array | None, key: Any) -> metrics.FrechetTarget:
        if images is None:
            table, other = self._table(FINE, FINE_NFE), jax.random.split(key)[1]
            starts = range(0, _NUM_TARGET, self.batch_size)
            images = np.concatenate([self._run(table, start, other) for start in starts])
            _check(images)
            images = np.clip(images, -1, 1)
        return metrics.FrechetTarget.of(self.features(images))

    def floor(self, n: int) -> float:
        """Return the distance of ``n`` samples of the fine solution."""
        if n not in self._floors:
            self._floors[n] = self._distance(self.exact(n))
        return self._floors[n]

    def noise(self) -> Any:
        """The first ``batch_size`` noises, as a state."""
        return self._prior(random.sample_keys(self._key, np.arange(self.batch_size)))

    def _distance(self, x: np.ndarray) -> float:
        return float(self.target().distance(np.asarray(self.features(np.clip(x, -1, 1)))))

    def _prior(self, keys: Any) -> Any:
        return self.model.sde.prior_sample(keys, (self.batch_size, *self.model.image_shape))

    def _table(self, setting: Setting, nfe: int) -> Tableau:
        return setting.table(self.model.sde, nfe, t_end=self.t_end, denoise=self.denoise)

    def _run(self, table: Tableau, start: int, key: Any) -> np.ndarray:
        keys = random.sample_keys(key, np.arange(start, start + self.batch_size))
        return self.run_from(table, self._prior(keys), keys)
