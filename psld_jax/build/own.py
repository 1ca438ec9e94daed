"""Models made of your own networks: any function of images and times, or a denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psld_jax import scores
from psld_jax._runtime.errors import check_callable, check_counts, is_count
from psld_jax.build.configuration import load_config, override
from psld_jax.build.model import Model
from psld_jax.sde import LinearSDE, OneBlock, check_sde


def from_function(
    predict: Callable[..., Any],
    sde: LinearSDE,
    image_shape: tuple[int, int, int],
    *,
    n_classes: int = 0,
    **options: Any,
) -> Model:
    """Make a model of your own network, which :func:`psld_jax.generate`, ``tune`` and everything else take.

    Args:
      predict: function of images ``[n, H, W, K C]`` and times ``[n]``, see :func:`psld_jax.scores.function`.
      sde: the diffusion it was trained for, e.g. ``psld_jax.sde.VPSDE(0.1, 20.0)``.
      image_shape: ``(H, W, C)``.
      n_classes: > 0: the network takes labels too, ``predict(images, times, labels)`` with integers ``[n]``, and none
        where there is no condition.
      options: ``predicts``, ``times``, ``inputs`` and ``channels_first`` of :func:`psld_jax.scores.function`.

    Raises:
      ValueError: for a shape that is no such triple, or as that function does.
    """
    check_sde(sde)
    check_counts(0, n_classes=n_classes)
    if isinstance(image_shape, (np.ndarray, jax.Array)):
        image_shape = np.asarray(image_shape).tolist()
    known = isinstance(image_shape, (tuple, list)) and len(image_shape) == 3
    if not known or not all(is_count(size) for size in image_shape):
        raise ValueError(f"image_shape={image_shape!r} must be (H, W, C), whole numbers of at least 1")
    check_callable("predict", predict, "a function of images and times")
    config = override(load_config("default"), {"model.name": "function"})
    if isinstance(sde, OneBlock) and sde.data_std is None:
        # The sampler is told what the network predicts: noise would say nothing of x_0 where there is no signal.
        sde = sde.predicting(options.get("predicts", "eps"))
    return Model(
        sde, scores.function(predict, sde, **options), config, tuple(map(int, image_shape)), n_classes=n_classes
    )


def from_denoiser(
    denoiser: Callable[..., Any],
    sde: LinearSDE,
    image_shape: tuple[int, int, int] | None = None,
    *,
    n_classes: int = 0,
    channels_first: bool = False,
) -> Model:
    """Make a model of a denoiser ``D(x, sigma)``, as EDM and k-diffusion have them.

    ``D`` is ``E[x_0 | x]`` for ``x = x_0 + sigma eps``. It is called with ``x_t / alpha`` and ``sde.sigma(t)``, so it
    works with every path of one block whose noise level is finite, whatever it was trained for.

    Args:
      denoiser: function of images ``[n, H, W, C]`` and noise levels ``[n]`` (and labels ``[n]``) to images.
      sde: the path to sample along, e.g. ``psld_jax.sde.EDM()``.
      image_shape: ``(H, W, C)``; without it the model denoises, but cannot draw samples of its own.
      n_classes: as for :func:`from_function`.
      channels_first: the denoiser takes and returns ``[n, C, H, W]``.

    Raises:
      ValueError: for a diffusion of more blocks, one that is preconditioned, or one without signal at ``t = 1``.
    """
    check_callable("denoiser", denoiser, "a function of images and noise levels")
    check_sde(sde)
    if not isinstance(sde, OneBlock):
        raise ValueError(f"a denoiser is a function of x and sigma, one block; {sde!r} has {sde.num_blocks}")
    options: dict[str, Any] = {"predicts": "data", "times": "sigma", "inputs": "data", "channels_first": channels_first}
    shape = (1, 1, 1) if image_shape is None or np.size(image_shape) == 0 else image_shape
    model = from_function(denoiser, sde, shape, n_classes=n_classes, **options)
    return model if shape is image_shape else dataclasses.replace(model, image_shape=())
