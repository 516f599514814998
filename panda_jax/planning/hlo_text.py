"""HLO text, as compiled programs print it, read into instructions."""

import dataclasses
import functools
import math
import re

import numpy as np

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_LINE = re.compile(r"\s*(ROOT )?%([\w.\-]+) = (.*)")
_START = re.compile(r"(?:ENTRY )?%([\w.\-]+) \(.*\{\s*$")


@dataclasses.dataclass(frozen=True)
class Part:
    """One array of a shape: bytes as stored, and whether in main memory."""

    dims: tuple[int, ...]
    bytes: float
    main: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      parts: the arrays of its result.
      operands: the names of its arguments.
      literal: what stands in its parentheses.
      rest: its attributes.
      root: whether it is its computation's result.
    """

    name: str
    opcode: str
    parts: tuple[Part, ...]
    operands: tuple[str, ...]
    literal: str
    rest: str
    root: bool

    @functools.cached_property
    def moved(self) -> float:
        """Bytes of its result in main memory."""
        return sum(part.bytes for part in self.parts if part.main)

    @property
    def whole(self) -> float:
        """Bytes of its result, wherever."""
        return sum(part.bytes for part in self.parts)

    def called(self, name: str) -> list[str]:
        """The computations that attribute `name` gives."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return _NAME.findall(found[1]) if found else []

    def sizes(self, name: str) -> tuple[int, ...]:
        """The numbers of attribute `name={1,2}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.rest)
        return _numbers(found[1]) if found else ()


Computation = dict[str, Instruction]


def read(text: str) -> tuple[dict[str, Computation], str]:
    """A module's computations by name, and the name of the entry's."""
    found: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        start = _START.match(line)
        if start:
            current = found[start[1]] = {}
            if line.startswith("ENTRY"):
                entry = start[1]
        elif match := _LINE.match(line):
            one = _parsed(match[2], match[3], bool(match[1]))
            current[one.name] = one
    return found, entry


def root(body: Computation) -> Instruction:
    """The result of a computation."""
    (found,) = (each for each in body.values() if each.root)
    return found


def _parsed(name: str, text: str, root: bool) -> Instruction:
    """`shape opcode(operands), attributes`."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    begin = text.index("(")
    end = begin + _closing(text[begin:])
    inside = text[begin + 1 : end - 1]
    return Instruction(
        name=name,
        opcode=text[:begin],
        parts=tuple(_part(*found) for found in _SHAPE.findall(shape)),
        operands=tuple(_NAME.findall(inside)),
        literal=inside,
        rest=text[end:],
        root=root,
    )


def _closing(text: str) -> int:
    """Just past the parenthesis that closes the first."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at + 1
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _part(kind: str, dims: str, layout: str) -> Part:
    """An array; `S(1)` and on in a layout is memory on the chip."""
    size = _numbers(dims)
    bits = 8 if kind == "pred" else 0
    if not bits:
        digits = re.search(r"\d+", kind)
        bits = int(digits[0]) if digits else 0
    space = re.search(r"S\((\d+)\)", layout)
    return Part(
        size, math.prod(size) * bits / 8, space is None or space[1] == "0"
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def convolution_flops(one: Instruction, within: Computation) -> float:
    """Multiplications that are not with padding, twice.

    The TPU compiler makes every matrix product a convolution, its batch a
    dilated window.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    assert found is not None
    left, right, out = found[1], found[2], found[3]
    given = within[one.operands[0]].parts[0].dims
    kernel = within[one.operands[1]].parts[0].dims
    made = one.parts[0].dims
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    fields = dict(
        item.split("=") for item in (window[1] if window else "").split()
    )

    def field(name: str, axis: int, default: int) -> int:
        values = re.split("x", fields[name]) if name in fields else []
        return int(values[axis].split("_")[0]) if values else default

    total = 2.0 * made[out.index("b")] * made[out.index("f")]
    total *= kernel[right.index("i")]
    for axis in range(len(left) - 2):
        label = str(axis)
        dilated = field("lhs_dilate", axis, 1)
        outs = np.arange(made[out.index(label)])[:, None]
        taps = np.arange(kernel[right.index(label)])[None]
        at = (
            outs * field("stride", axis, 1)
            + taps * field("rhs_dilate", axis, 1)
            - field("pad", axis, 0)
        )
        last = (given[left.index(label)] - 1) * dilated
        total *= int(((at >= 0) & (at <= last) & (at % dilated == 0)).sum())
    return total
