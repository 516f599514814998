"""Runs that are lengthened, and runs that begin with a prompt of their own."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import panda_jax as pj
from panda_jax import prompts
from panda_jax.errors import UnusedSetting
from panda_jax.training import identity

SMALL = {
    "task": "toy_sentiment",
    "train_examples": 48,
    "eval_examples": 32,
    "batch_size": 8,
    "prompt_length": 4,
    "max_length": 32,
    "eval_period": 4,
    "quiet": True,
}


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    pj.train(tiny, model_dir=folder, steps=8, schedule="constant", **SMALL)
    return folder


@pytest.fixture
def folder(short, tmp_path):
    return shutil.copytree(short, tmp_path / "run", symlinks=True)


def test_a_lengthened_run_is_what_it_had_been_that_long(tiny, folder):
    long = {"steps": 16, "schedule": "constant"}
    whole = pj.train(tiny, **SMALL, **long)
    on = pj.train(tiny, model_dir=folder, **SMALL, **long)
    assert (
        on.result["run_id"]
        != json.loads((folder / "run.json").read_text())["went_on"][0]["run_id"]
    )
    for name in ("best", "final", "first_epoch", "looks", "steps"):
        assert on.result[name] == whole.result[name], name
    np.testing.assert_array_equal(
        on.prompt.prompt.vectors, whole.prompt.prompt.vectors
    )
    # Its end is the result's, and it is done.
    again = pj.train(tiny, model_dir=folder, **SMALL, **long)
    assert again.result == on.result
    with pytest.raises(pj.UserError, match="steps: 16 there, 8 now"):
        pj.train(tiny, model_dir=folder, steps=8, schedule="constant", **SMALL)


def test_a_linear_schedule_is_laid_anew_and_said(tiny, tmp_path):
    pj.train(tiny, model_dir=tmp_path / "run", epochs=1, **SMALL)
    with pytest.warns(RuntimeWarning, match="linear laid anew"):
        done = pj.train(tiny, model_dir=tmp_path / "run", epochs=2, **SMALL)
    assert done.result["steps"] == 12


def test_other_settings_are_another_run_still(tiny, folder):
    with pytest.raises(pj.UserError, match="schedule: 'constant' there"):
        pj.train(tiny, model_dir=folder, steps=16, **SMALL)


def test_without_checkpoints_nothing_goes_on(tiny, folder):
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(pj.UserError, match="steps: 8 there, 16 now"):
        pj.train(tiny, model_dir=folder, steps=16, schedule="constant", **SMALL)


def test_a_kill_between_result_and_description_loses_nothing(tiny, folder):
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    same = {"schedule": "constant", **SMALL}
    on = pj.train(tiny, model_dir=folder, steps=16, **same)
    assert on.result["steps"] == 16
    assert on.best >= result["best"]["value"]


def test_panda_goes_on_with_the_teacher_that_it_had(tiny, short, tmp_path):
    settings = {**SMALL, "task": "toy_review", "method": "panda"}
    settings |= {"schedule": "constant", "kd_weight": 0.5}
    folder = tmp_path / "run"
    pj.train(tiny, source=short, model_dir=folder, steps=8, **settings)
    before = (folder / "teacher" / "result.json").read_bytes()
    on = pj.train(tiny, source=short, model_dir=folder, steps=16, **settings)
    assert on.result["steps"] == 16
    assert (folder / "teacher" / "result.json").read_bytes() == before


def test_a_start_brings_vectors_and_head(tiny, short):
    start = pj.load_prompt(short)
    # Of one step whose rate is next to nothing.
    settings = {**SMALL, "steps": 1, "learning_rate": 1e-12}
    for method in ("prompt", "panda"):
        more = {} if method == "prompt" else {"kd_weight": 0}
        done = pj.train(tiny, start=short, method=method, **settings, **more)
        np.testing.assert_allclose(
            done.prompt.prompt.vectors, start.prompt.vectors, atol=1e-9
        )
        for name, part in start.prompt.head.items():
            np.testing.assert_allclose(
                done.prompt.prompt.head[name], part, atol=1e-9
            )
    scores = pj.evaluate(short, backbone=tiny, eval_examples=32)["scores"]
    assert done.result["best"]["scores"] == scores


def test_a_start_makes_another_run(tiny, short, tmp_path):
    settings = {**SMALL, "steps": 2}
    pj.train(tiny, start=short, model_dir=tmp_path / "run", **settings)
    there = identity.read_description(tmp_path / "run")
    assert there["needs"]["start"].startswith("toy_sentiment@")
    with pytest.raises(pj.UserError, match="start: .* there, None now"):
        pj.train(tiny, model_dir=tmp_path / "run", **settings)


def test_a_start_that_does_not_fit_is_refused(tiny, short):
    with pytest.raises(pj.UserError, match="The start was tuned on"):
        pj.train(tiny, start=short, **{**SMALL, "task": "toy_review"})
    with pytest.raises(
        pj.UserError, match="start is a deep prompt of length 4"
    ):
        pj.train(tiny, start=short, **{**SMALL, "prompt_length": 5})
    with pytest.raises(pj.UserError, match="makes no use of a start"):
        pj.train(tiny, start=short, source=short, method="pot", **SMALL)


def test_a_prompt_is_no_head_to_tune_with(tiny, short):
    settings = {**SMALL, "method": "finetune", "steps": 2}
    del settings["prompt_length"]
    with pytest.raises(pj.UserError, match="goes on from the head of a model"):
        pj.train(tiny, start=short, **settings)


def test_neither_prompt_nor_head_is_nothing_to_go_on_from(tiny, short):
    start = pj.load_prompt(short)
    bare = dataclasses.replace(
        start, prompt=prompts.Prompt(tiny.empty_vectors, {})
    )
    settings = {**SMALL, "method": "finetune", "steps": 2}
    del settings["prompt_length"]
    with pytest.raises(pj.UserError, match="neither prompt nor head"):
        pj.train(tiny, start=bare, **settings)


def test_a_tuned_backbone_goes_on_with_its_head(tiny, tmp_path):
    settings = {**SMALL, "method": "finetune", "steps": 2}
    del settings["prompt_length"]
    first = pj.train(tiny, model_dir=tmp_path / "run", **settings)
    tuned = pj.load_backbone(str(tmp_path / "run" / "model"))
    settings |= {"learning_rate": 1e-12, "steps": 1}
    on = pj.train(tuned, start=tmp_path / "run", **settings)
    assert on.result["best"]["scores"] == first.result["best"]["scores"]


def test_a_start_of_a_t5_has_no_head(tmp_path):
    t5 = pj.load_backbone("random:t5-small")
    settings = {**SMALL, "prompt_length": 2, "steps": 1, "learning_rate": 1e-12}
    settings |= {"train_examples": 8, "eval_examples": 8, "max_length": 24}
    settings["weight_decay"] = 0.0
    first = pj.train(t5, model_dir=tmp_path / "run", **settings)
    on = pj.train(t5, start=tmp_path / "run", **settings)
    np.testing.assert_allclose(
        on.prompt.prompt.vectors, first.prompt.prompt.vectors, rtol=1e-5
    )


def test_what_a_start_leaves_without_a_use_is_said(tiny, short):
    for name, value in (("prompt_init", "normal"), ("init_stddev", 0.5)):
        settings = {**SMALL, "steps": 1, name: value}
        with pytest.warns(UnusedSetting, match=f"{name} .* starts as"):
            pj.train(tiny, start=short, **settings)
