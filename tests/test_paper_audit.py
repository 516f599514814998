"""The paper's headline figures from its tables, and what is odd in these."""

import importlib
import math
import pathlib
import subprocess
import sys

import pytest

from panda_jax.experiments.report.board import published

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("installed without the checkout", allow_module_level=True)
# A folder of scripts, no package.
sys.path.append(str(FOLDER))
audit = importlib.import_module("paper_audit")


@pytest.fixture(scope="module")
def figures():
    return {f.name: f for f in audit.headline(published())}


def test_the_headline_figures(figures):
    """2.3% on average, up to 24.1%: averages of sources, not single cells."""
    mean, most = figures["mean gain"], figures["maximum gain"]
    assert round(mean.value, 2) == 2.27
    assert round(mean.value, 1) == mean.printed == 2.3
    assert round(most.value, 1) == most.printed == 24.1
    assert "bert-large, conll03" in most.how
    assert "105 rows" in mean.how
    assert round(figures["maximum gain of one cell"].value, 1) == 74.2


def test_the_headline_by_hand(figures):
    paper = published()
    gains = [
        sum(
            paper.cells[backbone, "panda", source, target]
            - paper.cells[backbone, "pot", source, target]
            for target in paper.targets
        )
        / 9
        for backbone in paper.backbones
        for source in paper.sources
    ]
    assert len(gains) == 105
    assert figures["mean gain"].value == pytest.approx(sum(gains) / 105)
    assert figures["maximum gain"].value == pytest.approx(max(gains))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("large", (78.5, 77.5, 74.3, 78.4)),
        ("base", (74.8, 74.6, 73.9, 75.5)),
        ("medium", (71.0, 70.5, 69.9, 71.8)),
        ("small", (68.7, 67.5, 66.8, 68.8)),
        ("tiny", (60.8, 59.1, 58.5, 60.4)),
    ],
)
def test_nine_target_averages(figures, size, wanted):
    for method, average in zip(audit.METHODS, wanted, strict=True):
        found = figures[f"bert-{size} {method}"]
        assert found.value == pytest.approx(average, abs=0.06)
        assert found.printed == pytest.approx(average, abs=0.051)


def test_best_source_of_each_target(figures):
    """docs/method.md: 80.8 and 80.5 on BERT-large."""
    for method, wanted in (("pot", 80.8), ("panda", 80.5)):
        found = figures[f"bert-large {method}, best source"].value
        assert round(found, 1) == wanted


def test_duplicated_rows_and_impossible_cells_of_the_paper():
    paper = published()
    counts = audit.question_counts(paper.targets)
    assert counts == {
        "cb": 56,
        "copa": 100,
        "wsc": 104,
        "rte": 277,
        "wic": 638,
        "mrpc": 408,
    }
    flags = audit.doubts(paper.cells, counts)
    rows = [flag[:3] for flag in flags if not flag.target]
    assert rows == [
        ("bert-base", "pot", "wic, multirc"),
        ("bert-base", "pot", "wsc, record"),
        ("bert-base", "panda", "copa, cola"),
        ("bert-small", "panda", "mrpc, stsb"),
    ]
    transfers = {
        flag[:5]
        for flag in flags
        if flag.target and flag.method in ("pot", "panda", "pot_first_epoch")
    }
    assert transfers == {
        ("bert-large", "panda", "rte", "wsc", 66.6),
        ("bert-large", "panda", "wsc", "wic", 69.5),
        ("bert-tiny", "panda", "squad", "mrpc", 83.0),
    }


def place(method="pot", source="mnli", target="cb", backbone="b"):
    return backbone, method, source, target


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        (50.0, True),
        (51.8, True),  # 29 / 56 = 51.79
        (51.7, False),  # cut off, not rounded
        (51.0, False),
        (100.0, True),
        (0.0, True),
    ],
)
def test_an_accuracy_is_a_number_of_right_answers(value, fine):
    flags = audit.doubts({place(): value}, {"cb": 56})
    assert (not flags) is fine
    if value == 51.7:
        assert "29 are 51.79 (cut off" in flags[0].reason


@pytest.mark.parametrize(
    ("target", "value", "words"),
    [
        ("cb", 100.1, "outside of 0 to 100"),
        ("cb", -0.1, "outside of 0 to 100"),
        ("cb", math.nan, "outside of 0 to 100"),
        ("cola", -100.1, "outside of -100 to 100"),
        ("cola", -5.0, ""),
        ("stsb", -5.0, ""),
    ],
)
def test_a_score_is_in_its_range(target, value, words):
    flags = audit.doubts({place(target=target): value}, {})
    assert [flag.reason for flag in flags] == ([words] if words else [])


def test_no_epoch_beats_the_best_one():
    cells = {place("pot"): 60.0, place("pot_first_epoch"): 61.0}
    (flag,) = audit.doubts(cells, {})
    assert flag.reason == "the best epoch is printed as 60"
    assert flag.method == "pot_first_epoch"


def test_duplicated_rows_are_of_one_backbone_and_method():
    row = {"cb": 1.0, "rte": 2.0, "cola": 3.0}

    def table(*places):
        return {
            place(method, source, target, backbone): value
            for method, source, backbone in places
            for target, value in row.items()
        }

    (flag,) = audit.doubts(table(("pot", "a", "x"), ("pot", "b", "x")), {})
    assert (flag.source, flag.target) == ("a, b", "")
    assert not audit.doubts(table(("pot", "a", "x"), ("panda", "a", "x")), {})
    assert not audit.doubts(table(("pot", "a", "x"), ("pot", "a", "y")), {})


def test_what_it_prints_and_writes(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "paper_audit.py", f"--out_dir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for table in audit.tables():
        assert f"### {table.title}\n" in done.stdout
        lines = (tmp_path / f"{table.stem}.csv").read_text().splitlines()
        assert lines[0] == ",".join(table.data[0])
        assert len(lines) == len(table.data)
    # docs/report.md, all backbones.
    assert "| all | PANDA - PoT | 9 | 21 | 1 | 945 | +2.27 |" in done.stdout
