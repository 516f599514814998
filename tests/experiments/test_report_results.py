"""What of a folder of runs counts, and what is left out by name."""

import dataclasses
import itertools
import json
import os
import shutil

import pytest
from made_up_runs import describe, fail, write_run

from panda_jax.errors import UserError
from panda_jax.experiments.grid.grid import Grid, expand
from panda_jax.experiments.grid.ledger import Ledger
from panda_jax.experiments.report.board import make_boards
from panda_jax.experiments.report.comparisons import compared
from panda_jax.experiments.report.report import write_report
from panda_jax.experiments.report.results import read_results


def statuses(found):
    return {out.folder: out.status for out in found.left_out}


def test_runs_at_any_depth(tmp_path):
    write_run(tmp_path, "a", value=0.5, task="cb")
    write_run(tmp_path, "b/c/d", value=0.75, task="rte", method="model")
    (tmp_path / "a" / "prompt").mkdir()
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    found = read_results(tmp_path)
    assert [(run.folder, run.value) for run in found.runs] == [
        ("a", 50.0),
        ("b/c/d", 75.0),
    ]
    assert found.left_out == ()


@pytest.mark.parametrize(
    ("value", "score"), [("best", 50.0), ("final", 25.0), ("first_epoch", 12.5)]
)
def test_which_score_counts(tmp_path, value, score):
    write_run(tmp_path, "a", value=0.5)
    assert read_results(tmp_path, value=value).runs[0].value == score


def test_a_failed_run_is_named_with_its_reason(tmp_path):
    write_run(tmp_path, "good", value=0.5)
    describe(
        tmp_path,
        "bad",
        settings={
            "task": "rte",
            "method": "panda",
            "recipe": "paper",
            "backbone": "bert-tiny",
            "seed": 4,
        },
        needs={"source": "mnli@0123456789"},
    )
    fail(tmp_path, "bad", "kd_loss is nan at step 40", kd_weight=None)
    (out,) = read_results(tmp_path).left_out
    assert out.status == "failed"
    assert out.reason == "kd_loss is nan at step 40"
    assert out.run_id == "failed-bad"
    assert (out.label, out.source, out.target, out.seed) == (
        "PANDA paper",
        "mnli",
        "rte",
        "4",
    )


def test_a_run_that_failed_before_it_began(tmp_path):
    write_run(tmp_path, "good", value=0.5)
    fail(tmp_path, "bad", "no data", task="cb", method="pot", source="/x/mnli")
    (out,) = read_results(tmp_path).left_out
    assert (out.label, out.source, out.target) == ("PoT", "mnli", "cb")


def test_a_run_that_failed_once_and_was_done_later_counts(tmp_path):
    write_run(tmp_path, "a", value=0.5)
    fail(tmp_path, "a", "the disk was full")
    found = read_results(tmp_path)
    assert len(found.runs) == 1
    assert found.left_out == ()


def test_an_unfinished_run_is_named(tmp_path):
    write_run(tmp_path, "good", value=0.5)
    describe(tmp_path, "half", settings={"task": "cb", "kd_weight": 0})
    assert statuses(read_results(tmp_path)) == {"half": "unfinished"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"best": {"value": float("nan")}}, "best.value is nan"),
        ({"best": {"value": float("inf")}}, "best.value is inf"),
        ({"best": {"value": "0.5"}}, "best.value is '0.5'"),
        ({"best": {"value": True}}, "best.value is True"),
        ({"best": None}, "best.value is None"),
        ({"best": 0.5}, "best.value is None"),
        ({"task": None}, "task is None"),
        ({"seed": "0"}, "seed is '0'"),
        ({"method": "lora"}, "method is 'lora'"),
        ({"backbone": 3}, "backbone is 3"),
    ],
)
def test_a_result_that_is_none_is_left_out(tmp_path, changes, words):
    write_run(tmp_path, "good", value=0.5)
    write_run(tmp_path, "odd", value=0.5, **changes)
    found = read_results(tmp_path)
    assert [run.folder for run in found.runs] == ["good"]
    (out,) = found.left_out
    assert out.status == "unreadable"
    assert words in out.reason
    assert "odd/result.json" in out.reason
    assert str(tmp_path) not in out.reason


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff"])
@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_broken_files_are_left_out_by_name(tmp_path, text, name):
    write_run(tmp_path, "good", value=0.5)
    write_run(tmp_path, "odd", value=0.5)
    (tmp_path / "odd" / name).write_bytes(text.encode("latin-1"))
    found = read_results(tmp_path)
    assert [run.folder for run in found.runs] == ["good"]
    assert f"odd/{name}" in found.left_out[0].reason
    assert str(tmp_path) not in found.left_out[0].reason


