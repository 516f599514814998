"""The report of made-up runs: every number against one computed by hand."""

import csv
import itertools
import json
import math
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_runs import SEEDS, SOURCES, TARGETS, fail, write_grid, write_run
from scipy import stats

from panda_jax import cli
from panda_jax.errors import UserError
from panda_jax.experiments.report.board import make_boards
from panda_jax.experiments.report.comparisons import compare
from panda_jax.experiments.report.report import write_report
from panda_jax.experiments.report.results import read_results
from panda_jax.experiments.report.tables import (
    beside,
    beside_tables,
    choice_table,
    choose,
)
from panda_jax.experiments.tables import (
    Section,
    Table,
    latex,
    markdown,
    page,
    tex,
)
from panda_jax.io.ownership import LISTING, Listing
from panda_jax.transfer import pictures
from panda_jax.transfer.scores import Scores


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A whole grid; PANDA from mnli on rte with seed 1 failed."""
    root = tmp_path_factory.mktemp("runs")
    scores = write_grid(root)
    lost = root / "bert-tiny/PANDA_paper/mnli_rte_1"
    (lost / "result.json").unlink()
    about = json.loads((lost / "run.json").read_text())
    (lost / "run.json").write_text(
        json.dumps(about | {"needs": {"source": "mnli@0"}})
    )
    fail(root, "bert-tiny/PANDA_paper/mnli_rte_1", "kd_loss is <nan> & more")
    del scores["PANDA paper", "mnli", "rte", 1]
    return root, scores


@pytest.fixture(scope="module")
def out(grid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(grid[0], folder)
    return folder


def read(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def seeds_of(scores, label, source, target):
    return [
        scores[label, source, target, seed]
        for seed in SEEDS
        if (label, source, target, seed) in scores
    ]


def test_wide_table(grid, out):
    scores = grid[1]
    rows = read(out / "results_bert-tiny.csv")
    assert [row["label"] for row in rows] == (
        ["model-tuning", "prompt-tuning"]
        + ["PoT"] * 4
        + ["PANDA paper"] * 4
        + ["PANDA weight 0"]
    )
    # The paper's order of sources, and its targets before others.
    assert [row["source"] for row in rows[2:6]] == [
        "mnli",
        "sst2",
        "squad",
        "mean of 3 sources",
    ]
    assert list(rows[0])[2:5] == ["cb", "rte", "toy_review"]
    for row in rows:
        sources = [row["source"]]
        if row["source"].startswith("mean"):
            sources = list(SOURCES)
        means = {
            target: statistics.mean(
                statistics.mean(seeds_of(scores, row["label"], s, target))
                for s in sources
            )
            for target in TARGETS
        }
        for target, mean in means.items():
            assert float(row[target]) == pytest.approx(mean)
        for column, targets in (
            ("average", TARGETS),
            ("average of the paper's 2", ("cb", "rte")),
        ):
            mean = statistics.mean(means[target] for target in targets)
            assert float(row[column]) == pytest.approx(mean)


def test_wide_table_as_people_read_it(grid, out):
    root, scores = grid
    text = (out / "report.md").read_text()
    line = next(x for x in text.splitlines() if "PANDA paper: mnli" in x)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    values = seeds_of(scores, "PANDA paper", "mnli", "rte")
    assert len(values) == 2
    mean, sd = statistics.mean(values), statistics.stdev(values)
    assert cells[2] == f"{mean:.1f} ± {sd:.1f} (2)†"
    values = seeds_of(scores, "PANDA paper", "mnli", "cb")
    mean, sd = statistics.mean(values), statistics.stdev(values)
    assert cells[1] == f"{mean:.1f} ± {sd:.1f} (3)"
    # The sd of the average is that of the seeds with all three targets.
    averages = [
        statistics.mean(scores["PANDA paper", "mnli", t, s] for t in TARGETS)
        for s in (0, 2)
    ]
    assert cells[4].endswith(f"± {statistics.stdev(averages):.1f}")


def test_a_missing_cell_is_a_dash_and_its_average_says_so(tmp_path):
    write_run(tmp_path, "a", value=0.6, task="cb", method="model")
    write_run(tmp_path, "b", value=0.8, task="rte", method="model")
    write_run(tmp_path, "c", value=0.5, task="cb")
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| model-tuning | 60.0 | 80.0 | 70.0 |" in text
    assert "| prompt-tuning | 50.0 | – | 50.0 (1/2) |" in text
    assert "Not every row has every target" in text


def test_a_row_all_of_whose_runs_failed_is_seen(tmp_path):
    write_run(tmp_path, "a", value=0.6, task="cb", method="pot", source="mnli")
    fail(
        tmp_path,
        "b",
        "why",
        task="cb",
        method="pot",
        backbone="bert-tiny",
        source="sst2",
        seed=0,
    )
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| PoT: sst2 | † | – |" in text
    assert "| PoT: mnli | 60.0 | 60.0 |" in text


def test_a_mean_of_sources_is_of_those_that_have_a_result(tmp_path):
    pot = {"method": "pot", "backbone": "bert-tiny", "seed": 0}
    for source, task, value in (
        ("mnli", "cb", 0.6),
        ("mnli", "rte", 0.5),
        ("sst2", "cb", 0.8),
    ):
        write_run(
            tmp_path,
            f"{source}{task}",
            value=value,
            task=task,
            source=source,
            method="pot",
        )
    for task in ("cb", "rte"):
        fail(tmp_path, f"x{task}", "why", task=task, source="squad", **pot)
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| PoT: mean of 2 sources | 70.0† | 50.0 (1)† | 60.0 |" in text
    assert "| PoT: squad | † | † | – |" in text
    assert "| bert-tiny | PoT | 2 | 60.0† | 2/2 |" in text


def test_gains(grid, out):
    scores = grid[1]
    gains = {
        (source, target): statistics.mean(
            scores["PANDA paper", source, target, seed]
            - scores["PoT", source, target, seed]
            for seed in SEEDS
            if ("PANDA paper", source, target, seed) in scores
        )
        for source in SOURCES
        for target in TARGETS
    }
    for name in (
        "gain_bert-tiny_panda_paper_pot",
        "heatmap_panda_paper_minus_pot_on_bert-tiny_data",
    ):
        rows = {row["source"]: row for row in read(out / f"{name}.csv")}
        for (source, target), gain in gains.items():
            assert float(rows[source][target]) == pytest.approx(gain)
    (row,) = read(out / "gains.csv")
    values = list(gains.values())
    by_source = {
        s: statistics.mean(gains[s, t] for t in TARGETS) for s in SOURCES
    }
    for name, wanted in {
        "pairs": 9,
        "mean": statistics.mean(values),
        "least": min(values),
        "greatest": max(values),
        "above_0": sum(value > 0 for value in values),
        "mean_by_source": statistics.mean(by_source.values()),
        "greatest_by_source": max(by_source.values()),
    }.items():
        assert float(row[name]) == pytest.approx(wanted), name
    assert row["best_source"] == max(by_source, key=lambda s: by_source[s])
    pair = max(gains, key=lambda pair: gains[pair])
    assert row["greatest_pair"] == f"{pair[0]} > {pair[1]}"


def test_rows_above_model_tuning(grid, out):
    scores = grid[1]

    def mean(label, source, target):
        return statistics.mean(seeds_of(scores, label, source, target))

    rows = read(out / "above_model_tuning_bert-tiny.csv")
    assert len(rows) == 8
    for row in rows:
        more = [
            mean(row["label"], row["source"], t) - mean("model-tuning", "", t)
            for t in TARGETS
        ]
        assert float(row["difference"]) == pytest.approx(statistics.mean(more))
        assert int(row["targets_won"]) == sum(gain > 0 for gain in more)


def pair_differences(scores, first, second):
    """(target, source, seed) -> difference, of runs that both have."""
    found = {}
    for (label, source, target, seed), value in scores.items():
        if label != first:
            continue
        partner = source if (second, source, target, seed) in scores else ""
        other = scores.get((second, partner, target, seed))
        if other is not None:
            found[target, source, seed] = value - other
    return found


def test_comparisons(grid, out):
    scores = grid[1]
    rows = {(r["first"], r["second"]): r for r in read(out / "comparisons.csv")}
    assert list(rows) == [
        ("PANDA paper", "PoT"),
        ("PANDA paper", "prompt-tuning"),
        ("PANDA paper", "PANDA weight 0"),
        ("PoT", "prompt-tuning"),
    ]
    for (first, second), row in rows.items():
        pairs = pair_differences(scores, first, second)
        by_target = [
            statistics.mean(
                statistics.mean(
                    d
                    for (t, s, _), d in pairs.items()
                    if (t, s) == (target, source)
                )
                for source in SOURCES
            )
            for target in TARGETS
        ]
        mean = statistics.mean(by_target)
        assert float(row["difference"]) == pytest.approx(mean)
        assert float(row["low"]) < mean < float(row["high"])
        assert int(row["pairs"]) == len(pairs)
        assert (row["targets"], row["sources"], row["seeds"]) == ("3", "3", "3")
        assert row["holds_for"] == "other targets and seeds"
        assert row["caution"] == "only 3 targets and 3 seeds"
    p = sorted((float(row["p"]), key) for key, row in rows.items())
    least = 0.0
    for place, (value, key) in enumerate(p):
        least = max(least, min(1.0, value * (4 - place)))
        assert float(rows[key]["holm"]) == pytest.approx(least)


def test_a_caution_stands_in_the_line_of_its_number(out):
    said = "only 3 targets and 3 seeds"
    for name in ("report.md", "report.tex", "comparisons.csv"):
        lines = (out / name).read_text().splitlines()
        found = [line for line in lines if "other targets and seeds" in line]
        assert len(found) >= 4
        assert all(said in line for line in found)
    page = (out / "report.html").read_text()
    rows = [row for row in page.split("<tr>") if "other targets and" in row]
    assert len(rows) >= 4
    assert all(said in row for row in rows)


def test_runs_without_a_partner_are_named(grid, out):
    rows = {(r["first"], r["second"]): r for r in read(out / "comparisons.csv")}
    assert rows["PANDA paper", "PoT"]["unpaired"] == ""
    assert rows["PANDA paper", "PoT"]["pairs"] == "26"


def test_a_missing_partner_is_named(tmp_path):
    for seed in (0, 1):
        write_run(
            tmp_path,
            f"p{seed}",
            value=0.6,
            method="panda",
            seed=seed,
            source="mnli",
            kd_weight=0.5,
        )
    write_run(tmp_path, "q", value=0.5, method="pot", source="mnli")
    (one,) = compare(make_boards(read_results(tmp_path)))
    assert one.unpaired == ("mnli>cb seed 1",)
    assert (one.pairs, one.difference) == (1, pytest.approx(10))
    assert math.isnan(one.low)


def test_one_seed_speaks_for_other_targets_alone(tmp_path):
    """And its interval is that of the t test over targets."""
    rng = np.random.default_rng(1)
    targets = ("cb", "copa", "cola", "mrpc", "qqp", "rte", "stsb", "wic")
    gains = rng.normal(0.02, 0.05, len(targets))
    for target, gain in zip(targets, gains, strict=True):
        write_run(tmp_path, f"{target}/a", value=0.5, task=target)
        write_run(
            tmp_path,
            f"{target}/b",
            value=0.5 + gain,
            task=target,
            method="pot",
            source="mnli",
        )
    (one,) = compare(make_boards(read_results(tmp_path)))
    wanted = stats.ttest_1samp(100 * gains, 0)
    assert (one.low, one.high) == pytest.approx(wanted.confidence_interval())
    assert one.p == pytest.approx(wanted.pvalue)
    assert one.holds_for == "other targets, these seeds"


def test_seeds_that_a_target_lacks(tmp_path):
    """Each target weighs alike, and each of its sources, and its seeds."""
    gains = {("cb", 0): 0.1, ("cb", 1): 0.3, ("rte", 1): 0.2, ("rte", 2): -0.1}
    for (task, seed), gain in gains.items():
        where = {"task": task, "seed": seed}
        write_run(tmp_path, f"{task}{seed}a", value=0.5, **where)
        for source in ("mnli", "qqp")[: 2 if task == "cb" else 1]:
            extra = 0.04 if source == "qqp" else 0.0
            write_run(
                tmp_path,
                f"{task}{seed}{source}",
                value=0.5 + gain + extra,
                method="pot",
                source=source,
                **where,
            )
    (one,) = compare(make_boards(read_results(tmp_path)))
    assert (one.targets, one.seeds, one.pairs) == (2, 3, 6)
    assert one.difference == pytest.approx((22 + 5) / 2)


def write_own(root):
    """PoT and PANDA from cb and mnli on cb, with prompt-tuning."""
    for source, gain in (("cb", 0.3), ("mnli", 0.1)):
        how = {"source": source, "task": "cb"}
        write_run(root, f"{source}pot", value=0.5, method="pot", **how)
        how |= {"method": "panda", "kd_weight": 0.5}
        write_run(root, f"{source}panda", value=0.5 + gain, **how)
    write_run(root, "plain", value=0.4, task="cb")


def test_pairs_of_a_task_with_itself_have_rows_without_them(tmp_path):
    write_own(tmp_path)
    write_report(tmp_path, tmp_path / "out")
    rows = read(tmp_path / "out" / "gains.csv")
    assert [(row["tasks"], float(row["mean"])) for row in rows] == [
        ("all", pytest.approx(20)),
        ("other", pytest.approx(10)),
    ]
    rows = read(tmp_path / "out" / "comparisons.csv")
    found = {(r["tasks"], r["first"], r["second"]): r for r in rows}
    panda = {
        tasks: found[tasks, "PANDA paper", "PoT"] for tasks in ("all", "other")
    }
    assert float(panda["all"]["difference"]) == pytest.approx(20)
    assert float(panda["other"]["difference"]) == pytest.approx(10)
    assert panda["other"]["pairs"] == "1"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Cells of a task with its own prompt as source: 2." in text
    assert (
        "PANDA paper - PoT, other tasks only | 1 | 1 | 1 | 1 | +10.00 |" in text
    )


def test_a_control_that_is_prompt_tuning_is_no_second_test(tmp_path):
    for n, task in enumerate(("cb", "copa", "cola", "mrpc", "rte", "wic")):
        write_run(tmp_path, f"{task}p", value=0.4, task=task)
        write_run(tmp_path, f"{task}c", value=0.4, task=task, method="panda")
        how = {"task": task, "source": "mnli"}
        write_run(
            tmp_path, f"{task}q", value=0.5 + 0.01 * n, method="pot", **how
        )
        how |= {"method": "panda", "kd_weight": 0.5}
        write_run(tmp_path, f"{task}d", value=0.6 + 0.03 * n**2 % 0.1, **how)
    write_report(tmp_path, tmp_path / "out")
    found = {
        (r["first"], r["second"]): r
        for r in read(tmp_path / "out" / "comparisons.csv")
    }
    twin = found["PANDA paper", "PANDA weight 0"]
    assert twin["same_as"] == "prompt-tuning"
    assert twin["holm"] == found["PANDA paper", "prompt-tuning"]["holm"]
    # Three tests, not four.
    assert {row["tests"] for row in found.values()} == {"3"}
    least = min(found.values(), key=lambda row: float(row["p"]))
    assert float(least["holm"]) == pytest.approx(3 * float(least["p"]))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "PANDA weight 0 is identical to prompt-tuning on bert-tiny" in text
    assert "Holm counts them once" in text


def test_means_of_different_sources_stand_beside_common_ones(tmp_path):
    """All gains are 0, though the means differ by 20."""
    for source, value in (("mnli", 0.9), ("sst2", 0.7), ("squad", 0.2)):
        how = {"source": source, "task": "cb"}
        if source == "squad":
            lost = {"backbone": "bert-tiny", "method": "pot", "seed": 0}
            fail(tmp_path, f"{source}pot", "why", **how, **lost)
        else:
            write_run(
                tmp_path, f"{source}pot", value=value, method="pot", **how
            )
        how |= {"method": "panda", "kd_weight": 0.5}
        write_run(tmp_path, f"{source}panda", value=value, **how)
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| bert-tiny | PoT | 2 | 80.0† | 1/1 | 80.0 |" in text
    assert "| bert-tiny | PANDA paper | 3 | 60.0 | 1/1 | 80.0 |" in text
    assert "| PoT: mean of 2 sources | 80.0† | 80.0 |" in text


def test_over_all_backbones(tmp_path):
    gains = {"bert-tiny": 0.1, "bert-small": 0.3}
    for backbone, gain in gains.items():
        write_run(tmp_path, f"{backbone}/a", value=0.5, backbone=backbone)
        write_run(
            tmp_path,
            f"{backbone}/b",
            value=0.5 + gain,
            method="pot",
            source="mnli",
            backbone=backbone,
        )
    found = compare(make_boards(read_results(tmp_path)))
    assert [(one.backbone, round(one.difference)) for one in found] == [
        ("bert-small", 30),
        ("bert-tiny", 10),
        ("", 20),
    ]
    assert found[2].targets == 1


def test_best_source_by_metric(grid):
    root, scores = grid
    (board,) = make_boards(read_results(root))
    did = {
        (s, t): statistics.mean(seeds_of(scores, "PoT", s, t))
        for s in SOURCES
        for t in TARGETS
    }
    marks = np.array([[0.1, 0.5, np.nan], [0.3, 0.5, np.nan], [0.2, 0.1, 1.0]])
    table = Scores(SOURCES, TARGETS, {"e_avg": marks})
    found = {(c.target, c.chooser): c for c in choose(board, "PoT", table)}
    assert len(found) == 6
    for target in TARGETS:
        best = max(SOURCES, key=lambda s: did[s, target])
        one = found[target, "oracle"]
        assert (one.sources, one.behind) == ((best,), 0)
        assert one.value == pytest.approx(did[best, target])
    assert found["cb", "e_avg"].sources == ("sst2",)
    tied = found["rte", "e_avg"]
    assert tied.sources == ("mnli", "sst2")
    mean = (did["mnli", "rte"] + did["sst2", "rte"]) / 2
    assert tied.value == pytest.approx(mean)
    best = max(did[s, "rte"] for s in SOURCES)
    assert tied.behind == pytest.approx(mean - best)
    assert found["toy_review", "e_avg"].sources == ("squad",)


def test_the_targets_own_prompt_cannot_be_chosen(tmp_path):
    for source, value in (("cb", 0.9), ("mnli", 0.5), ("sst2", 0.6)):
        write_run(tmp_path, source, value=value, method="pot", source=source)
    (board,) = make_boards(read_results(tmp_path))
    sources = ("cb", "mnli", "sst2")
    scores = Scores(sources, ("cb",), {"on": np.array([[1.0], [0.5], [0.2]])})
    found = {c.chooser: c for c in choose(board, "PoT", scores)}
    assert found["oracle"].sources == ("sst2",)
    assert found["on"].sources == ("mnli",)
    assert found["on"].behind == pytest.approx(-10)
    assert found["itself"].behind == pytest.approx(30)
    (table,) = choice_table(board, "PoT", scores)
    assert table is not None
    assert table.head == [
        "target",
        "oracle",
        "on",
        "itself",
        "mean other source",
    ]
    assert table.rows[0][-1] == "55.0"


def test_score_files_are_read(grid, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("source,target,metric,score\nsst2,cb,logme,2\n")
    write_report(grid[0], tmp_path / "out", scores=str(path))
    rows = read(tmp_path / "out" / "best_source_bert-tiny_pot.csv")
    assert [r["source"] for r in rows if r["chooser"] == "logme"] == ["sst2"]


def test_the_failed_run_is_named_in_every_form(out):
    row = next(r for r in read(out / "left_out.csv"))
    assert (row["status"], row["source"], row["target"], row["seed"]) == (
        "failed",
        "mnli",
        "rte",
        "1",
    )
    assert row["reason"] == "kd_loss is <nan> & more"
    page = (out / "report.html").read_text()
    assert "kd_loss is &lt;nan&gt; &amp; more" in page
    assert "<nan>" not in page
    assert r"kd\_loss is \<nan\> & more" in (out / "report.md").read_text()
    tex = (out / "report.tex").read_text()
    assert r"kd\_loss is \textless{}nan\textgreater{} \& more" in tex
    for name in ("report.html", "report.md", "report.tex"):
        assert "1 failed" in (out / name).read_text()


def test_all_runs_that_count(grid, out):
    rows = read(out / "runs.csv")
    assert len(rows) == len(grid[1]) == 80
    for row in rows:
        key = row["label"], row["source"], row["target"], int(row["seed"])
        assert float(row["value"]) == pytest.approx(grid[1][key])


def test_the_same_results_give_the_same_bytes(grid, out, tmp_path):
    """Wherever they lie, in whatever order they were written."""
    shutil.copytree(grid[0], tmp_path / "moved")
    write_report(tmp_path / "moved", tmp_path / "again")
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in names:
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (out / name).read_bytes(), name
        assert str(grid[0]).encode() not in again


class Page(HTMLParser):
    """Tags that are open, and every attribute."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(out):
    text = (out / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "srcset", "href", "action", "data", "poster"):
            assert re.match(r"data:|#", value), (name, value[:60])
        assert not name.startswith("on")
    assert page.tags.count("img") == 2
    for outside in ("http", "//cdn", "@import", "url(", "<script"):
        assert outside not in text
    ids = {value for name, value in page.attributes if name == "id"}
    links = [v for n, v in page.attributes if n == "href" and v[0] == "#"]
    assert {link[1:] for link in links} == ids


