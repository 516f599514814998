"""What a compiled step does, counted from its HLO text.

XLA's own cost analysis counts the body of a loop once, whatever its length.
Here a body counts as often as it runs: by the trip count that XLA has noted,
or by the constant that the loop's condition compares with.  A loop whose
length is only known when it runs counts once.
"""

import collections
import dataclasses
import math
import re

from panda_jax.planning import hlo_text
from panda_jax.planning.hlo_text import Computation, Instruction

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Neither move nor compute anything.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "optimization-barrier",
        "add-dependency",
        "domain",
    ]
)
# Called by name; their own line costs nothing more.
_CONTROL = {
    "while": ("body",),
    "call": ("to_apply", "called_computations"),
    "conditional": ("true_computation", "false_computation"),
    "async-start": ("calls",),
}


@dataclasses.dataclass
class Costs:
    """Of one device.

    Attributes:
      flops: of matrix products and convolutions: 2 a multiplication.
      bytes: read from and written to main memory, an operation's operands and
        results each once; what stays in on-chip memory is left out.
      counts: kind of collective -> how often it runs.
      sent: kind of collective -> bytes of its larger side, all runs together.
      open_loops: loops of unknown length, counted once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    counts: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    sent: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    open_loops: int = 0

    def add(self, other: "Costs", times: float = 1) -> None:
        """Adds what runs so many times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for mine, theirs in (
            (self.counts, other.counts),
            (self.sent, other.sent),
        ):
            for kind, number in theirs.items():
                mine[kind] += times * number
        self.open_loops += other.open_loops


def costs(text: str) -> Costs:
    """The costs of one step: of the one loop of unknown length, if there is.

    Args:
      text: of the compiled module, `compiled.as_text()`. A dispatch of several
        steps is a loop of unknown length over them; what stands before and
        after it is not counted.
    """
    return _Module(text).costs()