def test_what_a_killed_process_had_on_its_way_is_no_run(tmp_path):
    """It may be an older result than the one that took its place."""
    path = write_run(tmp_path, "a", value=0.5)
    staged = path.parent / ".panda_jax.0123456789ab"
    staged.mkdir()
    shutil.copy(path, staged)
    found = read_results(tmp_path)
    assert [run.folder for run in found.runs] == ["a"]
    assert found.left_out == ()
    path.unlink()
    found = read_results(tmp_path)
    assert not found.runs
    assert statuses(found) == {"a": "unfinished"}


def test_a_run_in_two_folders_counts_once(tmp_path):
    write_run(tmp_path, "p/target_prompt", value=0.5, run_id="x")
    write_run(tmp_path, "a/deep/x", value=0.5, run_id="x")
    write_run(tmp_path, "z", value=0.25, run_id="x")
    found = read_results(tmp_path)
    assert [run.folder for run in found.runs] == ["z"]
    assert statuses(found) == {
        "p/target_prompt": "double",
        "a/deep/x": "double",
    }
    assert all("0.5 here, 0.25 there" in out.reason for out in found.left_out)


def test_what_a_run_made_for_itself_counts_where_nothing_else_is(tmp_path):
    write_run(
        tmp_path, "p", value=0.5, method="panda", source="mnli", kd_weight=0.5
    )
    write_run(tmp_path, "p/teacher", value=0.25, method="pot", source="mnli")
    found = read_results(tmp_path)
    assert [(run.folder, run.label) for run in found.runs] == [
        ("p", "PANDA paper"),
        ("p/teacher", "PoT"),
    ]


def test_what_a_run_made_for_itself_gives_way_to_the_grids_own(tmp_path):
    lots = {"settings": {"epochs": 9}}
    write_run(
        tmp_path, "p", value=0.5, method="panda", source="mnli", kd_weight=0.5
    )
    write_run(tmp_path, "p/teacher", value=0.2, method="pot", source="mnli")
    write_run(tmp_path, "q", value=0.3, method="pot", source="mnli", **lots)
    found = read_results(tmp_path)
    assert [run.folder for run in found.runs] == ["p", "q"]
    assert found.runs[1].label == "PoT"
    assert statuses(found) == {"p/teacher": "other"}
    assert "q, counts" in found.left_out[0].reason


def test_the_control_has_a_weight_of_0_that_was_set(tmp_path):
    panda = {"method": "panda", "value": 0.5}
    write_run(tmp_path, "control", **panda)
    write_run(
        tmp_path, "unlike", source="sst2", transfer_metric="panda", **panda
    )
    write_run(
        tmp_path, "ours", source="sst2", kd_weight=0.3, recipe="ours", **panda
    )
    labels = {run.folder: run.label for run in read_results(tmp_path).runs}
    assert labels == {
        "control": "PANDA weight 0",
        "unlike": "PANDA paper",
        "ours": "PANDA kl",
    }


