"""What all benchmarks rest on: ways in turn, and what got slower since."""

import copy
import dataclasses
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

from panda_jax.data.examples import Examples, TextExamples

_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
if not _FOLDER.is_dir():
    pytest.skip("installed without the checkout", allow_module_level=True)
# A folder of scripts, no package; the processes of ways inherit the path.
sys.path.append(str(_FOLDER))
compare = importlib.import_module("compare")
real_rows = importlib.import_module("real_rows")
turns = importlib.import_module("turns")


# Ways; top-level, for each is made in a process of its own.


def _own_seconds() -> Any:
    """Says itself what it took, of two works."""
    works = {"long": lambda count: 8.0 * count}
    return turns.Way(lambda count: 2.0 * count, works=works)


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


def test_a_way_may_tell_its_own_seconds_of_several_works() -> None:
    with turns.started({"ours": (_own_seconds, ())}) as workers:
        assert turns.in_turn(workers, {"ours": 4}, 3) == {"ours": [2.0] * 3}
        found = turns.in_turn(workers, {"ours": 4}, 1, "long")
        assert found == {"ours": [8.0]}


# A build whose package says where it lies, and its way.
_PACKAGE = "HERE = 'before'\n"
_MAKER = """
import numpy, panda_jax, turns

def made(number):
    facts = {"of": panda_jax.HERE}
    return turns.Way(lambda count: None, {"x": numpy.ones(number)}, facts)
"""


@pytest.fixture
def build(tmp_path: pathlib.Path) -> Any:
    """Of a package that is not ours."""
    (tmp_path / "panda_jax").mkdir()
    (tmp_path / "panda_jax" / "__init__.py").write_text(_PACKAGE)
    (tmp_path / "a_maker.py").write_text(_MAKER)
    return turns.Build.of(f"{sys.executable}:{tmp_path}")


def test_a_way_of_another_build_imports_that(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(build.checkout))
    maker = importlib.import_module("a_maker").made
    with turns.started({"before": (maker, (3,), build)}) as workers:
        assert workers["before"].facts == {"of": "before"}
        assert workers["before"].outputs["x"].tolist() == [1.0] * 3
        assert workers["before"].seconds(2) < 1
    with pytest.raises(SystemExit, match="before:\n(.|\n)*TypeError"):
        turns.Worker("before", maker, (), build).made()


@pytest.mark.parametrize("text", ["python", "python:", "python:no/such"])
def test_a_build_is_a_python_and_a_checkout(text: str) -> None:
    with pytest.raises(SystemExit, match="is not PYTHON:CHECKOUT"):
        turns.Build.of(text)


# What real rows are made into, and what is made of their figures.


def test_items_are_rows_without_padding() -> None:
    own = {"rows": [([5, 6], [0, 1])], "label": 1}
    tokens = np.array([[5, 6, 0], [7, 0, 0], [8, 9, 3]])
    examples = Examples(
        "choice",
        tokens,
        np.array([[0, 1, 0], [0, 0, 0], [0, 1, 1]]),
        np.array([0, 1, 1]),
        np.array([0, 0, 1], np.int32),
        b"[{}, {}]",
    )
    first, second = real_rows._items(examples)
    assert first == {"rows": [([5, 6], [0, 1]), ([7], [0])], "label": 1}
    assert second == {"rows": [([8, 9, 3], [0, 1, 1])], "label": 0}
    kept = {"kind": "classification", "labels": np.array([2, 0, 1])}
    sole = dataclasses.replace(examples, question=np.arange(3), **kept)
    assert real_rows._items(sole)[0] == own | {"label": 2}
    tags = np.array([[1, -1, -1], [4, -1, -1], [-1, 2, 3]])
    kept = {"kind": "tags", "labels": tags}
    sole = dataclasses.replace(sole, **kept)
    assert real_rows._items(sole)[2]["label"] == [-100, 2, 3]
    assert real_rows._padded([first, second], 10) == 3 * 13
    assert sum(map(real_rows.tokens_of, (first, second))) == 6


def test_items_of_texts_have_targets() -> None:
    texts = TextExamples(
        np.array([[5, 1, 0]]), np.array([[9, 1, 0, 0]]), b"[{}]"
    )
    expected = {"rows": [([5, 1], [0, 0])], "label": [9, 1]}
    assert real_rows._items(texts) == [expected]


@pytest.mark.parametrize(
    ("rows", "steps"), [(960, 60), (250, 60), (400, 50), (922, 57), (3, 60)]
)
def test_whole_passes_are_timed(rows: int, steps: int) -> None:
    assert real_rows.steps_of(range(rows), 60) == steps


@pytest.mark.parametrize("grouped", [False, True])
def test_peft_draws_each_row_once_a_pass(grouped: bool) -> None:
    items = [{"rows": [([1] * (n % 30 + 1), [])]} for n in range(410)]
    batches = real_rows._batches(items, grouped=grouped)
    passes = [[next(batches) for _ in range(25)] for _ in range(2)]
    for found in passes:
        assert {len(batch) for batch in found} == {16}
        assert len({row for batch in found for row in batch}) == 400
    assert passes[0] != passes[1]
    positions = [
        real_rows._padded([items[n] for n in batch], 0) for batch in passes[1]
    ]
    tokens = sum(real_rows._length(items[n]) for x in passes[1] for n in x)
    assert (sum(positions) < 1.3 * tokens) == grouped


def test_means_are_geometric_and_of_each_work() -> None:
    def case(task: str, work: str, x: float) -> dict[str, Any]:
        ratio = {"theirs / ours": turns.spread([x])}
        return {"case": f"b, {task}, {work}", "ratio": ratio}

    cases = [case("x", "training", 2.0), case("x", "evaluation", 3.0)]
    cases += [case("y", "training", 8.0), case("y", "evaluation", 27.0)]
    learnt, judged = real_rows.means(cases, "b")
    assert learnt["case"] == "b, geometric mean of 2 tasks, training"
    assert learnt["ratio"]["theirs / ours"]["median"] == 4.0
    assert judged["ratio"]["theirs / ours"]["most"] == 9.0


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert turns.spread([3.0, 1.0, 2.0, 4.0, 5.0]) == {
        "median": 3.0,
        "low": 2.0,
        "high": 4.0,
        "least": 1.0,
        "most": 5.0,
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
