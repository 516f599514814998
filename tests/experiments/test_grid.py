"""Grids: which runs follow, their ids and needs, and who shares a fleet."""

import ast
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from panda_jax.tasks import specs

import panda_jax as pj
from panda_jax import UserError, cli
from panda_jax.config import registry
from panda_jax.config.runs import Run
from panda_jax.experiments.grid.grid import (
    AXES,
    LANES,
    Grid,
    Planned,
    expand,
    listing,
)
from panda_jax.training import step_inputs
from panda_jax.training.lane import Lane, Needs

TINY = {
    "backbones": "random:bert-tiny",
    "sources": "toy_sentiment,toy_topic",
    "targets": "toy_review",
    "seeds": "0,1",
    "settings": {"epochs": 2, "prompt_length": 4},
    "overrides": {"panda": {"learning_rate": 7e-3}},
}
# Of `TINY`, seed 0. A new field of `Run`, or a new default, makes other runs
# of the same grid: then, and only then, change these, and say so in the log.
GOLDEN = {
    "random-bert-tiny-toy_sentiment-prompt-s0": "566c49b37e",
    "random-bert-tiny-toy_review-prompt-s0": "e266b14a0e",
    "random-bert-tiny-toy_review-control-s0": "66d420b0a3",
    "random-bert-tiny-toy_review-model-s0": "d7497ba75f",
    "random-bert-tiny-toy_review-pot-toy_topic-s0": "6adbaa6f70",
    "random-bert-tiny-toy_review-panda-toy_topic-s0": "0df263b2c2",
}


def from_gin(name: str, *flags: str) -> Grid:
    args, _, _ = cli.resolve(
        "grid", [f"--gin_file=runs/{name}.gin", "--out_dir=somewhere", *flags]
    )
    return args


def roles(plan):
    return Counter(role for run in plan.runs for role in run.roles)


def named(plan):
    return {run.name.rpartition("-")[0]: run for run in plan.runs}


# What releases after 0.1 added; at their defaults they are in no id.
LATER = ("select_on", "split")


def test_ids_are_hashes_of_settings_and_of_the_ids_of_needs():
    plan = expand(Grid(**TINY))
    found = named(plan)
    for name, golden in GOLDEN.items():
        run = found[name]
        # Where 0.1 left in what model-tuning does not use, it is known by both.
        assert (run.former is not None) == (run.kind == "finetune")
        run = run.former or run
        value = {
            setting: x
            for setting, x in registry.former(
                dataclasses.asdict(run.run)
            ).items()
            if setting not in LATER
        }
        value["needs"] = dict(run.needs)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert run.id == digest[:10] == golden, f"{name}: {run.id}"
    assert len({run.id for run in plan.runs}) == len(plan.runs) == len(found)


PROGRAM = """
import sys
from panda_jax.experiments.grid.grid import expand
from panda_jax.experiments.grid.grid import Grid
plan = expand(Grid(**{tiny}))
assert not {{"jax", "numpy", "tensorflow"}} & set(sys.modules)
print([(r.id, r.folder, *r.needs.items()) for r in plan.runs])
print([(r.former or r).id for r in plan.runs])
print([g.name for g in plan.groups])
"""


def pythons():
    """This Python twice, and others that run; the code needs no package."""
    found = [sys.executable] * 2
    for minor in (11, 12, 13):
        path = shutil.which(f"python3.{minor}")
        if (
            path
            and subprocess.run([path, "-V"], capture_output=True).returncode
            == 0
        ):
            found.append(path)
    return found