def test_runs_of_a_cell_that_differ_in_settings_are_rows_apart(tmp_path):
    for seed, weight in ((0, 1.0), (0, 3.0), (1, 1.0), (1, 3.0)):
        write_run(
            tmp_path,
            f"{seed}-{weight}",
            value=0.5,
            method="panda",
            source="mnli",
            kd_weight=weight,
            seed=seed,
            settings={"kd_lambda": weight, "seed": seed, "epochs": 2},
        )
    found = read_results(tmp_path)
    assert {run.label for run in found.runs} == {
        "PANDA paper [kd_lambda=1.0]",
        "PANDA paper [kd_lambda=3.0]",
    }
    assert found.left_out == ()


def test_settings_of_different_targets_make_no_variants(tmp_path):
    for task, epochs in (("cb", 20), ("rte", 3)):
        write_run(
            tmp_path, task, value=0.5, task=task, settings={"epochs": epochs}
        )
    labels = {run.label for run in read_results(tmp_path).runs}
    assert labels == {"prompt-tuning"}


def test_runs_of_a_cell_that_rest_on_different_prompts(tmp_path):
    """Each seed has its own prompts, so that these tell no rows apart."""
    for seed, digest in itertools.product((0, 1), "ab"):
        write_run(
            tmp_path,
            f"{digest}{seed}",
            value=0.5,
            method="pot",
            source="mnli",
            seed=seed,
            needs={"source": f"mnli@{digest}{seed}"},
        )
    found = read_results(tmp_path)
    assert [(run.label, run.folder) for run in found.runs] == [
        ("PoT", "a0"),
        ("PoT", "a1"),
    ]
    assert statuses(found) == {"b0": "other", "b1": "other"}
    assert "rests on other prompts" in found.left_out[0].reason


def test_values_that_are_cut_stay_apart(tmp_path):
    texts = [f"a text of more than 24 letters {n}" for n in "ab"]
    texts += ["/here/model", "/there/model"]
    for number, text in enumerate(texts):
        settings = {"init_text": text}
        write_run(tmp_path, f"{number}", value=0.5, settings=settings)
    found = read_results(tmp_path)
    assert len({run.label for run in found.runs}) == 4
    assert found.left_out == ()


def listed_grid(root, value, **settings):
    """A small grid's list and its runs, all done, as the grid leaves them."""
    plan = expand(
        Grid(
            backbones="random:bert-tiny",
            sources="toy_sentiment,toy_topic",
            targets="toy_review",
            seeds="0,1",
            settings={"epochs": 2},
            **settings,
        )
    )
    Ledger(plan, root).write_plan()
    for planned in plan.runs:
        run = planned.run
        if (root / planned.folder).exists():  # of a former list
            continue
        write_run(
            root,
            planned.folder,
            value=value,
            task=run.task,
            method=run.method,
            seed=run.seed,
            source=planned.source,
            recipe=run.recipe if run.method == "panda" else None,
            kd_weight=0.0 if run.kd_weight == 0 else 0.3,
            transfer_metric="panda" if run.kd_weight != 0 else None,
            backbone=run.backbone,
            run_id=planned.name,
            settings=dataclasses.asdict(run),
            needs=dict(planned.needs),
        )
    return plan


def test_what_a_grid_lists_no_more_does_not_count(tmp_path):
    """The runs of former settings stay in the folder."""
    old = listed_grid(
        tmp_path,
        0.4,
        overrides={"source toy_sentiment": {"learning_rate": 0.1}},
    )
    new = listed_grid(
        tmp_path,
        0.6,
        overrides={"source toy_sentiment": {"learning_rate": 0.2}},
    )
    both = {run.folder for run in old.runs} & {run.folder for run in new.runs}
    kept = next(run for run in new.runs if run.run.method == "panda")
    for run in (old.runs[0], kept):
        write_run(
            tmp_path,
            f"{run.folder}/teacher",
            value=0.1,
            task="toy_review",
            method="pot",
            source="toy_topic",
            backbone=run.run.backbone,
        )
    found = read_results(tmp_path)
    counted = {run.folder for run in found.runs} - both
    assert counted <= {run.folder for run in new.runs}
    assert {run.label for run in found.runs} == {
        "source prompt",
        "model-tuning",
        "prompt-tuning",
        "PoT",
        "PANDA paper",
        "PANDA weight 0",
    }
    gone = {o.folder for o in found.left_out if o.status == "not listed"}
    assert gone >= {run.folder for run in old.runs} - both
    assert f"{old.runs[0].folder}/teacher" in gone
    assert statuses(found)[f"{kept.folder}/teacher"] == "other"
    (board,) = make_boards(found)
    assert all(len(seeds) == 2 for seeds in board.cells.values())


