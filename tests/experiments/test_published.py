"""The paper's own figures: what its metrics reach, recomputed."""

import csv
import pathlib

import numpy as np
import pytest
from panda_jax.tasks import specs

from panda_jax.experiments.ranking.data import Truth
from panda_jax.experiments.ranking.ranking import evaluate_ranking
from panda_jax.experiments.tables import PUBLISHED
from panda_jax.transfer.scores import Scores

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = ("large", "base", "medium", "small", "tiny")


@pytest.fixture(scope="module")
def report():
    return evaluate_ranking(
        "published",
        "published",
        combine=("e_avg+on+panda", "e_avg+on+panda+1.5*prior"),
        ceiling="published",
        resamples=100,
        permutations=200,
    )


@pytest.mark.parametrize(
    ("metric", "published"),
    [
        ("e_avg", 0.324),
        ("on", 0.278),
        ("panda", 0.300),
        ("e_avg+on+panda", 0.359),
        ("e_avg+on+panda+1.5*prior", 0.399),
        ("[ceiling]", 0.386),
    ],
)
def test_mean_spearman(report, metric, published):
    """method.md: over 9 targets and 5 sizes, self-pairs included."""
    found = report.get(metric)
    assert found.value == pytest.approx(published, abs=0.005)
    assert found.cells == 45
    assert found.low < found.value < found.high


def test_nothing_of_the_nine_targets_is_left_out(report):
    assert report.about["pairs"] == 5 * 9 * 21
    assert report.about["self_pairs"] == 45
    assert [entry.reason for entry in report.left_out] == [
        "targets with scores and no truth"
    ]
    assert len(report.left_out[0].names) == 12
    assert report.backbones == tuple(f"bert-{size}" for size in SIZES)


def test_scores_are_similarities():
    tables = Scores.by_backbone(PUBLISHED / "scores.csv")
    assert list(tables) == [f"bert-{size}" for size in SIZES]
    for scores in tables.values():
        assert list(scores.values) == ["panda", "e_avg", "on"]
        assert scores.sources == scores.targets
        assert len(scores.sources) == 21
        for matrix in scores.values.values():
            np.testing.assert_array_equal(matrix, matrix.T)
            np.testing.assert_array_equal(np.diag(matrix), 1.0)
            assert np.linalg.eigvalsh(matrix).min() > 0


def rows(name: str) -> list[dict[str, str]]:
    with open(PUBLISHED / name, newline="") as file:
        return list(csv.DictReader(file))


def test_names_are_task_ids():
    for name in ("scores", "truth", "final", "results"):
        for row in rows(f"{name}.csv"):
            for task in filter(None, (row["source"], row["target"])):
                specs.get(task)


def test_final_scores_are_those_of_the_results():
    final = Truth.by_backbone(PUBLISHED / "final.csv")
    found = {
        (row["backbone"], row["source"], row["target"]): float(row["score"])
        for row in rows("results.csv")
        if row["method"] == "pot"
    }
    assert len(found) == 945
    for (backbone, source, target), score in found.items():
        table = final[backbone]
        m, n = table.sources.index(source), table.targets.index(target)
        assert table.values[m, n] == score


def test_nine_target_averages():
    """method.md's, and those that the tables print, to their rounding."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows("results.csv"):
        key = (row["backbone"], row["method"], row["source"])
        found.setdefault(key, []).append(float(row["score"]))
    assert {len(scores) for scores in found.values()} == {9}
    wanted = {
        "bert-large": (78.5, 77.5, 74.3, 78.4),
        "bert-base": (74.8, 74.6, 73.9, 75.5),
        "bert-medium": (71.0, 70.5, 69.9, 71.8),
        "bert-small": (68.7, 67.5, 66.8, 68.8),
        "bert-tiny": (60.8, 59.1, 58.5, 60.4),
    }
    for backbone, averages in wanted.items():
        for method, average in zip(
            ("model", "prompt", "pot", "panda"), averages, strict=True
        ):
            means = [
                np.mean(scores)
                for key, scores in found.items()
                if key[:2] == (backbone, method)
            ]
            assert np.mean(means) == pytest.approx(average, abs=0.06)
    printed = {
        (row["backbone"], row["method"], row["source"]): float(row["score"])
        for row in rows("averages.csv")
    }
    assert set(printed) == {key for key in found if "first" not in key[1]}


def test_the_page_shows_these_figures(report):
    page = ROOT / "docs" / "ranking.md"
    if not page.is_file():
        pytest.skip("installed without the checkout")
    shown = page.read_text().split("Mean over targets")[1]
    first = shown.split("\n\n")[0].splitlines()[2:]
    found = {line.split()[0]: float(line.split()[1]) for line in first}
    assert found == {
        name: pytest.approx(report.get(name).value, abs=5e-4)
        for name in (*report.metrics, "[ceiling]", "[chance]")
    }