def test_ids_are_the_same_in_other_processes_and_pythons():
    root = os.path.dirname(os.path.dirname(pj.__file__))
    said = set()
    for number, python in enumerate(pythons()):
        done = subprocess.run(
            [python, "-c", PROGRAM.format(tiny=TINY)],
            env={
                **os.environ,
                "PYTHONHASHSEED": str(number + 1),
                "PYTHONPATH": root,
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    # Held against literals too: a single Python agrees with itself.
    (text,) = said
    ids = set(ast.literal_eval(text.splitlines()[1]))
    assert set(GOLDEN.values()) <= ids


def test_each_run_names_what_it_starts_from():
    plan = expand(Grid(**TINY))
    order = [run.id for run in plan.runs]
    for run in plan.runs:
        needs = {role: plan.by_id[id_] for role, id_ in run.needs.items()}
        for need in needs.values():
            assert order.index(need.id) < order.index(run.id)
            assert need.run.seed == run.run.seed
            assert need.run.backbone == run.run.backbone
        expected = {
            "pot": ["source"],
            "panda": ["source", "target_prompt", "teacher"],
        }
        assert sorted(needs) == expected.get(run.kind, [])
        if needs:
            assert needs["source"].run.task == run.source
            assert needs["source"].roles == ("source",)
        if run.kind == "panda":
            assert needs["teacher"].kind == "pot"
            assert needs["teacher"].needs["source"] == run.needs["source"]
            assert needs["teacher"].run.task == run.run.task
            assert needs["target_prompt"].roles == ("prompt",)
            assert needs["target_prompt"].run.task == run.run.task
    # Another source setting makes another source, and so all that rests on it.
    other = expand(Grid(**{**TINY, "overrides": {"source": {"epochs": 3}}}))
    for name, run in named(plan).items():
        rests = run.needs or run.roles == ("source",)
        control = run.kind == "control"  # whose rate was overridden
        assert (named(other)[name].id != run.id) == bool(rests or control)


def test_the_released_recipe_needs_no_prompt_of_the_target():
    grid = {**TINY, "methods": "panda", "recipes": "released", "seeds": "0"}
    plan = expand(Grid(**grid))
    assert roles(plan) == {"source": 2, "pot": 2, "panda": 2}
    assert all("target_prompt" not in run.needs for run in plan.runs)


def test_weight_0_is_one_run_whatever_the_source_and_the_distillation():
    grid = {
        **TINY,
        "seeds": "0",
        "recipes": "paper,released,ours",
        "sweep": {"kd_lambda": (0.1, 1.0)},
    }
    plan = expand(Grid(**grid))
    # `released` has no lambda.
    assert roles(plan) == {
        "source": 2, "prompt": 1, "control": 1, "finetune": 1, "pot": 2,
        "panda": 2 * 2 + 2 + 2 * 2,
    }  # fmt: skip
    (control,) = (run for run in plan.runs if run.kind == "control")
    assert control.run.learning_rate == 7e-3
    assert control.run.kd_weight == 0
    assert not control.needs
    swept = expand(Grid(**{**grid, "sweep": {"learning_rate": (1e-2, 1e-3)}}))
    assert roles(swept)["control"] == 2
    weights = expand(
        Grid(**{**TINY, "methods": "panda", "sweep": {"kd_weight": [0.0, 0.1]}})
    )
    assert roles(weights) == {
        "source": 4, "control": 2, "pot": 4, "panda": 4,
    }  # fmt: skip


def test_what_a_method_needs_is_made_too():
    plan = expand(Grid(**{**TINY, "methods": "panda", "seeds": "0"}))
    assert roles(plan) == {"source": 2, "prompt": 1, "pot": 2, "panda": 2}


def test_a_source_that_is_a_target_is_trained_once():
    plan = expand(Grid(**{**TINY, "targets": "toy_review,toy_topic"}))
    shared = [run for run in plan.runs if len(run.roles) > 1]
    assert [run.roles for run in shared] == [("source", "prompt")] * 2
    assert roles(plan)["source"] == roles(plan)["prompt"] == 4
    # Among prompt-tuning for the report, and in both banks.
    assert all("/sources/" not in run.folder for run in shared)
    assert shared[0].bank("source") == "sources/random-bert-tiny/s0/toy_topic"
    assert shared[0].bank("prompt") == "targets/random-bert-tiny/s0/toy_topic"
    text = listing(Grid(**{**TINY, "targets": "toy_review,toy_topic"}))
    assert text.count("(the source run above)") == 2
    alone = [run for run in plan.runs if run.roles == ("source",)]
    assert alone
    assert all("/sources/" in run.folder for run in alone)


def test_more_words_win_and_ties_are_refused():
    overrides = {
        "panda": {"epochs": 3, "clip": 2.0},
        "panda toy_review": {"epochs": 4},
        "toy_review": {"epochs": 5},
    }
    found = named(expand(Grid(**{**TINY, "overrides": overrides})))
    head = "random-bert-tiny-toy_review"
    assert found[f"{head}-panda-toy_topic-s0"].run.epochs == 4
    assert found[f"{head}-panda-toy_topic-s0"].run.clip == 2.0
    assert found[f"{head}-pot-toy_topic-s0"].run.epochs == 5
    assert found["random-bert-tiny-toy_topic-prompt-s0"].run.epochs == 2
    del overrides["panda toy_review"]
    with pytest.raises(UserError, match="say which in overrides"):
        expand(Grid(**{**TINY, "overrides": overrides}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": "toy_sentimnt"}, "Did you mean 'toy_sentiment'"),
        ({"targets": "sources_text"}, "mixture"),
        ({"targets": "toy_review,toy_review"}, "twice"),
        ({"sources": (), "targets": ()}, "neither sources nor targets"),
        ({"sources": ""}, "need sources"),
        ({"methods": "pott"}, "Unknown method 'pott'"),
        ({"recipes": "papers"}, "Unknown recipe"),
        ({"recipes": ()}, "no recipes"),
        ({"seeds": "a"}, "seeds holds 'a'"),
        ({"seeds": 3}, "seeds is 3"),
        ({"backbones": (1,)}, "backbones holds 1"),
        ({"settings": {"epoch": 1}}, "Did you mean 'epochs'"),
        ({"settings": {"seed": 1}}, "in seeds"),
        ({"settings": "epochs=1"}, "expected JSON"),
        ({"settings": {"epochs": 0}}, "epochs is 0"),
        ({"overrides": {"pandas": {}}}, "Unknown word in overrides"),
        ({"overrides": {"": {}}}, "expected words"),
        ({"overrides": {"panda": 3}}, "expected a dict"),
        ({"sweep": {"kd_lambda": 1.0}}, "expected a tuple"),
    ],
)
def test_mistakes_are_told(change, words):
    with pytest.raises(UserError, match=words):
        expand(Grid(**{**TINY, **change}))


def test_one_folder_is_one_backbone_however_it_is_written():
    grids = [
        Grid(**{**TINY, "backbones": name, "overrides": {name: {"clip": 2.0}}})
        for name in ("./at/bert-tiny", "at/bert-tiny/", "at//bert-tiny")
    ]
    plans = [expand(grid) for grid in grids]
    assert plans[0] == plans[1] == plans[2]
    assert {run.run.backbone for run in plans[0].runs} == {"at/bert-tiny"}
    assert {run.run.clip for run in plans[0].runs} == {2.0}
    with pytest.raises(UserError, match="twice"):
        Grid(**{**TINY, "backbones": "at/bert-tiny,at/bert-tiny/"})


def test_settings_may_be_json():
    given = {**TINY, "settings": '{"epochs": 2, "prompt_length": 4}'}
    assert expand(Grid(**given)) == expand(Grid(**TINY))


CHANGED = {
    "method": "panda", "seed": 1, "learning_rate": 0.5, "weight_decay": 0.5,
    "schedule": "constant", "patience": 3, "prompt_init": "vocabulary",
    "init_stddev": 0.5, "resize_source": True, "kd_lambda": 0.5,
    "kd_beta": 0.5, "kd_weight": 0.0, "kd_transform": "shift",
    "transfer_metric": "on", "top_k": 3, "fusion": "late", "task": "rte",
    "backbone": "b", "recipe": "kl", "prompt_kind": "deep",
    "prompt_length": 7, "max_length": 77, "target_length": 7, "batch_size": 8,
    "epochs": 7, "steps": 7, "optimizer": "adamw", "clip": 0.5,
    "dropout": 0.5, "accumulate": 2, "eval_every": 7, "eval_period": 7,
    "train_examples": 7, "eval_examples": 7, "temperature": 7.0,
    "remat": True, "dtype": "float32", "select_on": "held_out",
    "split": "test",
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Run)])
def test_lanes_differ_in_what_a_fleet_lets_them(name):
    assert (
        name in LANES
        or name in step_inputs._SHARED
        or name
        in (
            "recipe",
            "dtype",
        )
    ), "a new setting: may lanes of a fleet differ in it?"
    assert not (name in LANES and name in step_inputs._SHARED)
    if name == "init_text":  # goes with prompt_init="text"
        return
    # One that makes use of the setting.
    recipe = "kl" if name == "temperature" else "paper"
    run = Run(task="cb", method="panda", recipe=recipe)
    other = dataclasses.replace(run, **{name: CHANGED[name]})
    fleets = {Planned.of("panda", each).fleet for each in (run, other)}
    assert len(fleets) == (1 if name in LANES else 2)