def test_the_list_knows_whose_an_unreadable_file_is(tmp_path):
    plan = listed_grid(tmp_path, 0.5)
    run = next(run for run in plan.runs if run.run.method == "pot")
    (tmp_path / run.folder / "result.json").write_text("{")
    (out,) = read_results(tmp_path).left_out
    assert (out.status, out.label, out.target) == (
        "unreadable",
        "PoT",
        "toy_review",
    )
    assert "result.json" in out.reason


def test_a_second_run_that_nothing_tells_apart_is_named(tmp_path):
    write_run(tmp_path, "a", value=0.5)
    write_run(tmp_path, "b", value=0.6)
    found = read_results(tmp_path)
    assert [run.folder for run in found.runs] == ["a"]
    assert statuses(found) == {"b": "other"}
    assert "a counts" in found.left_out[0].reason


def test_source_prompts_are_no_row(tmp_path):
    write_run(tmp_path, "runs/sources/mnli", value=0.8, task="mnli")
    write_run(tmp_path, "runs/sources/cb", value=0.7, task="cb")
    write_run(tmp_path, "runs/cb", value=0.6, task="cb")
    write_run(
        tmp_path, "pot", value=0.5, task="cb", method="pot", source="mnli"
    )
    (board,) = make_boards(read_results(tmp_path))
    assert board.targets == ("cb",)
    assert [row.name for row in board.rows] == ["prompt-tuning", "PoT: mnli"]
    assert board.cell(board.rows[0], "cb").mean == 60
    assert board.made == {
        ("source prompt", "mnli"): {0: 80},
        ("source prompt", "cb"): {0: 70},
    }


def test_source_prompts_of_two_settings_stay_apart(tmp_path):
    for rate in (0.1, 0.2):
        write_run(
            tmp_path,
            f"sources/{rate}",
            value=rate,
            task="mnli",
            settings={"learning_rate": rate},
        )
    write_run(tmp_path, "plain", value=0.3, task="mnli")
    write_run(tmp_path, "m", value=0.3, task="cb", method="model")
    (board,) = make_boards(read_results(tmp_path))
    assert board.made == {
        ("prompt-tuning", "mnli"): {0: 30},
        ("source prompt [learning_rate=0.1]", "mnli"): {0: 10},
        ("source prompt [learning_rate=0.2]", "mnli"): {0: 20},
    }


def test_a_report_of_every_stage_of_a_grid(tmp_path):
    """Sources, prompts, controls, PoT: its targets are columns from the first
    on."""
    done = tmp_path / "done"
    plan = listed_grid(done, 0.5)
    root = tmp_path / "grid"
    Ledger(plan, root).write_plan()
    for role in ("source", "prompt", "control", "pot", "panda", "finetune"):
        for run in plan.runs:
            if role in run.roles:
                shutil.copytree(
                    done / run.folder, root / run.folder, dirs_exist_ok=True
                )
        write_report(root, tmp_path / role)
        (board,) = make_boards(read_results(root))
        assert board.targets == ("toy_review",)
        text = (tmp_path / role / "report.md").read_text()
        waiting = "not begun" in text
        assert waiting is (role != "finetune")
    assert "†" not in text


def test_sources_alone_make_a_report(tmp_path):
    write_run(tmp_path, "sources/mnli", value=0.8, task="mnli")
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "Nothing but source prompts" in text
    assert "| bert-tiny | source prompt | mnli | 80.0 | 1 |" in text


