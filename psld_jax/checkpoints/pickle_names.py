"""The names that a checkpoint's pickle may mention, and the inert descriptions that stand for them."""

from __future__ import annotations

from typing import NamedTuple

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
ITEM_SIZES = {
    **{"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16, "bool": 1},
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

# Libraries and names that checkpoints mention outside the state dict, in callbacks and hyper-parameters.
OPAQUE_LIBRARIES = (
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "pytorch_lightning",
    "torchmetrics",
)
_BUILTINS = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"
_OPAQUE = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "_codecs": "encode",
    "argparse": "Namespace",
    "collections": "Counter defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": " ".join(["device", "UntypedStorage", *STORAGES, *ITEM_SIZES]),
    "torch.cuda": " ".join(STORAGES),
    "torch.serialization": "_get_layout",
    "torch.storage": "UntypedStorage _UntypedStorage",
    "typing": "Any",
}
OPAQUE_NAMES = frozenset(f"{module}.{name}" for module, names in _OPAQUE.items() for name in names.split())


class Global(NamedTuple):
    """A name in the pickle; nothing is imported."""

    name: str


class Opaque:
    """A stand-in for an object that is not understood and not needed. It remembers what made the object."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class StorageRef(NamedTuple):
    """A storage, named ``key``, of ``size`` bytes; ``dtype`` is empty if untyped."""

    key: str
    dtype: str
    size: int


class TensorRef(NamedTuple):
    """A view of a storage, of ``dtype`` and ``shape``; offset and strides in elements, checked to lie inside it."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def clip(value: str, limit: int = 80) -> str:
    """Quote a string, shortened for an error message."""
    return repr(value if len(value) <= limit else value[:limit] + "...")
