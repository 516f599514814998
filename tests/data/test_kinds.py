"""Every kind of task through every method, to a result and back."""

import dataclasses
import re

import made_up_data
import numpy as np
import pytest
from command_line import mistake
from panda_jax.tasks import specs

import panda_jax as pj
from panda_jax.io.writers import read_metrics
from panda_jax.prompts import Prompt
from panda_jax.store import prompt_folders
from panda_jax.training import evaluation, step_inputs

COMMON = {
    "max_length": 40,
    "epochs": 2,
    "batch_size": 2,
    "prompt_length": 4,
    "quiet": True,
}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tiny, made_up):
    return pj.train(tiny, task="cb", data_dir=made_up, **COMMON).prompt


def kd_metrics(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [line for line in lines if "kd_loss" in line]


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("copa", "released"),
        ("record", "paper"),
        ("conll05", "ours"),
        ("squad", "ours"),
        ("stsb", "paper"),
    ],
)
def test_a_task_of_every_kind_is_taught(
    task, recipe, tiny, made_up, source, tmp_path
):
    done = pj.train(
        tiny,
        task=task,
        method="panda",
        recipe=recipe,
        source=source,
        similarity=0.5,
        data_dir=made_up,
        model_dir=tmp_path / "run",
        **COMMON,
    )
    assert done.result["metric"] == specs.get(task).metric
    assert done.result["source"] == "cb"
    teacher = pj.load_prompt(tmp_path / "run" / "teacher" / "prompt")
    assert teacher.info.method == "pot"
    lines = kd_metrics(tmp_path / "run")
    assert all(line["kd_loss"] > 0 for line in lines)
    if task == "stsb":  # a score alone has nothing to agree on
        assert all("teacher_agreement" not in line for line in lines)
    else:
        assert all(0 <= line["teacher_agreement"] <= 1 for line in lines)
    again = pj.evaluate(tmp_path / "run", backbone=tiny, data_dir=made_up)
    assert again["scores"] == pytest.approx(done.result["best"]["scores"])
    assert again["examples"] == 3


def test_a_teacher_too_large_to_cache_says_the_same_online(
    tiny, made_up, source, tmp_path, monkeypatch
):
    def kd_losses(name):
        pj.train(
            tiny,
            task="conll04",
            method="panda",
            source=source,
            similarity=1.0,
            data_dir=made_up,
            model_dir=tmp_path / name,
            **COMMON,
        )
        return [line["kd_loss"] for line in kd_metrics(tmp_path / name)]

    cached = kd_losses("cached")
    monkeypatch.setattr(step_inputs, "MOST_CACHED", 0)
    online = kd_losses("online")
    np.testing.assert_allclose(online, cached, rtol=1e-4)


def test_a_head_is_read_by_its_labels_names(tiny, made_up):
    """CB's classes stand in another order than MNLI's."""
    done = pj.train(tiny, task="mnli", data_dir=made_up, **COMMON)
    found = evaluation.prompt_for(done.prompt, specs.get("cb"), tiny)
    mine = done.prompt.prompt.head
    for part in ("kernel", "bias"):
        np.testing.assert_array_equal(
            found.head[part], np.asarray(mine[part])[..., [0, 2, 1]]
        )
    scores = pj.evaluate(
        done.prompt, task="cb", backbone=tiny, data_dir=made_up
    )
    assert scores["examples"] == 3
    with pytest.raises(pj.UserError, match="says entailment, neutral"):
        evaluation.prompt_for(done.prompt, specs.get("toy_tense"), tiny)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_a_head_s_outputs_go_where_their_names_are(rng, order, tiny):
    """A cycle of three is not its own inverse, as an exchange is."""
    cb = specs.get("cb")
    wanted = {"kernel": rng.normal(size=(8, 3)), "bias": rng.normal(size=3)}
    said = [cb.output_names[i] for i in order]
    head = {name: part[..., list(order)] for name, part in wanted.items()}
    stored = prompt_folders.StoredPrompt(
        Prompt(np.zeros((2, 8)), head),
        prompt_folders.PromptInfo(
            "cb", "b", "f", "shallow", "prompt", labels=said
        ),
    )
    found = evaluation.prompt_for(stored, cb, tiny).head
    for name, part in wanted.items():
        np.testing.assert_array_equal(found[name], part)


def test_a_prompt_of_other_weights_is_not_evaluated(
    tiny, made_up, source, tmp_path, capsys
):
    """Neither in memory nor from its folder; nor is what it would say told."""
    info = dataclasses.replace(
        source.info, fingerprint="0123456789abcdef", backbone="bert-tiny"
    )
    other = dataclasses.replace(source, info=info)
    words = (
        r"trained on backbone 'bert-tiny' \(weights 0123456789abcdef\), got "
        rf"backbone 'random:bert-tiny' \(weights {tiny.fingerprint}\)"
    )
    pj.save_prompt(tmp_path / "p", source.prompt, info)
    for given in (other, tmp_path / "p"):
        with pytest.raises(pj.UserError, match=words):
            pj.evaluate(given, backbone=tiny, data_dir=made_up)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"premise": "a", "hypothesis": "b"}\n')
    for verb in (
        ["evaluate", "--task=cb", f"--data_dir={made_up}"],
        ["predict", f"--input={rows}", f"--out_dir={tmp_path / 'out'}"],
    ):
        told = mistake(
            capsys,
            *verb,
            f"--prompt={tmp_path / 'p'}",
            "--backbone=random:bert-tiny",
        )
        assert re.search(words, told)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_a_head_of_another_kind_is_refused(tiny, made_up):
    """CB's three classes and a made-up tagger's three tags are not alike."""
    done = pj.train(tiny, task="stsb", data_dir=made_up, **COMMON)
    with pytest.raises(pj.UserError, match="1 outputs for regression.*choice"):
        pj.evaluate(done.prompt, task="copa", backbone=tiny, data_dir=made_up)