def test_tables_scroll_in_their_own_box(out):
    text = (out / "report.html").read_text()
    assert text.count("<table>") == len(
        re.findall(r'<div class="box"[^>]*>\s*<table>', text)
    )
    assert "width=device-width" in text
    assert re.search(r"\.box \{ overflow: auto", text)
    assert re.search(r"thead th \{ position: sticky; top: 0", text)


def test_pictures_of_the_page_are_those_beside_it(out):
    import base64

    text = (out / "report.html").read_text()
    found = re.findall(r"data:image/png;base64,([^\"]+)", text)
    files = {path.read_bytes() for path in out.glob("*.png")}
    assert {base64.b64decode(data) for data in found} == files
    assert len(files) == 2
    for path in out.glob("*.png"):
        assert pictures.data_path(path).exists()
        assert b"tIME" not in path.read_bytes()


def test_markdown_tables_are_whole(out):
    text = (out / "report.md").read_text()
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) > 6
    for block in blocks:
        widths = {
            len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()
        }
        assert len(widths) == 1, block


def test_latex_needs_no_package(out):
    text = (out / "report.tex").read_text()
    assert "usepackage" not in text
    assert text.isascii()
    bare = re.sub(r"\\[{}&%$#_\\]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{((?:[lr]|p\{6cm\})+)\}\\hline\n(.*?)\\hline\\end",
        text,
        re.DOTALL,
    ):
        count = len(columns.replace("p{6cm}", "p"))
        for line in body.splitlines():
            assert len(re.findall(r"(?<!\\)&", line)) + 1 == count


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a_b & 5%", r"a\_b \& 5\%"),
        ("[1, 2]", "{[}1, 2]"),
        ("x ± 1†", r"x $\pm$ 1$\dagger$"),
        ("\\input{x} ☃\x00", r"\textbackslash{}input\{x\} ??"),
    ],
)
def test_latex_prints_text_as_it_is(text, wanted):
    assert tex(text) == wanted