class _Module:
    def __init__(self, text: str) -> None:
        self.computations, self.entry = hlo_text.read(text)
        self._known: dict[tuple[str, str], Costs] = {}

    def costs(self) -> Costs:
        """Of a step."""
        steps = [
            loop
            for loop in self.computations[self.entry].values()
            if loop.opcode == "while" and self._trips(loop) is None
        ]
        if len(steps) == 1:
            return self._of(steps[0].called("body")[0])
        return self._of(self.entry)

    def _of(self, name: str, fused: str = "") -> Costs:
        """Of a computation.

        Args:
          name: of it.
          fused: the fusion that it is the inside of, if it is: it moves
            nothing of its own.
        """
        if (name, fused) not in self._known:
            total = Costs()
            for each in self.computations[name].values():
                self._add(total, each, name, fused)
            self._known[name, fused] = total
        return self._known[name, fused]

    def _add(
        self, total: Costs, one: Instruction, name: str, fused: str
    ) -> None:
        within = self.computations[name]
        if one.opcode in _CONTROL:
            times = 1.0
            if one.opcode == "while":
                known = self._trips(one)
                total.open_loops += known is None
                times = known or 1
            parts = [
                self._of(body, fused)
                for key in _CONTROL[one.opcode]
                for body in one.called(key)
            ]
            if one.opcode == "conditional":
                parts += [
                    self._of(body, fused)
                    for body in one.called("branch_computations")
                ]
                parts = [max(parts, key=lambda part: part.flops)]
            for part in parts:
                total.add(part, times)
            return
        if one.opcode == "dot":
            left = within[one.operands[0]].parts[0].dims
            summed = one.sizes("lhs_contracting_dims")
            size = math.prod(left[axis] for axis in summed)
            total.flops += 2 * math.prod(one.parts[0].dims) * size
        elif one.opcode == "convolution":
            total.flops += hlo_text.convolution_flops(one, within)
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES and not _is_piece(one, fused):
            given = sum(within[name].whole for name in one.operands)
            got = one.whole
            if one.opcode.endswith("-start") and kind != "all-reduce":
                got -= given  # the result stands beside the operand
            total.counts[kind] += 1
            total.sent[kind] += max(given, got)
        if one.opcode == "fusion":
            for body in one.called("calls"):
                total.add(self._of(body, one.name))
        if not fused:
            total.bytes += self._moved(one, within)

    def _moved(self, one: Instruction, within: Computation) -> float:
        """Bytes to and from main memory."""
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            return 0.0
        operands = [within[name] for name in one.operands]
        if one.opcode == "fusion":
            (body,) = one.called("calls")
            return self._fusion(one, operands, self.computations[body])
        if one.opcode in ("dynamic-slice", "gather", "slice"):
            read = one.whole if operands[0].moved else 0.0
            return read + one.moved
        if one.opcode in ("dynamic-update-slice", "scatter"):
            new = operands[1 if one.opcode.startswith("dyn") else -1]
            return new.moved + (new.whole if one.moved else 0.0)
        if one.opcode in ("copy-start", "slice-start"):
            # (target, source, ...), or ((source), target, ...)
            target = one.parts[one.opcode == "slice-start"]
            read = target.bytes if operands[0].moved else 0.0
            return read + (target.bytes if target.main else 0.0)
        if one.opcode == "custom-call" and not operands:
            return 0.0
        return one.moved + sum(operand.moved for operand in operands)

    def _fusion(
        self,
        one: Instruction,
        operands: list[Instruction],
        body: Computation,
    ) -> float:
        """A stack of layers, sliced or updated inside, counts by the slice."""
        moved = 0.0
        for each in body.values():
            if each.opcode == "parameter":
                given = operands[int(each.literal)].moved
                read = self._read(body, each.name) if given else 0.0
                moved += min(read, given)

        def made(each: Instruction) -> float:
            while each.opcode == "bitcast":
                each = body[each.operands[0]]
            if each.opcode == "dynamic-update-slice":
                return body[each.operands[1]].whole
            return each.whole

        root = hlo_text.root(body)
        results = [root]
        if root.opcode == "tuple":
            results = [body[name] for name in root.operands]
        for each, part in zip(results, one.parts, strict=False):
            moved += min(made(each), part.bytes) if part.main else 0.0
        return moved

    def _read(self, body: Computation, name: str) -> float:
        """Bytes that a fused computation reads of a value; inf for all."""
        read = 0.0
        for user in body.values():
            if name not in user.operands:
                continue
            first = user.operands[0] == name
            if user.opcode == "bitcast":
                read += self._read(body, user.name)
            elif user.opcode in ("dynamic-slice", "gather") and first:
                read += user.whole
            elif user.opcode == "fusion":
                (inner,) = user.called("calls")
                within = self.computations[inner]
                for each in within.values():
                    if (
                        each.opcode == "parameter"
                        and name == (user.operands[int(each.literal)])
                    ):
                        read += self._read(within, each.name)
            elif user.opcode != "dynamic-update-slice" or not first:
                return math.inf
        return read

    def _trips(self, loop: Instruction) -> int | None:
        """How often a loop's body runs; None where only running it tells."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if noted:
            return int(noted[1])
        (name,) = loop.called("condition")
        condition = self.computations[name]
        root = last = hlo_text.root(condition)
        if root.opcode == "fusion":
            (body,) = root.called("calls")
            last = hlo_text.root(self.computations[body])
        if "direction=LT" not in last.rest:
            return None
        limits = [
            condition[name].literal
            for name in root.operands
            if condition[name].opcode == "constant"
        ]
        return int(limits[0]) if len(limits) == 1 else None


def _is_piece(one: Instruction, fused: str) -> bool:
    """Whether the collective is a part of one that has been counted.

    The TPU compiler spreads an asynchronous collective over many fusions, each
    of which names it.
    """
    chained = bool(fused) and "chain_id=" in one.rest
    return chained and not fused.startswith("async-collective-start")
