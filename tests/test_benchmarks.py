"""What all benchmarks rest on: ways in turn, and what got slower since."""

import copy
import importlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
if not _FOLDER.is_dir():
    pytest.skip("installed without the checkout", allow_module_level=True)
# A folder of scripts, no package; the processes of ways inherit the path.
sys.path.append(str(_FOLDER))
compare = importlib.import_module("compare")
turns = importlib.import_module("turns")


# Ways; top-level, for each is made in a process of its own.


def _adds(size: int, name: str = "sum", off: float = 0.0) -> Any:
    x = np.ones(size)

    def run(count: int) -> None:
        for _ in range(count):
            x.sum()

    return turns.Way(run, {name: x + off}, {"bytes": x.nbytes})


def _sums_more(size: int) -> Any:
    """The same outputs as `_adds(1000)`, and more work."""
    more = _adds(size)
    return turns.Way(more.run, _adds(1000).outputs)


def _fails() -> Any:
    raise ValueError("no such thing")


def _dies() -> Any:
    os._exit(3)


def _measured(*peer: Any, maker: Callable[..., Any] = _adds) -> dict[str, Any]:
    makers = {"ours": (_adds, (1000,)), "theirs": (maker, peer)}
    return turns.measure(makers, tolerance=1e-6, repeats=3, seconds=0.01)