def test_every_fleet_is_one_that_can_be_trained(tiny):
    grid = Grid(
        **{
            **TINY,
            "targets": "toy_review,toy_topic",
            "recipes": "paper,released,ours",
            "overrides": {
                "source": {"epochs": 3},
                "panda": {"patience": 2, "schedule": "constant"},
            },
        }
    )
    plan = expand(grid)
    stages = Counter(group.stage for group in plan.groups)
    # toy_topic's source prompt has other epochs than its prompt-tuning.
    assert stages == {"prompt": 4, "pot": 2, "panda": 2 * 3, "finetune": 2 * 2}
    assert sum(len(group.runs) for group in plan.groups) == len(plan.runs)
    for group in plan.groups:
        lanes = [
            Lane(
                planned.run.for_family(text_to_text=False), planned.id, Needs()
            )
            for planned in group.runs
        ]
        step_inputs.check_alike(lanes, tiny)
        ids = {id_ for run in group.runs for id_ in run.needs.values()}
        assert not ids & {run.id for run in group.runs}
    # Both targets, both seeds and both rows of a fleet share one step or fewer.
    assert plan.programs <= len(plan.groups) - 2


def test_shards_begin_apart_and_keep_to_the_stages():
    plan = expand(
        Grid(**{**TINY, "targets": "toy_review,toy_tense", "backbones": "a,b"})
    )
    first, second = plan.dealt(0, 2), plan.dealt(1, 2)
    count = len(plan.groups)
    assert sorted(first) == sorted(second) == list(range(count))
    assert first[0] != second[0]
    assert plan.dealt(0, 1) == list(range(count))
    for order in (first, second):
        blocks = [
            (plan.groups[n].runs[0].run.backbone, plan.groups[n].stage)
            for n in order
        ]
        assert len([*dict.fromkeys(blocks)]) == 8
        assert blocks == sorted(blocks, key=[*dict.fromkeys(blocks)].index)


