"""What got slower from one result file to another, beyond the spread?

    python benchmarks/compare.py OLD.json NEW.json [--all]

Both are files that a script here wrote with `turns.report`. Machines differ, so
what is compared of each case is its ratio to each peer, measured in turn on one
machine: slower is a ratio whose interquartile range in NEW lies wholly below
that in OLD. Of our own facts in FLOPs and bytes any growth by over 1% counts
(where a fact was measured, one whose range lies wholly above). Lone seconds are
a note only. One line each; `--all` also prints what did not change.

Exit codes: 0 nothing got slower, 1 something did, 2 a file that is none of
these. What NEW lacks is named, and is no slowness.
"""

import argparse
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# Counts of FLOPs and bytes follow from the program: more than this is news.
GROWTH = 0.01
_COUNTED = re.compile(r"(^|[_ ])([kmgtp]?flops?|bytes|[kmgt]i?b)($|[_ ])")
_SPREAD = ("median", "low", "high")

Case = Mapping[str, Any]


class MalformedError(Exception):
    """A file that `turns.report` did not write; the message says what is."""


def read(path: pathlib.Path) -> dict[str, Case]:
    """The results of a file by case.

    Raises:
      MalformedError: it cannot be read, or holds no such results.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MalformedError(f"{path} cannot be read: {error}") from None
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, list):
        raise MalformedError(
            f"{path} has no list of results: expected a file of turns.report."
        )
    cases: dict[str, Case] = {}
    for number, result in enumerate(results):
        name = result.get("case") if isinstance(result, dict) else None
        if not isinstance(name, str) or name in cases:
            raise MalformedError(
                f"{path}: case {number} is named {name!r}, expected a name of "
                "its own."
            )
        _check(result, f"{path}, {name}")
        cases[name] = result
    return cases


def _check(result: Case, where: str) -> None:
    """Refuses what the comparison could not read."""
    for part in ("seconds", "ratio", "facts"):
        values = result.get(part, {})
        if not isinstance(values, dict):
            raise MalformedError(f"{where}: {part} is no object.")
        if part == "facts":
            continue
        for name, value in values.items():
            if not _is_spread(value):
                raise MalformedError(
                    f"{where}, {part}, {name}: got {value!r}, expected the "
                    f"numbers {', '.join(_SPREAD)}."
                )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_spread(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_number(value.get(name)) for name in _SPREAD
    )


def compared(
    old: Mapping[str, Case], new: Mapping[str, Case]
) -> Iterator[tuple[str, str]]:
    """(verdict, line) of everything that either file knows.

    Verdicts: `slower` and `grew` are bad; `missing` is what NEW lacks, `new`
    what OLD lacked; `faster`, `shrank` and `same` are the rest.
    """
    for name, before in old.items():
        if name not in new:
            yield "missing", name
            continue
        yield from _ratios(name, before, new[name])
        yield from _facts(name, before, new[name])
    yield from (("new", name) for name in new if name not in old)


def _ratios(name: str, old: Case, new: Case) -> Iterator[tuple[str, str]]:
    before, after = old.get("ratio", {}), new.get("ratio", {})
    note = _seconds(old, new)
    for peer, was in before.items():
        label = f"{name}, against {peer}"
        if peer not in after:
            yield "missing", label
            continue
        now = after[peer]
        verdict = "same"
        if now["high"] < was["low"]:
            verdict = "slower"
        elif now["low"] > was["high"]:
            verdict = "faster"
        yield verdict, f"{label}: ratio {_range(was)} -> {_range(now)}{note}"
    yield from (
        ("new", f"{name}, against {peer}")
        for peer in after
        if peer not in before
    )


def _seconds(old: Case, new: Case) -> str:
    """Our own, which say little across machines."""
    before, after = old.get("seconds", {}), new.get("seconds", {})
    ours = next((way for way in before if way not in old.get("ratio", {})), "")
    if ours not in after:
        return ""
    was, now = before[ours]["median"], after[ours]["median"]
    return f" ({ours}: {was:.4g} s -> {now:.4g} s)"


def _facts(name: str, old: Case, new: Case) -> Iterator[tuple[str, str]]:
    before, after = _counts(old), _counts(new)
    for path, was in before.items():
        label = f"{name}, {path}"
        if path not in after:
            yield "missing", label
            continue
        now = after[path]
        verdict = "same"
        if now["low"] > was["high"] * (1 + GROWTH):
            verdict = "grew"
        elif now["high"] * (1 + GROWTH) < was["low"]:
            verdict = "shrank"
        numbers = f"{was['median']:.6g} -> {now['median']:.6g}"
        if was["median"]:
            numbers += f" ({now['median'] / was['median'] - 1:+.1%})"
        yield verdict, f"{label}: {numbers}"


def _counts(result: Case) -> dict[str, Mapping[str, float]]:
    """Our facts in FLOPs or bytes by path, each as a spread."""
    found: dict[str, Mapping[str, float]] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        counted = path and _COUNTED.search(path[-1].lower())
        if counted and _is_number(value):
            found[", ".join(path)] = dict.fromkeys(_SPREAD, value)
        elif counted and _is_spread(value):
            found[", ".join(path)] = value
        elif isinstance(value, dict):
            for key, part in value.items():
                walk(part, (*path, key))

    for way, facts in result.get("facts", {}).items():
        # What a peer needs is not ours to answer for.
        if way not in result.get("ratio", {}):
            walk(facts, (way,))
    return found


def _range(spread: Mapping[str, float]) -> str:
    low, high = f"{spread['low']:.4g}", f"{spread['high']:.4g}"
    return f"{spread['median']:.4g} ({low} to {high})"


def main(argv: list[str] | None = None) -> int:
    """Prints the comparison; returns the exit code."""
    about, _, usage = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=pathlib.Path, metavar="OLD.json")
    parser.add_argument("new", type=pathlib.Path, metavar="NEW.json")
    parser.add_argument(
        "--all", action="store_true", help="also what did not change"
    )
    args = parser.parse_args(argv)
    try:
        found = list(compared(read(args.old), read(args.new)))
    except MalformedError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    quiet = () if args.all else ("same", "new")
    for verdict, line in found:
        if verdict not in quiet:
            print(f"{verdict}: {line}")
    return int(any(verdict in ("slower", "grew") for verdict, _ in found))


if __name__ == "__main__":
    sys.exit(main())