def test_a_target_on_which_all_failed_is_a_column(tmp_path):
    for method, source in (("model", None), ("prompt", None), ("pot", "mnli")):
        how = {"method": method, "source": source}
        write_run(tmp_path, f"a{method}", value=0.6, **how)
        how |= {"task": "rte", "backbone": "bert-tiny", "seed": 0}
        fail(tmp_path, f"b{method}", "no data", **how)
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "| PoT: mnli | 60.0 | † | 60.0 (1/2) |" in text
    assert "| bert-tiny | PoT | 1 | 60.0† | 1/2 |" in text


def test_points_of_two_metrics_are_not_averaged(tmp_path):
    for seed, metric in enumerate(("accuracy", "f1", "accuracy")):
        write_run(
            tmp_path, f"p{seed}", value=0.1 * seed, seed=seed, metric=metric
        )
    write_run(tmp_path, "m", value=0.6, task="rte", metric="f1")
    found = read_results(tmp_path)
    assert statuses(found) == {"p1": "other metric"}
    assert "its score is f1" in found.left_out[0].reason
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "The runs of cb on bert-tiny have more than one metric" in text
    assert "| prompt-tuning | 10.0 ± 14.1 (2)† |" in text


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("development data", "of cb on bert-tiny differ in development data"),
        ("backbone weights", "of bert-tiny differ in backbone weights"),
        ("training data", "of cb on bert-tiny with all rows differ in train"),
        ("dtype", "of cb on bert-tiny differ in dtype: bfloat16 (1 runs, "),
    ],
)
def test_runs_on_other_data_or_weights_are_named(tmp_path, what, words):
    for digest, method in (("float32", "prompt"), ("bfloat16", "pot")):
        write_run(
            tmp_path,
            method,
            value=0.5,
            method=method,
            source="mnli" if method == "pot" else None,
            needs={what: digest},
        )
    write_run(tmp_path, "r", value=0.5, task="rte")
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert words in text
    assert ("Warning" in text) is bool(words)


def test_where_nothing_is_learnt_is_named(tmp_path):
    for task, values in (("cb", (0.5, 0.6)), ("rte", (0.6, 0.6))):
        for seed, value in enumerate(values):
            name = f"{task}{seed}"
            write_run(
                tmp_path, name, value=value, task=task, seed=seed, floor=0.5
            )
    write_run(tmp_path, "m", value=0.7, method="model", floor=0.5)
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "what one answer to every question scores: cb (50.0)." in text
    assert "rte (" not in text


def test_rows_that_every_seed_learns_from_are_named(tmp_path):
    settings = {"train_examples": 64}
    write_run(tmp_path, "a", value=0.5, settings=settings)
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "Learnt from the same 64 rows of a task by every seed" in text


def test_two_experiments_in_one_folder_are_told(tmp_path):
    for folder in "ab":
        write_run(tmp_path, folder, value=0.5, needs={"training data": folder})
    write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "holds more than one experiment" in text


def test_a_prompt_is_a_row_before_anything_is_transferred(tmp_path):
    plan = listed_grid(tmp_path, 0.5)
    for run in plan.runs:
        if run.roles not in (("source",), ("prompt",)):
            shutil.rmtree(tmp_path / run.folder)
    (board,) = make_boards(read_results(tmp_path))
    (row,) = board.done("prompt-tuning")
    assert board.cell(row, "toy_review").n == 2
    assert {label for label, _ in board.made} == {"source prompt"}


def test_a_lost_run_marks_its_own_variant(tmp_path):
    for weight, seed in itertools.product((1, 3), (0, 1)):
        panda = {"method": "panda", "source": "mnli", "seed": seed}
        settings = {"kd_lambda": weight}
        if (weight, seed) == (3, 1):
            settings |= {"recipe": "paper", "backbone": "bert-tiny"}
            fail(tmp_path, "x", "why", task="cb", **panda, **settings)
        else:
            name = f"{weight}{seed}"
            panda |= {"kd_weight": 0.5, "settings": settings}
            write_run(tmp_path, name, value=0.5, **panda)
    (board,) = make_boards(read_results(tmp_path))
    assert [(row.label, board.is_lost(row, "cb")) for row in board.rows] == [
        ("PANDA paper [kd_lambda=1]", False),
        ("PANDA paper [kd_lambda=3]", True),
    ]


