"""The conditions that ``config.steer`` asks for, and the images that they are taken from."""

from __future__ import annotations

import warnings
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.errors import why
from psld_jax.build.model import Model
from psld_jax.build.parts import build_data
from psld_jax.conditioning import operators
from psld_jax.conditioning.inpainting import check_mask
from psld_jax.data import Dataset

#: Sizes further apart than by this factor are told.
_FAR = 2.0
#: Fields of guidance whose names and values are those of :class:`psld_jax.Steering`.
_GUIDANCE = ("guidance_schedule", "guidance_rule", "guidance_rescale")


def has_guidance(steer: Any) -> bool:
    """Tell whether guidance has something to act on: a label, a worse network, the gradient of a measurement."""
    by_gradient = steer.operator and (steer.posterior != "conjugate" or steer.null_weight)
    return bool(steer.labels or steer.negative or by_gradient)


def steer_options(config: Any, model: Model) -> tuple[dict[str, Any], np.ndarray | None, np.ndarray | None]:
    """Return what ``config.steer`` asks for, as fields of :class:`psld_jax.Steering`.

    Returns:
      The fields; the images that known pixels or a measurement are taken from, and what the sampler sees of them as
      images of the same size, float32 ``[n, H, W, C]`` in [-1, 1]; ``None`` if there are none.

    Raises:
      ValueError: for an unknown mask or operator, or without images to take them from.
    """
    c, n = config.steer, config.sampling.num_samples
    options: dict[str, Any] = {}
    guided = {"guidance": c.guidance, "negative": c.negative or None}
    if c.labels:
        options |= {"label": np.resize(np.asarray(c.labels), n), "classifier": c.classifier or None, **guided}
    elif c.negative:
        options |= guided
    elif c.classifier:
        raise ValueError("config.steer.classifier guides towards config.steer.labels, which is empty")
    if c.clip:
        options |= {"clip": c.clip, "clip_percentile": c.clip_percentile or None, "clip_noise": c.clip_noise}
    if c.momentum:
        options |= {"momentum": c.momentum, "momentum_decay": c.momentum_decay}
    if has_guidance(c):
        options |= {name: c[name] for name in _GUIDANCE} | {"interval": tuple(c.interval)}
        options["sigma_interval"] = tuple(c.sigma_interval) or None
    if not (c.mask or c.operator):
        return options, None, None
    truth = seen = test_images(model, n)
    if len(truth) < n:
        raise ValueError(f"config.sampling.num_samples={n} is more than the {len(truth)} test images")
    mask = None
    if c.mask:
        mask = _mask(c.mask, model)
        check_mask(mask, truth.shape)
        seen = np.where(mask == 1, truth, 0).astype(np.float32)
    if c.mask and c.operator != "mask":
        options |= {"known": truth, "mask": mask, "fresh": c.fresh, "resample": c.resample, "jump": c.jump}
    if c.operator:
        channels = truth.shape[-1]
        operator = operators.by_name(c.operator, factor=c.factor, std=c.blur, known=mask, channels=channels)
        clean = np.asarray(operator(jnp.asarray(truth)))
        noise = np.random.default_rng(config.seed).standard_normal(clean.shape)
        measurement = (clean + c.noise_std * noise).astype(np.float32)
        options |= {"operator": operator, "measurement": measurement}
        options |= {name: c[name] for name in ("noise_std", "posterior", "weight", "null_weight", "t_start")}
        seen = measurement
        for axis in (1, 2, 3):
            seen = seen.repeat(truth.shape[axis] // measurement.shape[axis], axis=axis)
    return options, truth, seen


def _mask(name: str, model: Model) -> np.ndarray:
    """Return the mask ``[1, H, W, 1]`` of that name, or from that file."""
    if not name.endswith(".npy"):
        return operators.half_mask(name, model.image_shape)
    try:
        mask = np.load(name, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"config.steer.mask={name!r} cannot be read: {why(error)}") from None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2:
        raise ValueError(f"config.steer.mask={name!r} must hold one array [H, W] of 0 and 1")
    return mask[None, ..., None]


def test_images(model: Model, n: int) -> np.ndarray:
    """Return the first ``n`` test images of ``config.data``, or of the data of an exact score; fewer if there are.

    Float32 ``[n, H, W, C]`` in [-1, 1].
    """
    if model.data is not None:
        return model.data[:n]
    data = build_data(model.config, "test")
    return to_images(data, np.arange(min(n, len(data))))


def warn_of_data_std(config: Any, data: Dataset) -> None:
    """Warn if a network is preconditioned for data of another size than these, by a factor of 2.

    The size of data is the root mean square of the pixels: that of the first images, as many as a batch of training
    has. It is the standard deviation of data whose mean is 0, the grey between black and white.
    """
    m = config.model
    field, told = "model.data_std", m.data_std
    if m.name == "edm" and m.edm.precondition == "edm":
        field, told = "model.edm.sigma_data", m.edm.sigma_data
    if not told:
        return
    count = min(config.train.batch_size, len(data))
    own = float(np.sqrt(np.mean(np.square(to_images(data, np.arange(count))))))
    if not 1 / _FAR < own / told < _FAR:
        warnings.warn(
            f"config.{field}={told:g} is far from the root mean square of the data, {own:.3g} over the first {count} "
            "images: the network is scaled for other data",
            stacklevel=2,
        )


def to_images(data: Dataset, numbers: np.ndarray) -> np.ndarray:
    """Return images of a data set, float32 ``[n, H, W, C]`` in [-1, 1], for ``numbers [n]``."""
    images = data.gather(numbers)[0]
    return images / np.float32(127.5) - 1 if images.dtype == np.uint8 else images
