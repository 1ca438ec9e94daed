"""The Inception-v3 that FID, KID and Inception Score are defined with, from its PyTorch weights; inference only.

The network of TensorFlow's ``inception-2015-12-05`` (Szegedy et al., 2016), as Heusel et al. (2017) used it. Its
weights were ported to PyTorch once, and pytorch-fid and torch-fidelity both take that file. It differs from
torchvision's Inception-v3: 1008 classes; average pools that do not count their padding; a maximum for the average pool
of the last block.
"""

from __future__ import annotations

import functools
import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from psld_jax._runtime.abstract import shapes_of
from psld_jax._runtime.errors import check_choice, check_kind, why
from psld_jax._runtime.levels import LEVELS, image_levels
from psld_jax.checkpoints.reader import read_checkpoint
from psld_jax.metrics.features import Features
from psld_jax.metrics.inception_network import CLASSES, POOL3, RESIZES, InceptionV3, resize

Array = Any

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

OUTPUTS = ("pool3", "logits", "logits_unbiased")

_EPSILON = 1e-3  # of the batch norms
_CHUNK = 2**18


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_inception(path: str | os.PathLike[str], *, sha256: str | None = SHA256) -> InceptionV3:
    """Read the network with the weights of a file that torch.save wrote. Nothing from the file is executed.

    Batch norms are folded: ``w <- w g``, ``b <- beta - mean g`` with ``g = gamma / sqrt(var + 0.001)``, in float64.
    ``AuxLogits.*`` and ``*.num_batches_tracked`` are ignored.

    Args:
      path: a state dict with torchvision's names; :func:`download` fetches the one of FID.
      sha256: hexadecimal digest of the file, by default that of FID's weights; ``None`` accepts any file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for another digest, a file that is no checkpoint, or a tensor that is missing, of another shape, or
        leads to NaN or infinite weights.
    """
    check_kind("path", path, (str, os.PathLike), "the file of the weights, as text or a path")
    path = Path(path)
    if sha256 is not None and (found := _digest(path)) != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: delete it and download it again from {URL}")
    graph, state = nnx.split(shapes_of(lambda rngs: InceptionV3(rngs=rngs)))
    shapes = nnx.to_pure_dict(state)
    with read_checkpoint(path) as checkpoint:

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if name not in checkpoint:
                raise ValueError(f"{path} holds no {name!r}: it is not the state dict of an Inception-v3")
            if checkpoint[name].shape != shape:
                raise ValueError(f"{name!r} in {path} has shape {checkpoint[name].shape}; FID's Inception has {shape}")
            return checkpoint[name].read().astype(np.float64)

        def layer(name: str, kernel: np.ndarray, bias: np.ndarray) -> dict[str, Array]:
            if not np.isfinite(kernel).all() or not np.isfinite(bias).all():
                raise ValueError(f"the weights of {name!r} in {path} are not finite, or a variance is negative")
            return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

        values: dict[str, Any] = {"convs": {}}
        for name, shape in shapes["convs"].items():
            *kernel, width, channels = shape["kernel"].shape
            weight = read(f"{name}.conv.weight", (channels, width, *kernel))
            vectors = ("weight", "bias", "running_mean", "running_var")
            gamma, beta, mean, variance = (read(f"{name}.bn.{vector}", (channels,)) for vector in vectors)
            with np.errstate(invalid="ignore", divide="ignore"):  # what comes of it is looked at
                scale = gamma / np.sqrt(variance + _EPSILON)
            values["convs"][name] = layer(name, weight.transpose(2, 3, 1, 0) * scale, beta - mean * scale)
        values["fc"] = layer("fc", read("fc.weight", (CLASSES, POOL3)).T, read("fc.bias", (CLASSES,)))
    nnx.replace_by_pure_dict(state, values)
    return nnx.merge(graph, state)


def download(
    path: str | os.PathLike[str], *, url: str = URL, sha256: str = SHA256, console: Console | None = None
) -> Path:
    """Fetch the weights to ``path`` (91 MB), unless they are there; returns ``path``.

    They are written beside it under another name, and renamed when they are whole: nothing half-written is left.

    Raises:
      ValueError: if what came, or a file that is there already, has another SHA-256.
      OSError: if they cannot be fetched or written.
    """
    path, console = Path(path), console or Console(stderr=True)
    if path.exists():
        if (found := _digest(path)) != sha256:
            raise ValueError(f"{path} is there with the SHA-256 {found}, not {sha256}: delete it, or take another path")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, digest = path.with_name(f".{path.name}.{os.getpid()}.part"), hashlib.sha256()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, temporary.open("wb") as file, progress:
            size = response.headers.get("Content-Length")
            task = progress.add_task(path.name, total=int(size) if size else None)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                progress.advance(task, len(chunk))
        if digest.hexdigest() != sha256:
            raise ValueError(f"{url} sent a file with the SHA-256 {digest.hexdigest()}, not {sha256}; try again")
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"{url} cannot be fetched to {path}: {why(error)}; fetch it by other means and put it there"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


# The weights are an argument: as constants of the program they would be compiled, and kept once for each program.
@functools.partial(jax.jit, static_argnames=("graph", "how", "output"))
def _outputs(graph: Any, state: Any, levels: Array, how: str, output: str) -> Array:
    net = nnx.merge(graph, state)
    pool3 = net(resize(levels, how))
    return pool3 if output == "pool3" else net.logits(pool3, bias=output == "logits")


def inception_features(
    weights: str | os.PathLike[str] | InceptionV3,
    resize: str = "tf1",
    *,
    levels: str = "truncate",
    output: str = "pool3",
) -> Features:
    """Inception features of images ``[n, H, W, C]`` in [-1, 1], or of uint8 ones, with 1 or 3 channels.

    Float images are made levels first (:func:`image_levels`), as files of them would hold.

    Args:
      weights: the file for :func:`read_inception`, or what that returned.
      resize: ``"tf1"`` or ``"torch"`` (:func:`resize`).
      levels: ``"truncate"`` or ``"round"``; has no effect on uint8 images.
      output: ``"pool3"`` ``[n, 2048]`` (FID, KID, precision and recall), ``"logits"`` or ``"logits_unbiased"``
        ``[n, 1008]`` (Inception Score). For both at once take ``pool3``, and :meth:`InceptionV3.logits` of it.

    Returns:
      features whose name says what is above, e.g. ``"inception-tf1-truncate"``.

    Raises:
      ValueError: for another name, or as :func:`read_inception`; when called, for another shape.
    """
    check_choice("resize", resize, RESIZES)
    check_choice("way to levels", levels, LEVELS)
    check_choice("output", output, OUTPUTS)
    net = weights if isinstance(weights, InceptionV3) else read_inception(weights)
    graph, state = nnx.split(net)
    suffix = "" if output == "pool3" else f"-{output}"

    def fn(images: Array) -> Array:
        return _outputs(graph, state, image_levels(images, levels), resize, output)

    return Features(f"inception-{resize}-{levels}{suffix}", fn, takes_levels=True)