def test_a_control_is_compared_at_its_own_settings(tmp_path):
    """In a sweep of which it has no part."""
    for rate, weight in itertools.product((0.1, 0.2), (1, 3)):
        write_run(
            tmp_path,
            f"{rate} {weight}",
            value=0.5,
            method="panda",
            source="mnli",
            kd_weight=0.5,
            settings={"learning_rate": rate, "kd_lambda": weight},
        )
    for rate in (0.1, 0.2):
        settings = {"learning_rate": rate, "kd_lambda": 1}
        write_run(
            tmp_path, f"{rate}", value=0.5, method="panda", settings=settings
        )
    (board,) = make_boards(read_results(tmp_path))
    assert compared(board) == [
        (
            f"PANDA paper [kd_lambda={weight}, learning_rate={rate}]",
            f"PANDA weight 0 [learning_rate={rate}]",
        )
        for weight, rate in itertools.product((1, 3), (0.1, 0.2))
    ]


def test_what_a_grid_has_not_begun_is_named(tmp_path):
    plan = expand(
        Grid(
            backbones="random:bert-tiny",
            sources="toy_sentiment",
            targets="toy_review",
            recipes="ours",
        )
    )
    ledger = Ledger(plan, tmp_path / "grid")
    ledger.write_plan()
    done, lost, *others = plan.runs
    write_run(tmp_path, f"grid/{done.folder}", value=0.5)
    ledger.fail(lost, UserError("why"))
    found = read_results(tmp_path)
    assert [run.folder for run in found.runs] == [f"grid/{done.folder}"]
    waiting = {out.run_id: out for out in found.left_out}
    assert waiting.pop(lost.name).status == "failed"
    assert waiting.keys() == {run.name for run in others}
    assert {out.status for out in waiting.values()} == {"not begun"}
    assert {
        (out.label, out.source, out.target, out.seed)
        for out in waiting.values()
    } >= {
        ("PoT", "toy_sentiment", "toy_review", "0"),
        ("PANDA kl", "toy_sentiment", "toy_review", "0"),
        ("model-tuning", "", "toy_review", "0"),
    }
    # As a run says of itself when it has begun, or failed.
    for run in others:
        ledger.fail(run, UserError("why"))
    for out in read_results(tmp_path).left_out:
        if out.run_id in waiting:
            again = waiting[out.run_id]._replace(status="failed", reason="why")
            assert out == again
    (tmp_path / "grid" / "grid.json").write_text('{"runs": [{"id": 1}]}')
    with pytest.raises(UserError, match="no list of a grid's runs"):
        read_results(tmp_path)


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    write_run(tmp_path, "a", value=0.5)
    write_run(tmp_path, "b/c", value=0.5)
    real = os.scandir

    def refuses(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(UserError, match="b' cannot be read: Permission"):
        read_results(tmp_path)


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(UserError, match="No run below"):
        read_results(tmp_path)
    with pytest.raises(UserError, match="value is 'mean'"):
        read_results(tmp_path, value="mean")


def test_a_folder_is_a_backbones_name_without_what_it_lies_in(tmp_path):
    write_run(tmp_path, "a", value=0.5, backbone="/x/models/mine")
    write_run(tmp_path, "b", value=0.5, backbone="/y/models/mine")
    names = [board.backbone for board in make_boards(read_results(tmp_path))]
    assert names == ["mine", "mine (2)"]


def test_links_are_not_followed(tmp_path):
    write_run(tmp_path, "a", value=0.5)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(read_results(tmp_path).runs) == 1


def test_results_stand_alone_without_run_json(tmp_path):
    path = write_run(tmp_path, "a", value=0.5)
    (path.parent / "run.json").unlink()
    assert json.loads(path.read_text())["best"]["value"] == 0.5
    assert read_results(tmp_path).runs[0].value == 50