def test_the_paper_s_grid(capsys):
    assert cli.main(["grid", "--gin_file=runs/paper.gin", "--dry_run"]) == 0
    text = capsys.readouterr().out
    each = {"source": 21, "prompt": 9, "finetune": 9, "pot": 189, "panda": 189}
    lines = [line.split() for line in text.splitlines() if " " in line]
    for backbone in ("large", "base", "medium", "small", "tiny"):
        found = Counter(
            line[0]
            for line in lines
            if len(line) > 1 and line[1].startswith(f"bert-{backbone}-")
        )
        assert found == each
        (row,) = (line for line in lines if line[0] == f"bert-{backbone}")
        assert sorted(row[1:]) == sorted(map(str, each.values()))
    plan = expand(from_gin("paper"))
    assert len(plan.runs) == 5 * (417 - 9)
    assert len(plan.groups) == 5 * (21 + 9 + 9 + 9)
    assert f"{len(plan.groups)} fleets" in text
    assert f"{plan.programs} training steps to compile" in text
    # PoT and PANDA of a target are one program.
    assert plan.programs == 5 * (21 + 9 + 9)
    assert {run.name for run in plan.runs} <= {
        line[1] for line in lines if line[1:]
    }
    two = expand(from_gin("paper", "--seeds=0,1", "--methods=prompt,control"))
    assert roles(two) == {
        "source": 5 * 2 * 21, "prompt": 5 * 2 * 9, "control": 5 * 2 * 9,
    }  # fmt: skip


