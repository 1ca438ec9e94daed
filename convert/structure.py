"""Inferring the configuration of NCSN++ from the names and shapes of a state dict."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from psld_jax.models.structure import image_shape

Shape = tuple[int, ...]

_PAIR = ("weight", "bias")
_BLOCK = {f"{name}.{part}" for name in ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1") for part in _PAIR}
_ATTENTION = {f"GroupNorm_0.{part}" for part in _PAIR} | {f"NIN_{i}.{part}" for i in range(4) for part in "Wb"}

#: The parameters that tell a kind of module, in the original's names.
_KINDS: dict[str, set[str]] = {
    "fourier": {"W"},
    "classifier": {"weight"},
    "plain": set(_PAIR),  # told apart by the rank of the weight: norm, linear, conv
    "attention": _ATTENTION,
    "block": _BLOCK,
    "block ddpm": _BLOCK | {"NIN_0.W", "NIN_0.b"},
    "block biggan": _BLOCK | {"Conv_2.weight", "Conv_2.bias"},
    "resample": set(),
    "resample conv": {"Conv_0.weight", "Conv_0.bias"},  # or combine, which has a 1x1 kernel
    "resample fir": {"Conv2d_0.weight", "Conv2d_0.bias"},
}
_PLAIN = {1: "norm", 2: "linear", 4: "conv"}
#: Rank of a parameter by its last name and that of its module without the number.
_RANKS = {"Conv.weight": 4, "Conv2d.weight": 4, "Dense.weight": 2, "NIN.W": 2, "GroupNorm.weight": 1}


@dataclasses.dataclass(frozen=True)
class Structure:
    """The fields of a configuration that a state dict implies.

    Attributes:
      n_classes: of a classifier; ``None`` for a score network.
      fields: fields of :class:`psld_jax.models.NCSNppConfig` that are certain; others do not matter, or are ``open``.
      attention: the levels (0 is full resolution) that have attention.
      open: fields that matter and that no shape tells.
      sde: name of the diffusion, where the layout of the file tells it, else empty.
      fixed: fields of ``config.sde`` that the original has not: their defaults hold.
    """

    n_classes: int | None
    fields: dict[str, Any]
    attention: tuple[int, ...]
    open: tuple[str, ...]
    sde: str = ""
    fixed: tuple[str, ...] = ("jitter", "mixed")

    def attn_resolutions(self, image_size: Any) -> tuple[int, ...]:
        """Return the image sizes that have attention, for images of that size; the shorter side's, if it is a pair."""
        return tuple(min(image_shape(image_size)) // 2**level for level in self.attention)


@dataclasses.dataclass(frozen=True)
class _Module:
    index: int
    kind: str
    shapes: Mapping[str, Shape]

    @property
    def n_in(self) -> int:
        return self.shapes["GroupNorm_0.weight" if "GroupNorm_0.weight" in self.shapes else "weight"][-1]

    @property
    def n_out(self) -> int:
        return self.shapes["Conv_1.weight" if "Conv_1.weight" in self.shapes else "weight"][0]

    @property
    def in_body(self) -> bool:
        """Tell whether it belongs to a resolution, and not to the step between two."""
        return self.kind.startswith(("block", "attention")) and self.kind != "block step"


def infer(shapes: Mapping[str, Shape]) -> Structure:
    """Infer the structure of one network.

    Args:
      shapes: shape by name, ``all_modules.<i>....``, without the prefix of the network.

    Raises:
      ValueError: if the modules do not follow one another as in NCSN++, naming the first that does not fit.
    """
    modules = _modules(shapes)
    fields: dict[str, Any] = {"embedding_type": "positional"}
    start = 0
    if modules[0].kind == "fourier":
        fields["embedding_type"], start = "fourier", 1
    fields["noise_cond"] = any(module.kind == "linear" for module in modules[start : start + 1])
    start += 2 if fields["noise_cond"] else 0
    stem, *rest = modules[start:] or modules[-1:]
    if stem.kind != "conv":
        _fail(stem, "the first convolution")
    nf, fields["nf"], fields["in_ch"] = stem.n_out, stem.n_out, stem.shapes["weight"][1]

    # Bodies: the blocks and attentions of one resolution. Steps: what lies between them, and the end.
    groups = [list(group) for _, group in itertools.groupby(rest, lambda module: module.in_body)]
    bodies, steps = groups[0::2], groups[1::2]
    if not rest or not rest[0].in_body or len(bodies) != len(steps):
        _fail(rest[0] if rest else stem, "residual blocks after the first convolution, and an end after the last block")
    end = steps[-1]
    n_classes = end[-1].shapes["weight"][0] if end[-1].kind == "classifier" else None
    levels = len(bodies) if n_classes is not None else (len(bodies) + 1) // 2
    counts = [sum(module.kind.startswith("block") for module in body) for body in bodies]
    blocks = counts[0]
    if levels == 1:  # with the middle's two, and the way up
        blocks = blocks - 2 if n_classes is not None else (blocks - 3) // 2
    if blocks < 1 or nf < 1 or any(body[0].kind == "attention" or body[0].n_out % nf for body in bodies):
        _fail(bodies[0][0], "blocks whose channels are multiples of those of the first convolution")
    fields["num_res_blocks"] = blocks
    fields["ch_mult"] = tuple(body[0].n_out // nf for body in bodies[:levels])
    # The middle's attention comes after a block more than the level's own would.
    lowest = [module.kind for module in bodies[levels - 1]]
    attention = tuple(i for i in range(levels - 1) if any(module.kind == "attention" for module in bodies[i]))
    attention += (levels - 1,) if lowest[1:2] == ["attention"] else ()

    unknown = ["nonlinearity", "skip_rescale"]
    fields |= _block_fields(rest, steps, levels)
    fields |= _input_fields(steps[0], bodies[1][0].n_in) if levels > 1 else {}
    fields |= {"progressive": "none"} if n_classes is not None else _output_fields(steps, levels, fields["in_ch"])
    if "resblock_type" not in fields:
        unknown.append("resblock_type")
    if levels > 1 and fields.get("fir") is not False:
        unknown += ["fir_kernel"] if "fir" in fields else ["fir", "fir_kernel"]
    if n_classes is None:
        unknown.append("image_size")
    else:
        if bodies[-1][-1].kind == "attention":
            _fail(bodies[-1][-1], "a block before the classifier")
        # The number of pixels is known; that they are a square is a guess, which a configuration may correct.
        area = end[-1].n_in // bodies[-1][-1].n_out
        if math.isqrt(area) ** 2 == area:
            fields["image_size"] = math.isqrt(area) * 2 ** (levels - 1)
        else:
            unknown.append("image_size")
    return Structure(n_classes, fields, attention, tuple(unknown))


def _block_fields(modules: list[_Module], steps: list[list[_Module]], levels: int) -> dict[str, Any]:
    kinds, result = {module.kind for module in modules}, {}
    if kinds & {"block biggan", "block step"}:
        result["resblock_type"] = "biggan"
    elif "block ddpm" in kinds or levels > 1:
        result["resblock_type"] = "ddpm"
    if kinds & {"resample fir", "resample conv"}:
        result["fir"] = "resample fir" in kinds
    if levels > 1 and result["resblock_type"] == "ddpm":
        result["resamp_with_conv"] = steps[0][0].kind != "resample"
    return result


def _input_fields(step: list[_Module], following: int) -> dict[str, Any]:
    """Infer fields from the first step down, and the channels that enter the block after it."""
    if len(step) == 1:
        return {"progressive_input": "none"}
    if step[1].kind != "combine":
        return {"progressive_input": "residual"}
    combined = step[1].shapes["Conv_0.weight"][0]
    return {"progressive_input": "input_skip", "progressive_combine": "cat" if following == 2 * combined else "sum"}


def _output_fields(steps: list[list[_Module]], levels: int, in_ch: int) -> dict[str, Any]:
    """Infer fields from the first step up and the end. With one level, ``output_skip`` equals ``none``."""
    end = steps[-1]
    if end[-1].kind != "conv":
        _fail(end[-1], "a last convolution")
    if levels == 1:
        residual = len(end) == 4
    else:
        if steps[levels - 1][0].kind == "norm" and end[0].kind == "norm":
            n_out = next((module.n_out for module in steps[levels - 1] if module.kind == "conv"), in_ch)
            own = {} if n_out == in_ch else {"out_ch": n_out, "returns_in_ch": False}  # CLD-SGM's, else PSLD's
            return {"progressive": "output_skip", **own}
        residual = steps[levels - 1][0].kind == "norm"
    return {"progressive": "residual" if residual else "none", "out_ch": end[-1].n_out}


def _modules(shapes: Mapping[str, Shape]) -> list[_Module]:
    found: dict[int, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        match = re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", name)
        if match is None:
            raise ValueError(f"{name!r} is no parameter of NCSN++: all_modules.NUMBER.NAME is expected")
        found.setdefault(int(match[1]), {})[match[2]] = shape
    if not found:
        raise ValueError("the network has no parameters")
    # Resampling without parameters leaves a gap in the numbers.
    return [_module(i, found.get(i, {})) for i in range(max(found) + 1)]


def _module(index: int, shapes: Mapping[str, Shape]) -> _Module:
    kind = next((kind for kind, names in _KINDS.items() if names == set(shapes)), "unknown")
    for name, shape in shapes.items():
        rank = _RANKS.get(re.sub(r"_\d+\.", ".", name))
        if rank not in (None, len(shape)) or not shape or 0 in shape:
            kind = "unknown"
    module = _Module(index, kind, shapes)
    if kind == "plain":
        kind = _PLAIN.get(len(shapes["weight"]), "unknown")
    elif kind == "classifier" and len(shapes["weight"]) != 2:
        kind = "unknown"
    elif kind == "resample conv" and shapes["Conv_0.weight"][2:] == (1, 1):
        kind = "combine"
    elif kind == "block biggan" and module.n_in == module.n_out:
        kind = "block step"  # the only reason for its shortcut is that it resamples
    if kind == "unknown":
        _fail(module, "a module of NCSN++")
    return dataclasses.replace(module, kind=kind)


def _fail(module: _Module, expected: str) -> NoReturn:
    listed = ", ".join(f"{name} {shape}" for name, shape in list(module.shapes.items())[:12]) or "no parameters"
    raise ValueError(f"all_modules.{module.index} ({listed}) is not {expected}: this is no NCSN++ that can be inferred")
