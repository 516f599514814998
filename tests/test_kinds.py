"""Every kind of task through every method, to a result and back."""

import made_up_data
import numpy as np
import pytest
from panda_jax.tasks import specs

import panda_jax as pj
from panda_jax import assembly, evaluation
from panda_jax.writers import read_metrics

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
    monkeypatch.setattr(assembly, "MOST_CACHED", 0)
    online = kd_losses("online")
    np.testing.assert_allclose(online, cached, rtol=1e-4)


def test_a_head_is_read_by_its_labels_names(tiny, made_up):
    """CB's classes stand in another order than MNLI's."""
    done = pj.train(tiny, task="mnli", data_dir=made_up, **COMMON)
    found = evaluation._prompt_for(done.prompt, specs.get("cb"))
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
        evaluation._prompt_for(done.prompt, specs.get("toy_tense"))


def test_a_head_of_another_kind_is_refused(tiny, made_up):
    """CB's three classes and a made-up tagger's three tags are not alike."""
    done = pj.train(tiny, task="stsb", data_dir=made_up, **COMMON)
    with pytest.raises(pj.UserError, match="1 outputs for regression.*choice"):
        pj.evaluate(done.prompt, task="copa", backbone=tiny, data_dir=made_up)
