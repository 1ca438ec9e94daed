"""Train a classifier of clean images: python benchmarks/train_judge.py mnist|fashion_mnist DATA OUTPUT.npz

Prints the accuracy on the test images. The two that ship were made with this.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import track

from psld_jax.data import Dataset, open_dataset
from psld_jax.data.pipeline import Batches
from psld_jax.metrics import ImageClassifier

EPOCHS, BATCH, SEED = 4, 64, 1

#: Pixels by which training images are shifted, and whether they are mirrored.
AUGMENT = {"mnist": (2, False), "fashion_mnist": (1, True)}


def shifted(images: np.ndarray, rng: np.random.Generator, reach: int) -> np.ndarray:
    """Images moved by up to ``reach`` pixels each way, black where nothing was."""
    padded = np.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)], constant_values=-1)
    moved, (height, width) = np.empty_like(images), images.shape[1:3]
    for i, (row, column) in enumerate(rng.integers(0, 2 * reach + 1, (len(images), 2))):
        moved[i] = padded[i, row : row + height, column : column + width]
    return moved


def train_judge(train: Dataset, test: Dataset, epochs: int, reach: int, flip: bool) -> tuple[ImageClassifier, float]:
    """A classifier of square images with labels, trained on one set; and its accuracy on the other."""
    batches = Batches(train, BATCH, SEED, flip=flip)
    steps = epochs * batches.steps_per_epoch
    classes = len(train.class_names or ())
    net = ImageClassifier(classes, image_size=train.image_shape[0], rngs=nnx.Rngs(params=SEED))
    graph, params = nnx.split(net)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, 3e-3), weight_decay=1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = nnx.merge(graph, params)(images)
            smooth = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.05)
            return optax.softmax_cross_entropy(logits, smooth).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(SEED)
    with contextlib.closing(batches.iterate()) as source:
        for k, batch in zip(track(range(steps)), source, strict=False):
            images = shifted(batch["image"], rng, reach)
            params, state, value = step(params, state, jnp.asarray(images), jnp.asarray(batch["label"]))
            if k % 200 == 0:
                print(f"step {k}: loss {float(value):.4f}", flush=True)
    net = nnx.merge(graph, params)
    images, labels = test.gather(np.arange(len(test)))
    predict, right = jax.jit(lambda x: net(x).argmax(-1)), 0
    for start in range(0, len(test), 250):
        x = images[start : start + 250]
        x = x if x.dtype == np.float32 else x / np.float32(127.5) - 1
        right += int((np.asarray(predict(x)) == labels[start : start + 250]).sum())
    return net, right / len(test)


def main(name: str, path: str, output: str) -> None:
    options: dict[str, Any] = {"image_size": 32, "fit": "pad", "labels": True}
    train, test = (open_dataset(name, path, split, **options) for split in ("train", "test"))
    net, accuracy = train_judge(train, test, EPOCHS, *AUGMENT[name])
    net.save(Path(output))
    print(f"{name}: accuracy {accuracy:.4f} on {len(test):,} test images")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in AUGMENT:
        sys.exit(__doc__)
    main(*sys.argv[1:])