def test_names_cannot_break_out(tmp_path):
    evil = '<img src=x onerror="1"> | \\end{document}'
    table = Table("t", evil, ["", evil], [[evil, evil]], [], [evil])
    sections = [Section(evil, [evil], [table])]
    assert "<img" not in page(evil, sections, tmp_path)
    text = markdown("t", sections)
    assert "<img" not in text.replace(r"\<img", "")
    assert latex("t", sections).count(r"\end{document}") == 1


def test_what_a_report_cannot_be_of(tmp_path):
    fail(tmp_path, "a", "no data", task="cb", method="pot")
    with pytest.raises(UserError, match=r"None of the 1 runs .*no data"):
        write_report(tmp_path, tmp_path / "out")
    write_run(tmp_path, "b", value=0.5)
    for wrong in ({"confidence": 0.0}, {"confidence": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            write_report(tmp_path, tmp_path / "out", **wrong)
    with pytest.raises(UserError, match="scores.csv"):
        write_report(tmp_path, tmp_path / "out", scores="scores.csv")


def test_variants_in_several_settings_have_pictures_of_their_own(tmp_path):
    for number, (a, b) in enumerate(itertools.product((1, 2), (3, 4))):
        write_run(
            tmp_path,
            f"{number}",
            value=0.1 * number,
            method="pot",
            source="mnli",
            settings={"epochs": a, "batch_size": b},
        )
    paths = write_report(tmp_path, tmp_path / "out")
    maps = [path for path in paths if path.suffix == ".png"]
    assert len(set(maps)) == 4
    values = [read(pictures.data_path(path))[0]["cb"] for path in maps]
    assert sorted(map(float, values)) == pytest.approx([0, 10, 20, 30])


def test_a_gain_is_between_runs_of_the_same_variant(tmp_path):
    for epochs, method in itertools.product((1, 2), ("pot", "panda")):
        write_run(
            tmp_path,
            f"{method}{epochs}",
            value=0.5,
            method=method,
            source="mnli",
            kd_weight=0.5,
            settings={"epochs": epochs},
        )
    write_report(tmp_path, tmp_path / "out")
    rows = read(tmp_path / "out" / "gains.csv")
    assert [(row["first"], row["second"]) for row in rows] == [
        (f"PANDA paper [epochs={n}]", f"PoT [epochs={n}]") for n in (1, 2)
    ]


def test_score_files_that_cannot_be_placed(tmp_path):
    for backbone in ("bert-tiny", "bert-mini"):
        write_run(tmp_path, backbone, value=0.5, backbone=backbone)
    rows = "source,target,metric,score\nsst2,cb,logme,2\n"
    (tmp_path / "a.csv").write_text(rows)
    named = "backbone," + rows.replace("\ns", "\nbert-tiny,s")
    (tmp_path / "b.csv").write_text(named)
    (tmp_path / "c.csv").write_text(named.replace("-tiny", "-tinny"))

    def told(files, words):
        scores = ",".join(str(tmp_path / name) for name in files)
        with pytest.raises(UserError, match=words):
            write_report(tmp_path, tmp_path / "out", scores=scores)

    told(["a.csv"], r"a.csv does not say of which backbone")
    told(["b.csv", "b.csv"], r"b.csv: a second file with scores of bert-tiny")
    told(["c.csv"], r"backbone in .*c.csv: 'bert-tinny'. Did you mean")
    assert not (tmp_path / "out").exists()


def test_the_verb_prints_what_it_wrote(tmp_path, capsys):
    write_run(tmp_path, "a", value=0.5, task="rte")
    out = tmp_path / "out"
    argv = ["report", f"--runs={tmp_path}", f"--out_dir={out}"]
    assert cli.main([*argv, "--value=final"]) == 0
    paths = capsys.readouterr().out.split()
    assert str(out / "report.html") in paths
    assert {str(p) for p in out.iterdir()} == {*paths, f"{out / LISTING}"}
    assert "| prompt-tuning | 25.0 |" in (out / "report.md").read_text()
    for flag, words in (
        ("--value=mean", "Unknown value 'mean'"),
        ("--confidence=2", "confidence is 2"),
        (f"--runs={tmp_path / 'nowhere'}", "does not exist"),
    ):
        assert cli.main([*argv, flag]) == 2
        assert words in capsys.readouterr().err


def test_files_of_a_former_report_are_removed(tmp_path):
    """Its own alone: a table that is no more looks like one that is."""
    out = tmp_path / "out"
    write_own(tmp_path / "runs")
    write_report(tmp_path / "runs", out)
    (out / "notes.csv").write_text("mine")
    (tmp_path / "other.csv").write_text("mine")
    # As release 0.1 would have removed them.
    (out / "files.txt").write_text("../other.csv\n..\nnotes.csv\n\n")
    assert (out / "heatmap_pot_on_bert-tiny_data.csv").exists()
    write_run(tmp_path / "one", "a", value=0.5)
    write_report(tmp_path / "one", out)
    names = {path.name for path in out.iterdir()}
    listing = Listing.read(out)
    assert listing is not None
    assert names == {*listing.files, "notes.csv", "files.txt", LISTING}
    assert (tmp_path / "other.csv").exists()
    assert "gains.csv" not in names


def test_a_single_run(tmp_path):
    write_run(tmp_path, "a", value=0.5, task="rte")
    paths = write_report(tmp_path, tmp_path / "out")
    assert all(path.exists() for path in paths)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| prompt-tuning | 50.0 | 50.0 |" in text
    assert "None: every run that was found counts." in text


def test_ours_beside_the_papers(tmp_path):
    write_run(tmp_path, "p0", value=0.70, task="cb", seed=0)
    write_run(tmp_path, "p1", value=0.72, task="cb", seed=1)
    write_run(
        tmp_path, "pot", value=0.5, task="rte", method="pot", source="mnli"
    )
    write_run(tmp_path, "c", value=0.5, task="cb", method="panda")
    write_run(tmp_path, "own", value=0.5, task="toy_review", method="model")
    write_run(tmp_path, "m", value=0.6, task="cb", method="model")
    boards = make_boards(read_results(tmp_path))
    found = {one[1:4]: one for one in beside(boards)}
    # As printed for BERT-tiny; it has no control and no toy_review.
    assert {key: one.published for key, one in found.items()} == {
        ("model-tuning", "", "cb"): 73.2,
        ("prompt-tuning", "", "cb"): 71.4,
        ("PoT", "mnli", "rte"): 66.1,
    }
    one = found["prompt-tuning", "", "cb"]
    assert (one.n, one.ours) == (2, pytest.approx(71))
    assert one.difference == pytest.approx(-0.4)
    summary, wide = beside_tables(boards)
    assert [row[1] for row in summary.rows] == [
        "model-tuning",
        "prompt-tuning",
        "PoT",
    ]
    assert wide.rows[1] == ["prompt-tuning", "-0.4", "–"]


def test_no_cell_in_common(tmp_path):
    write_run(tmp_path, "a", value=0.5, backbone="minilm-l6")
    boards = make_boards(read_results(tmp_path))
    assert list(beside_tables(boards)) == []


def test_its_modules_load_without_jax():
    code = (
        "import sys\n"
        "from panda_jax.experiments.report import report\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
