"""Names of weights in a state dict: the prefixes of wrappers, and entries that are no weights."""

from __future__ import annotations

import re

#: What trainers and wrappers put before the names of a network's weights, one behind the other in any order.
ONLINE = ("score_fn", "clf_fn", "module", "_orig_mod", "model", "net", "network", "online_model", "unet")
EMA = ("ema_score_fn", "ema", "ema_model", "ema_net", "model_ema")

_WEIGHT = re.compile(r"(.*\.)?(weight|bias|W|b)")
_MEASURE = re.compile(r"(^|[._])(fid|kid|metrics?|inception|lpips|loss|accuracy)([._]|$)", re.IGNORECASE)


def split(name: str) -> tuple[str, str]:
    """Split a name into prefix, with its last dot, and rest: ``("module.score_fn.", "all_modules.0.weight")``."""
    words = name.split(".")
    count = 0
    while count < len(words) - 1 and words[count] in ONLINE + EMA:
        count += 1
    return "".join(f"{word}." for word in words[:count]), ".".join(words[count:])


def is_average(prefix: str) -> bool:
    """Tell whether a prefix is that of an average of the weights."""
    return any(word in EMA for word in prefix.split("."))


def is_buffer(name: str) -> bool:
    """Tell whether a tensor that belongs to no network may be left out: a counter, or a part of a measure."""
    return _WEIGHT.fullmatch(name) is None or _MEASURE.search(name) is not None
