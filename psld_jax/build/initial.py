"""The network that training begins with."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from psld_jax.build.model import open_network
from psld_jax.build.parts import network_options
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.models import NCSNpp, NCSNppClassifier, families


def initial_network(config: Any) -> Any:
    """Make the network that ``config.model`` describes: weights from ``config.seed``, then ``config.train.init``.

    Raises:
      ValueError: if the network in ``config.train.init`` has arrays that this one has not, or of another shape.
    """
    # The network takes longer to make than to refuse.
    given = _arrays(config.train.init) if config.train.init else {}
    options, rngs = network_options(config), nnx.Rngs(params=config.seed)
    if config.model.name == "ncsnpp_clf":
        net = NCSNppClassifier(options, config.model.n_classes, rngs=rngs)
    elif config.model.name in families.available():
        net = families.get(config.model.name)(options, rngs=rngs)
    else:
        net = NCSNpp(options, rngs=rngs)
    if not given:
        return net
    graph, state = nnx.split(net)
    own = checkpoint.flatten(_text_keys(nnx.to_pure_dict(state)))
    wrong = [path for path in given if path not in own or own[path].shape != given[path].shape]
    if wrong:
        raise ValueError(f"config.train.init={config.train.init!r} does not fit the network in {', '.join(wrong[:5])}")
    merged = checkpoint.unflatten((path.split("/"), jnp.asarray(given.get(path, array))) for path, array in own.items())
    nnx.replace_by_pure_dict(state, merged)
    return nnx.merge(graph, state)


def _arrays(directory: str) -> dict[str, Any]:
    """Read the arrays of the network in ``config.train.init``, by their paths."""
    try:
        return checkpoint.flatten(open_network(directory, "")[1])
    except ValueError as error:
        raise ValueError(f"config.train.init: {error}") from error


def _text_keys(tree: Any) -> Any:
    return {str(key): _text_keys(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