def test_measure_gives_the_ratio_of_like_ways() -> None:
    found = _measured(4_000_000, maker=_sums_more)
    assert found["ratio"].keys() == {"theirs"}
    ratio = found["ratio"]["theirs"]
    assert ratio["repeats"] == 3
    assert 1 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert found["seconds"].keys() == {"ours", "theirs"}
    assert found["differences"] == {"theirs": {"sum": 0.0}}
    assert found["facts"]["ours"] == {"bytes": 8000}


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        ((1000, "sum", 0.1), "theirs, sum: differs from ours by 0.1"),
        ((1000, "sum", np.nan), "theirs, sum: differs from ours by nan"),
        ((1000, "mean"), r"theirs has the outputs \['mean'\], ours"),
        ((999,), r"theirs, sum: shape \(999,\), ours has \(1000,\)"),
    ],
)
def test_measure_refuses_other_work(peer: tuple[Any, ...], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        _measured(*peer)


def test_measure_tells_why_a_way_was_not_made() -> None:
    with pytest.raises(SystemExit, match=r"theirs:\n(.|\n)*no such thing"):
        _measured(maker=_fails)
    with pytest.raises(SystemExit, match="theirs: its process ended"):
        _measured(maker=_dies)


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert turns.spread([3.0, 1.0, 2.0, 4.0, 5.0]) == {
        "median": 3.0,
        "low": 2.0,
        "high": 4.0,
        "repeats": 5,
    }
    assert turns.spread([2.0])["low"] == 2.0


def _spread(median: float, off: float = 0.1) -> dict[str, float]:
    low, high = median * (1 - off), median * (1 + off)
    return {"median": median, "low": low, "high": high, "repeats": 7}


@pytest.fixture
def old() -> dict[str, Any]:
    """A file of two cases and two peers."""
    case = {
        "seconds": {"ours": _spread(1.0), "torch": _spread(1.5)},
        "ratio": {"torch": _spread(1.5), "panda": _spread(3.0)},
        "differences": {"torch": {"logits": 1e-7}},
        "facts": {
            "ours": {
                "flops": 1e9,
                "gflop_a_step": 3,
                "temporary_mib": 9,
                "peak_bytes": _spread(1e8),
                "deep": {"temp bytes": 1000},
                "rows": 16,
            },
            "torch": {"flops": 1e9},
        },
    }
    results = [{"case": name, **copy.deepcopy(case)} for name in ("a", "b")]
    return {"command": "", "device": "", "versions": {}, "results": results}


Compared = Callable[..., tuple[int, str]]


@pytest.fixture
def told(
    old: dict[str, Any],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> Compared:
    """Compares `old` with a changed copy: the exit code, and what was said."""

    def run(change: Callable[[dict[str, Any]], Any], *flags: str) -> Any:
        new = copy.deepcopy(old)
        change(new["results"][0])
        paths = []
        for name, value in (("old", old), ("new", new)):
            paths.append(str(tmp_path / f"{name}.json"))
            pathlib.Path(paths[-1]).write_text(json.dumps(value))
        return compare.main([*paths, *flags]), capsys.readouterr().out

    return run


def test_a_ratio_below_the_old_range_is_slower(told: Compared) -> None:
    code, said = told(lambda case: case["ratio"].update(torch=_spread(1.2)))
    assert code == 1
    assert said == (
        "slower: a, against torch: ratio 1.5 (1.35 to 1.65) -> "
        "1.2 (1.08 to 1.32) (ours: 1 s -> 1 s)\n"
    )


def test_noise_and_seconds_alone_are_not_slower(told: Compared) -> None:
    def change(case: dict[str, Any]) -> None:
        case["ratio"]["torch"] = _spread(1.3)
        case["seconds"] = {"ours": _spread(9.0), "torch": _spread(12.0)}

    assert told(change) == (0, "")


def test_faster_is_told_and_is_no_failure(told: Compared) -> None:
    code, said = told(lambda case: case["ratio"].update(panda=_spread(9.0)))
    assert code == 0
    assert said.startswith("faster: a, against panda: ratio 3 ")


@pytest.mark.parametrize(
    ("fact", "value", "line"),
    [
        ("flops", 1.02e9, "ours, flops: 1e+09 -> 1.02e+09 (+2.0%)"),
        ("deep", {"temp bytes": 1011}, "ours, deep, temp bytes: 1000 -> 1011"),
        ("gflop_a_step", 3.1, "ours, gflop_a_step: 3 -> 3.1"),
        ("temporary_mib", 9.2, "ours, temporary_mib: 9 -> 9.2"),
        ("peak_bytes", _spread(1.3e8), "ours, peak_bytes: 1e+08 -> 1.3e+08"),
    ],
)
def test_growing_facts_are_a_failure(
    told: Compared, fact: str, value: Any, line: str
) -> None:
    code, said = told(lambda case: case["facts"]["ours"].update({fact: value}))
    assert code == 1
    assert said.startswith(f"grew: a, {line}")


def test_facts_that_hardly_grow_are_none(told: Compared) -> None:
    def change(case: dict[str, Any]) -> None:
        case["facts"]["ours"] |= {"flops": 1.009e9, "rows": 64}
        case["facts"]["ours"]["peak_bytes"] = _spread(1.1e8)
        case["facts"]["torch"]["flops"] = 2e9

    assert told(change) == (0, "")


def test_what_is_missing_is_named(told: Compared) -> None:
    def change(case: dict[str, Any]) -> None:
        del case["ratio"]["panda"], case["facts"]["ours"]["flops"]

    code, said = told(change)
    assert code == 0
    assert said == "missing: a, against panda\nmissing: a, ours, flops\n"
    code, said = told(lambda case: case.update(case="c"))
    assert (code, said) == (0, "missing: a\n")


def test_all_tells_what_did_not_change(told: Compared) -> None:
    code, said = told(lambda case: case.update(case="c"), "--all")
    assert code == 0
    assert said.count("same: b, ") == 7
    assert said.endswith("new: c\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "has no list of results"),
        ('{"found": []}', "has no list of results"),
        ('{"results": [{}]}', "case 0 is named None"),
        (
            '{"results": [{"case": "a"}, {"case": "a"}]}',
            "case 1 is named 'a'",
        ),
        (
            '{"results": [{"case": "a", "ratio": {"torch": 1.5}}]}',
            "a, ratio, torch: got 1.5, expected the numbers median, low, high",
        ),
        (
            '{"results": [{"case": "a", "facts": []}]}',
            "a: facts is no object",
        ),
    ],
)
def test_a_file_of_another_kind_is_one_message(
    text: str | None,
    words: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    assert compare.main([str(path), str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("compare: ")
    assert words in said
    assert said.count("\n") == 1


def test_the_command_ends_with_the_code(
    tmp_path: pathlib.Path, old: dict[str, Any]
) -> None:
    for name, median in (("old", 1.5), ("new", 1.0)):
        old["results"][1]["ratio"]["torch"] = _spread(median)
        (tmp_path / f"{name}.json").write_text(json.dumps(old))
    command = [sys.executable, str(_FOLDER / "compare.py")]
    command += [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("slower: b, against torch")