def test_the_paper_s_settings():
    found = {
        (run.run.task, run.kind): run.run
        for run in expand(from_gin("paper")).runs
        if run.run.backbone == "bert-large"
    }
    rates = {"prompt": 1e-2, "pot": 1e-2, "panda": 7e-3, "finetune": 5e-5}
    for (task, kind), run in found.items():
        assert run.learning_rate == rates[kind]
        length = None if kind == "finetune" else 20
        assert (run.batch_size, run.max_length) == (16, 128)
        assert run.prompt_length == length
        tags = task in ("squad", "ontonotes") or task.startswith("conll")
        assert run.schedule == ("exponential" if tags else "linear")
    assert found["cb", "panda"].epochs == 100
    assert found["mnli", "prompt"].epochs == 10
    assert found["cb", "finetune"].epochs == 10


def test_the_small_grids():
    small = expand(from_gin("paper_small"))
    assert roles(small) == {
        "source": 12, "prompt": 12, "control": 12, "pot": 48, "panda": 48,
    }  # fmt: skip
    assert len(small.groups) == 16
    rates = {run.run.learning_rate for run in small.runs}
    assert len(rates) == 1
    smoke = expand(from_gin("smoke"))
    assert roles(smoke) == {
        "source": 6, "prompt": 4, "control": 4, "finetune": 4, "pot": 12,
        "panda": 12,
    }  # fmt: skip
    assert len(smoke.runs) == 42
    assert len(smoke.groups) == 13
    assert all(task.startswith("toy_") for task in from_gin("smoke").sources)


def test_the_guide_s_commands_have_flags_that_there_are():
    guide = pathlib.Path(pj.__file__).parents[1] / "docs" / "grid.md"
    if not guide.is_file():
        pytest.skip("installed without the checkout")
    blocks = guide.read_text().replace("\\\n", " ").split("```")[1::2]
    lines = [line for block in blocks for line in block.splitlines()]
    used = [
        line
        for line in lines
        if re.search(r"(panda-jax|launch/\S+) grid", line)
    ]
    assert len(used) == 5
    known = {f.name for f in dataclasses.fields(from_gin("smoke"))}
    for line in used:
        for flag in re.findall(r"--(\w+)", line.partition(" grid ")[2]):
            assert flag in known | {"gin_file", "dry_run"}, flag


def test_no_setting_says_what_the_lists_say():
    assert set(AXES) == {f.name for f in dataclasses.fields(Run)} & {
        "task", "backbone", "method", "recipe", "seed",
    }  # fmt: skip


def test_rows_of_one_s_own_are_sources_and_targets(tmp_path):
    rows = [f"film {n},{'yn'[n % 2]}" for n in range(10)]
    file = tmp_path / "films.csv"
    file.write_text("\n".join(["text,liked", *rows, ""]))
    said = {"train_file": str(file), "text": "text", "label": "liked"}
    lists = {"sources": "films", "targets": "toy_review,films"}
    plan = expand(Grid(**lists, own_tasks={"films": said}))
    assert {run.run.task for run in plan.runs} == {"films", "toy_review"}
    assert specs.get("films").labels == ("n", "y")
    # As a command line has it.
    again = expand(Grid(**lists, own_tasks=json.dumps({"films": said})))
    assert again == plan
    for wrong in ({"films": {"file": "x"}}, {"films": str(file)}):
        with pytest.raises(UserError, match=r"own_tasks\['films'\] is"):
            Grid(**lists, own_tasks=wrong)
