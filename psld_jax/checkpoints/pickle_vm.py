"""A pickle machine that can describe a PyTorch checkpoint and do nothing else.

It never imports, calls or sets anything that the pickle names. A name is checked against the lists below and becomes
an inert :class:`Global`; "calling" one yields a description (:class:`TensorRef`, an empty dict) or an :class:`Opaque`
that remembers the name alone. Only the opcodes of protocols 2 to 5 are known. There is no recursion, and an opcode
costs time and memory in proportion to its own bytes whatever the memo holds, so the two limits bound the whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from psld_jax.checkpoints.pickle_names import (
    ITEM_SIZES,
    OPAQUE_LIBRARIES,
    OPAQUE_NAMES,
    STORAGES,
    Global,
    Opaque,
    StorageRef,
    TensorRef,
    clip,
)

MAX_BYTES = 32 * 2**20
MAX_OPCODES = 2_000_000
_MAX_LONG = 16  # bytes; the largest integer that torch writes has 10
_MAX_NAME = 1000  # characters
_MAX_AXES = 16
_MAX_KEY = 2**31  # larger integers could be chosen to collide in a dict


def unpickle(data: bytes, start: int = 0) -> tuple[Any, int, dict[str, StorageRef]]:
    """Return the object that ``data[start:]`` describes, where its pickle ends, and the storages that it mentions.

    Raises:
      ValueError: for anything malformed, not accepted, or beyond ``MAX_BYTES`` or ``MAX_OPCODES``.
    """
    machine = _Machine(data, start)
    return machine.run(), machine.at, machine.storages


class _Machine:
    """A machine that runs one pickle. The class chooses what the pickle may name.

    Args:
      data: what holds the pickle.
      start: where it begins.
    """

    #: What each name that is understood stands for: a method of the machine, given the arguments of the call.
    constructors: Mapping[str, Callable[..., Any]]
    #: Names that may occur and are not needed.
    opaque_names: frozenset[str] = OPAQUE_NAMES
    opaque_libraries: tuple[str, ...] = OPAQUE_LIBRARIES
    #: Ends the error about any other name.
    needs: str = (
        "which a state dict does not need; nothing was executed. If you trust the file, load it in PyTorch and save "
        "{'state_dict': ...} with tensors only"
    )

    def __init__(self, data: bytes, start: int):
        self.data, self.at, self.end = data, start, min(len(data), start + MAX_BYTES)
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)
            if opcode == b".":
                return self.pop()
            handler = _OPCODES.get(opcode)
            if handler is None:
                self.fail(f"opcode {opcode!r} is not accepted; torch.save writes pickle protocol 2 without it")
            handler(self)
        self.fail(f"more than {MAX_OPCODES} opcodes")

    def fail(self, reason: str) -> NoReturn:
        raise ValueError(f"the pickle is not accepted at byte {self.at}: {reason}")

    # Reading.

    def take(self, n: int) -> bytes:
        if n > self.end - self.at:
            self.fail(f"it goes on for {n} bytes beyond its end or beyond the limit of {MAX_BYTES} bytes")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail("a string is not UTF-8")

    def string(self, n: int) -> Any:
        """Return what stands for a string of ``n`` bytes."""
        return self.text(self.take(n))

    def raw(self, n: int) -> Any:
        """Return what stands for a bytes object of ``n`` bytes."""
        return self.take(n)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, min(self.at + _MAX_NAME, self.end))
        if end < 0:
            self.fail("a name has no end")
        return self.text(self.take(end + 1 - self.at)[:-1])

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("the stack is empty")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            self.fail("there is no mark on the stack")
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def pop_tuple(self, n: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(n)][::-1])

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    # Opcodes.

    def protocol(self) -> None:
        if not 2 <= (version := self.number("<B")) <= 5:
            self.fail(f"protocol {version} is not accepted, 2 to 5 are")

    def frame(self) -> None:
        if self.number("<Q") > self.end - self.at:
            self.fail("a frame is longer than the pickle")

    def long(self, code: str) -> None:
        if not 0 <= (n := self.number(code)) <= _MAX_LONG:
            self.fail(f"an integer of {n} bytes is not accepted, at most {_MAX_LONG} are")
        self.push(int.from_bytes(self.take(n), "little", signed=True))

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Opaque:
            self.fail(f"appends to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2:
            self.fail("a key has no value")
        if type(target) is dict:
            self.fill(target, zip(items[::2], items[1::2], strict=True))
        elif type(target) is not Opaque:
            self.fail(f"sets an item of a {type(target).__name__}")

    def fill(self, target: dict[Any, Any], items: Any) -> None:
        for key, value in items:
            # Other keys are replaced: hashing nested tuples or chosen numbers can take forever, and none is needed.
            plain = type(key) in (str, bool, type(None), Global) or (type(key) is int and abs(key) < _MAX_KEY)
            key = key if plain else Opaque("a key")
            if key in target:
                self.fail(f"a dict has the key {clip(str(key))} twice")
            target[key] = value

    def get(self, code: str) -> None:
        if (index := self.number(code)) not in self.memo:
            self.fail(f"nothing was stored under {index}")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or len(module) + len(name) > _MAX_NAME:
            self.fail(f"a name is not a string of at most {_MAX_NAME} characters")
        path = f"{module}.{name}"
        known = path in self.opaque_names or path in self.constructors
        if not (known or module.split(".")[0] in self.opaque_libraries):
            self.fail(f"it refers to {clip(path)}, {self.needs}")
        self.push(Global(path))

    def stack_global(self) -> None:
        self.find(*self.pop_tuple(2))

    def construct(self, function: Any, arguments: Any) -> None:
        if type(function) is not Global:
            self.fail(f"calls a {type(function).__name__}, not a name")
        if type(arguments) is not tuple:
            self.fail(f"calls {clip(function.name)} with arguments that are no tuple")
        make = self.constructors.get(function.name)
        self.push(Opaque(function.name) if make is None else make(self, *arguments[:8]))

    def build(self) -> None:
        # The state of any object is dropped: nothing needs it (an OrderedDict's holds module versions).
        self.pop()
        if type(target := self.top()) not in (dict, Opaque, TensorRef):
            self.fail(f"sets the state of a {type(target).__name__}")

    def new_ex(self) -> None:
        cls, arguments, _ = self.pop_tuple(3)
        self.construct(cls, arguments)

    def persistent(self) -> None:
        match self.pop():
            case ("storage", Global(name), str(key), str(), int(numel)):
                pass
            case ("storage", Global(name), str(key), str(), int(numel), None):  # legacy: not a view of another storage
                pass
            case _:
                self.fail("a persistent id does not describe a storage as torch.save has written it since 0.4")
        kind = name.rpartition(".")[2]
        dtype = STORAGES.get(kind, "")
        if not (dtype or kind.endswith("UntypedStorage")):
            self.fail(f"{clip(name)} is no storage type")
        if not 0 <= numel < 2**60:
            self.fail(f"a storage has {numel} elements")
        storage = StorageRef(key, dtype, numel * ITEM_SIZES.get(dtype, 1))
        self.storages.setdefault(key, storage)
        self.push(storage)

    # What the names that are understood stand for. Extra arguments (gradients, hooks) do not matter.

    def ordered_dict(self, *arguments: Any) -> dict[Any, Any]:
        if arguments:
            self.fail("an OrderedDict is not made empty and then filled, as Python 3 writes it")
        return {}

    def size(self, shape: Any = (), *_: Any) -> tuple[int, ...]:
        if type(shape) is not tuple or len(shape) > _MAX_AXES or not all(type(n) is int for n in shape):
            self.fail(f"a shape, or strides, is not a tuple of at most {_MAX_AXES} integers")
        return shape

    def parameter(self, data: Any = None, *_: Any) -> Any:
        return data

    def tensor(self, storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *etc: Any) -> Any:
        if type(storage) is not StorageRef:
            self.fail("a tensor has no storage")
        if any(etc[2:]):  # behind gradient and hooks, what is to be done with the data, such as {"neg": True}
            self.fail("a tensor is the negative of its data: call resolve_neg() of it in PyTorch, and save it again")
        return self.view(storage, storage.dtype, offset, shape, strides)

    def tensor_v3(self, *arguments: Any) -> Any:
        storage, offset, shape, strides, _, _, dtype = (*arguments, *[None] * 7)[:7]
        if type(storage) is not StorageRef or type(dtype) is not Global:
            self.fail("a tensor has no storage or no dtype")
        return self.view(storage, dtype.name.removeprefix("torch."), offset, shape, strides)

    def view(self, storage: StorageRef, dtype: str, offset: Any, shape: Any, strides: Any) -> TensorRef:
        if dtype not in ITEM_SIZES:
            self.fail(f"tensors of dtype {clip(dtype)} are not accepted: {', '.join(ITEM_SIZES)} are")
        shape, strides = self.size(shape), self.size(strides)
        if type(offset) is not int or len(shape) != len(strides):
            self.fail("a tensor's offset, shape and strides do not fit together")
        count, last = 1, offset
        for n, stride in zip(shape, strides, strict=True):
            count, last = count * n, last + (n - 1) * stride
        if min(offset, *shape, *strides, 0) < 0:
            self.fail(f"a tensor has a negative offset, size or stride: {offset}, {shape}, {strides}")
        # The number of elements too: strides of 0 could ask for any size from one element.
        if count and max(last + 1, count) * ITEM_SIZES[dtype] > storage.size:
            self.fail(
                f"a tensor of shape {shape}, strides {strides} and offset {offset} does not fit its storage of "
                f"{storage.size} bytes"
            )
        return TensorRef(storage, dtype, offset, shape, strides)


_Machine.constructors = {
    "collections.OrderedDict": _Machine.ordered_dict,
    "torch.Size": _Machine.size,
    "torch._utils._rebuild_parameter": _Machine.parameter,
    "torch._utils._rebuild_parameter_with_state": _Machine.parameter,
    "torch._utils._rebuild_tensor": _Machine.tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch._utils._rebuild_tensor_v3": _Machine.tensor_v3,
}

_OPCODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": _Machine.protocol,
    b"\x95": _Machine.frame,
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: m.pop(),
    b"1": lambda m: m.pop_mark(),
    b"2": lambda m: m.push(m.top()),
    # Constants and numbers.
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8a": lambda m: m.long("<B"),
    b"\x8b": lambda m: m.long("<i"),
    # Strings and bytes.
    b"X": lambda m: m.push(m.string(m.number("<I"))),
    b"\x8c": lambda m: m.push(m.string(m.number("<B"))),
    b"\x8d": lambda m: m.push(m.string(m.number("<Q"))),
    b"C": lambda m: m.push(m.raw(m.number("<B"))),
    b"B": lambda m: m.push(m.raw(m.number("<I"))),
    b"\x8e": lambda m: m.push(m.raw(m.number("<Q"))),
    b"\x96": lambda m: m.push(m.raw(m.number("<Q"))),
    # Containers; sets become lists, because nothing here needs to be hashed.
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push(m.pop_tuple(1)),
    b"\x86": lambda m: m.push(m.pop_tuple(2)),
    b"\x87": lambda m: m.push(m.pop_tuple(3)),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.set_items([*m.pop_tuple(2)]),
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"\x8f": lambda m: m.push([]),
    b"\x90": lambda m: m.extend(m.pop_mark()),
    b"\x91": lambda m: m.push(m.pop_mark()),
    # The memo.
    b"h": lambda m: m.get("<B"),
    b"j": lambda m: m.get("<I"),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    # Names and what is made from them.
    b"c": lambda m: m.find(m.line(), m.line()),
    b"\x93": _Machine.stack_global,
    b"R": lambda m: m.construct(*m.pop_tuple(2)),
    b"\x81": lambda m: m.construct(*m.pop_tuple(2)),
    b"\x92": _Machine.new_ex,
    b"b": lambda m: m.build(),
    b"Q": lambda m: m.persistent(),
}
