"""The pickles inside torch's files, read by a machine that can call nothing.

A pickle is a program.  This machine knows the few opcodes with which
`torch.save` writes dictionaries, lists, numbers, texts and tensors; a tensor
becomes a description (`Tensor`) of where its numbers lie.  Names of Python
objects are only ever compared with the list below, never looked up, so that
there is nothing a file could have executed.

The errors here do not name the file: whoever knows it adds it.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

from panda_jax.errors import UserError

PROTOCOL = 2

_MAPPING = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
# Storage class -> the name of its numbers' type.
STORAGES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
_KNOWN = {_MAPPING, _TENSOR, _PARAMETER, *STORAGES}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers.

    Attributes:
      dtype: their type, of `STORAGES`' values.
      key: the file's name for it.
      size: how many numbers it says it has.
    """

    dtype: str
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, in numbers, not bytes; nothing of it is checked.

    Attributes:
      storage: where its numbers lie.
      offset: of the first one.
      shape: as an array's.
      strides: steps in the storage, one an axis.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a Python object; only the name."""

    name: str


def load(data: bytes) -> Any:
    """What a pickle describes: dict, list, tuple, text, number or `Tensor`.

    Lists and dicts may contain themselves.

    Raises:
      UserError: it is damaged, or asks for anything beyond what a file of
        tensors needs; says for what.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "STOP":
                break
            machine.step(operation.name, argument)
        # Without one there was a ValueError.
        return machine.result()
    except (IndexError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"its pickle is damaged ({type(error).__name__}: {error})"
        ) from None


class _Machine:
    """A stack, the stacks below open marks, and the numbered memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        """The one value that is left."""
        if len(self.stack) != 1 or self.below:
            raise UserError("its pickle is damaged: it ends within a value")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        """Executes one opcode."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(items)))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise UserError(
                f"its pickle has the opcode {name}, which torch.save does not "
                "need for tensors; nothing of it was executed"
            )

    def proto(self, version: int) -> None:
        if version != PROTOCOL:
            raise UserError(
                f"its pickle is of protocol {version}, expected {PROTOCOL}: "
                "save it again with torch.save's default"
            )

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What was pushed since the last mark; takes the mark away."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def make_tuple(self, _: None) -> None:
        items = tuple(self.marked())
        self.stack.append(items)

    def append(self, _: None) -> None:
        self.extend([self.stack.pop()])

    def appends(self, _: None) -> None:
        self.extend(self.marked())

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items for something that is no list")
        self.stack[-1].extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def set_items(self, _: None) -> None:
        self.update(self.marked())

    def update(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if not isinstance(self.stack[-1], dict) or len(keys) != len(values):
            raise ValueError("entries for something that is no dictionary")
        # Other keys' hashes could be made to take for ever.
        if not all(isinstance(key, str | int) for key in keys):
            raise ValueError("a key that is neither text nor an integer")
        self.stack[-1].update(zip(keys, values, strict=True))

    def name(self, name: str) -> None:
        if name not in _KNOWN:
            raise UserError(
                f"its pickle asks for {'.'.join(name.split(' '))!r}, which is "
                "not among the names that plain tensors need; nothing of it "
                "was executed"
            )
        self.stack.append(_Global(name))

    def storage(self, _: None) -> None:
        match self.stack.pop():
            case ("storage", _Global(name), str(key), str(), int(size)) if (
                name in STORAGES
            ):
                self.stack.append(Storage(STORAGES[name], key, size))
            case _:
                raise ValueError("a reference that is no storage")

    def reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        match function, arguments:
            case _Global(name), () if name == _MAPPING:
                self.stack.append({})
            case _Global(name), (Tensor() as tensor, _, _) if (
                name == _PARAMETER
            ):
                self.stack.append(tensor)
            case (
                _Global(name),
                (Storage() as storage, offset, shape, strides, _, _, *_),
            ) if name == _TENSOR:
                self.stack.append(Tensor(storage, offset, shape, strides))
            case _:
                raise ValueError("a call that makes no tensor")

    def build(self, _: None) -> None:
        # The attributes of a state dictionary: versions of its modules.
        state = self.stack.pop()
        if not isinstance(state, dict) or not isinstance(self.stack[-1], dict):
            raise ValueError("attributes of something that is no dictionary")


_LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.proto,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
