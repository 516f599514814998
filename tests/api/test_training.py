"""Whole runs: what they leave, what they do not touch, and going on."""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import panda_jax as pj
from panda_jax.config import runs
from panda_jax.io import files
from panda_jax.io.writers import read_metrics
from panda_jax.models import trees
from panda_jax.step import losses, parts
from panda_jax.training import identity, prompt_init

SMALL = {
    "epochs": 2,
    "train_examples": 48,
    "eval_examples": 32,
    "batch_size": 8,
    "prompt_length": 4,
    "max_length": 32,
    "quiet": True,
}


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    return pj.train(tiny, task="toy_sentiment", model_dir=folder, **SMALL)


@pytest.fixture(scope="module")
def panda(tiny, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("panda") / "run"
    return pj.train(
        tiny,
        task="toy_review",
        method="panda",
        source=source.folder,
        model_dir=folder,
        **SMALL,
    )


def test_a_run_folder_holds_what_the_contract_names(source):
    names = {path.name for path in source.folder.iterdir()}
    assert {
        "run.json",
        "config.gin",
        "metrics.jsonl",
        "checkpoints",
        "prompt",
        "result.json",
    } <= names
    assert any(name.startswith("events.") for name in names)
    result = json.loads((source.folder / "result.json").read_text())
    assert result == source.result
    assert result["best"]["value"] == source.best
    assert result["steps"] == 12
    assert result["parameters"] == {
        "trained": trees.size(source.prompt.prompt),
        "frozen": 4190592,
    }
    last = [
        line
        for line in read_metrics(source.folder / "metrics.jsonl")
        if "loss" in line
    ][-1]
    assert last["step"] == 12
    assert {"task_loss", "kd_loss", "kd_weight", "learning_rate"} <= set(last)
    assert (
        "train.task = 'toy_sentiment'"
        in (source.folder / "config.gin").read_text()
    )


def test_a_done_run_is_not_run_again(tiny, source):
    before = (source.folder / "metrics.jsonl").stat().st_mtime_ns
    again = pj.train(
        tiny, task="toy_sentiment", model_dir=source.folder, **SMALL
    )
    assert again.result == source.result
    assert (source.folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_run_does_not_overwrite_a_folder(tiny, source):
    with pytest.raises(pj.UserError, match="seed: 0 there, 5 now"):
        pj.train(
            tiny,
            task="toy_sentiment",
            model_dir=source.folder,
            seed=5,
            **SMALL,
        )


def test_a_run_on_fewer_sources_is_another_run(tmp_path):
    told = {"settings": {"seed": 0}, "fingerprints": {"dtype": "float32"}}
    needs = {"source a": "a@1", "source b": "b@2"}
    files.write_json(tmp_path / "run.json", told | {"needs": needs})
    identity.same_run(tmp_path, told | {"needs": needs})
    fewer = told | {"needs": {"source a": "a@1"}}
    with pytest.raises(pj.UserError, match="source b: 'b@2' there, None now"):
        identity.same_run(tmp_path, fewer)


def test_a_loaded_backbone_keeps_its_dtype(tiny):
    with pytest.raises(pj.UserError, match="computes in float32.*'bfloat16'"):
        pj.train(tiny, task="toy_sentiment", dtype="bfloat16", **SMALL)


def test_the_backbone_is_bit_identical_after_every_prompt_method(tiny, source):
    before = trees.content_hash(tiny.params)
    pot = pj.train(
        tiny, task="toy_review", method="pot", source=source.prompt, **SMALL
    )
    for recipe in ("paper", "released", "ours"):
        pj.train(
            tiny,
            task="toy_review",
            method="panda",
            recipe=recipe,
            source=source.prompt,
            teacher=pot.prompt,
            similarity=0.5,
            **SMALL,
        )
    assert trees.content_hash(tiny.params) == before == tiny.fingerprint


def test_checkpoint_is_kilobytes(source):
    checkpoints = source.folder / "checkpoints"
    files = [path for path in checkpoints.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    fp32 = 4 * trees.size(source.prompt.prompt)
    assert 3 * fp32 < total < 4 * fp32 + 64 * 1024


def test_pot_starts_from_the_source_s_vectors_and_a_fresh_head(tiny, source):
    run = runs.make_run(task="toy_review", method="pot", prompt_length=4)
    start = prompt_init.initial_prompt(run, tiny, source.prompt)
    np.testing.assert_array_equal(start.vectors, source.prompt.prompt.vectors)
    assert np.abs(start.head["kernel"]).max() > 0
    assert (start.head["kernel"] != source.prompt.prompt.head["kernel"]).any()


def test_panda_makes_its_teacher_and_measures_its_weight(panda, source):
    teacher = pj.load_prompt(panda.folder / "teacher")
    own = pj.load_prompt(panda.folder / "target_prompt")
    assert (teacher.info.method, teacher.info.source) == (
        "pot",
        "toy_sentiment",
    )
    assert own.info.method == "prompt"
    result = panda.result
    assert result["source"] == "toy_sentiment"
    assert result["recipe"] == "paper"
    assert (
        0
        < result["kd_weight"]
        == pytest.approx(min(max(result["similarity"], 0), 1))
    )
    scores = pj.score(
        sources={"s": source.prompt},
        targets={"t": own},
        metrics=("panda",),
        max_length=SMALL["max_length"],
        # A run reads no more rows than it trains on.
        examples=SMALL["train_examples"],
    )
    assert result["similarity"] == pytest.approx(
        float(scores.values["panda"][0, 0]), abs=1e-6
    )


def test_weight_zero_equals_prompt_tuning(tiny, source):
    plain = pj.train(tiny, task="toy_review", learning_rate=1e-2, **SMALL)
    control = pj.train(
        tiny,
        task="toy_review",
        method="panda",
        source=source.prompt,
        kd_weight=0.0,
        learning_rate=1e-2,
        **SMALL,
    )
    np.testing.assert_array_equal(
        plain.prompt.prompt.vectors, control.prompt.prompt.vectors
    )
    taught = pj.train(
        tiny,
        task="toy_review",
        method="panda",
        source=source.prompt,
        kd_weight=5.0,
        learning_rate=1e-2,
        **SMALL,
    )
    assert (taught.prompt.prompt.vectors != control.prompt.prompt.vectors).any()


def test_released_recipe_uses_its_weight_and_an_online_teacher(
    tiny, source, monkeypatch
):
    seen = []
    real = parts.PartSteps.run

    def spy(self, states, begin, end, order, taught, teachers, hypers):
        seen.append((taught, teachers))
        return real(self, states, begin, end, order, taught, teachers, hypers)

    monkeypatch.setattr(parts.PartSteps, "run", spy)
    done = pj.train(
        tiny,
        task="toy_review",
        method="panda",
        recipe="released",
        source=source.prompt,
        teacher=pj.train(
            tiny,
            task="toy_review",
            method="pot",
            source=source.prompt,
            **SMALL,
        ).prompt,
        **SMALL,
    )
    assert done.result["kd_weight"] == pytest.approx(
        losses.released_weight(0.1, 8)
    )
    logits, teacher = seen[-1]
    assert logits is None
    assert teacher is not None


def test_model_tuning_trains_every_weight_and_stores_a_backbone(tiny, tmp_path):
    before = trees.content_hash(tiny.params)
    done = pj.train(
        tiny,
        task="toy_topic",
        method="model",
        model_dir=tmp_path / "run",
        learning_rate=1e-3,
        **SMALL,
    )
    assert trees.content_hash(tiny.params) == before
    assert done.result["parameters"]["frozen"] == 0
    tuned = pj.load_backbone(str(tmp_path / "run" / "model"))
    assert tuned.fingerprint == done.prompt.info.fingerprint != before
    found = pj.evaluate(
        tmp_path / "run", eval_examples=SMALL["eval_examples"], max_length=32
    )
    assert found["scores"]["accuracy"] == done.best
    changed = [
        bool((a != b).any())
        for a, b in zip(
            jax.tree.leaves(tuned.params),
            jax.tree.leaves(tiny.params),
            strict=True,
        )
    ]
    assert all(changed)


def test_what_one_method_compiled_serves_all(tiny, source, monkeypatch, caplog):
    """Of the backbone; losses and updates are small programs of their own."""
    # Whatever an earlier test made of JAX's logging.
    dispatch = logging.getLogger("jax._src.dispatch")
    monkeypatch.setattr(dispatch, "handlers", [caplog.handler])
    caplog.set_level(logging.DEBUG, logger=dispatch.name)
    compiled = []
    for method in ("prompt", "pot", "panda"):
        caplog.clear()
        pj.train(
            tiny,
            task="toy_review",
            method=method,
            source=None if method == "prompt" else source.prompt,
            similarity=0.5 if method == "panda" else None,
            dropout=0.15,  # of no other test here
            **SMALL,
        )
        said = [record.getMessage() for record in caplog.records]
        compiled.append(
            [x for x in said if "XLA compilation of jit(bert_" in x]
        )
    assert [bool(x) for x in compiled] == [True, False, False]


def test_divergence_names_step_and_metric_and_keeps_the_best(tiny, tmp_path):
    with pytest.raises(pj.UserError, match=r"task_loss is (nan|inf) at"):
        pj.train(
            tiny,
            task="stsb",
            data_dir=_stsb(tmp_path),
            model_dir=tmp_path / "run",
            learning_rate=1e30,
            **SMALL,
        )
    assert not (tmp_path / "run" / "result.json").exists()


def _stsb(folder: pathlib.Path) -> pathlib.Path:
    """Made-up rows in the layout of GLUE's STS-B."""
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2"
    header += "\tsentence1\tsentence2\tscore"
    rows = [
        f"{i}\tg\tf\ty\t{i}\ta\tb\tA man walks {i}.\tA dog runs {i}.\t{i % 5}.0"
        for i in range(48)
    ]
    target = folder / "glue" / "STS-B"
    target.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        (target / name).write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_regression_learns_from_scores(tiny, tmp_path):
    done = pj.train(tiny, task="stsb", data_dir=_stsb(tmp_path), **SMALL)
    assert done.result["metric"] == "pearson_spearman"
    assert done.prompt.prompt.head["kernel"].shape == (128, 1)


COMMAND = [
    "--task=toy_sentiment",
    "--backbone=random:bert-tiny",
    "--epochs=40",
    "--train_examples=48",
    "--eval_examples=32",
    "--batch_size=8",
    "--prompt_length=4",
    "--max_length=32",
]


def run_cli(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "panda_jax", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def without_times(path: pathlib.Path) -> dict:
    result = json.loads(path.read_text())
    del result["seconds"]
    return result


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run_cli("train", *COMMAND, f"--model_dir={whole}")
    assert done.returncode == 0, done.stderr
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "panda_jax",
                "train",
                *COMMAND,
                f"--model_dir={broken}",
            ],
            stderr=subprocess.DEVNULL,
        )
        # Some epochs further than the last time, and not yet at the end.
        seen = _epochs(broken)
        while process.poll() is None and _epochs(broken) < seen + 5:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2, "the run ended before it could be killed"
    done = run_cli("train", *COMMAND, f"--model_dir={broken}")
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert without_times(whole / "result.json") == without_times(
        broken / "result.json"
    )
    for name in ("prompt/adapter_model.safetensors", "prompt/panda.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    lines = [
        [
            {k: v for k, v in line.items() if k != "examples_per_second"}
            for line in read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (whole, broken)
    ]
    assert lines[0] == lines[1]


def _epochs(folder: pathlib.Path) -> int:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    return path.read_text().count("eval_accuracy")


def test_second_start_loads_neither_tensorflow_nor_seqio(tmp_path):
    code = (
        "import sys, panda_jax as pj\n"
        "heavy = lambda: {'tensorflow', 'seqio'} & set(sys.modules)\n"
        "assert not heavy(), heavy()\n"
        "pj.train('random:bert-tiny', task='toy_tense', epochs=1, quiet=True,"
        " train_examples=16, eval_examples=16, model_dir=sys.argv[1])\n"
        "print(sorted(heavy()))\n"
    )
    environment = {**os.environ, "PANDA_CACHE_DIR": str(tmp_path / "cache")}
    found = []
    for number in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"run{number}")],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.strip())
    assert found == ["['seqio', 'tensorflow']", "[]"]


def test_shallow_prompts_train_too(tiny):
    done = pj.train(tiny, task="toy_sentiment", prompt_kind="shallow", **SMALL)
    assert done.prompt.prompt.vectors.shape == (4, 128)
    assert jnp.isfinite(done.prompt.prompt.vectors).all()


def test_wrong_needs_are_refused(tiny, source):
    with pytest.raises(pj.UserError, match="needs a source"):
        pj.train(tiny, task="toy_review", method="pot", **SMALL)
    with pytest.raises(pj.UserError, match="--prompt_length=4"):
        pj.train(
            tiny,
            task="toy_review",
            method="pot",
            source=source.prompt,
            **{**SMALL, "prompt_length": 5},
        )
    with pytest.raises(pj.UserError, match="makes no use of a source"):
        pj.train(tiny, task="toy_review", source=source.prompt, **SMALL)
    with pytest.raises(pj.UserError, match="is a --source"):
        pj.train(
            tiny,
            task="toy_review",
            method="panda",
            teacher=source.prompt,
            **SMALL,
        )


def test_a_full_disk_ends_in_one_message_and_goes_on_later(
    tiny, tmp_path, monkeypatch
):
    import shutil

    from panda_jax.training import checkpoints

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        checkpoints.shutil,
        "disk_usage",
        lambda path: usage._replace(free=1000),
    )
    settings = {"task": "toy_sentiment", "model_dir": tmp_path / "run", **SMALL}
    with pytest.raises(pj.UserError, match="1000 bytes are free"):
        pj.train(tiny, **settings)
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    assert pj.train(tiny, **settings).result["steps"] == 12


def test_a_failed_start_leaves_nothing_and_blocks_nothing(tiny, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(pj.UserError, match="nowhere"):
        pj.train(
            tiny,
            task="cb",
            data_dir=tmp_path / "nowhere",
            model_dir=folder,
            **SMALL,
        )
    assert not folder.exists()


def test_other_data_is_another_run(tiny, tmp_path):
    data = _stsb(tmp_path)
    settings = {"task": "stsb", "data_dir": data, "model_dir": tmp_path / "r"}
    pj.train(tiny, **settings, **SMALL)
    train = data / "glue" / "STS-B" / "train.tsv"
    train.write_text(train.read_text().replace("walks", "sleeps"))
    with pytest.raises(pj.UserError, match="training data: "):
        pj.train(tiny, **settings, **SMALL)


def test_pot_needs_a_source_also_beside_a_teacher(tiny, source):
    teacher = pj.train(
        tiny, task="toy_review", method="pot", source=source.prompt, **SMALL
    ).prompt
    with pytest.raises(pj.UserError, match="needs a source"):
        pj.train(
            tiny, task="toy_review", method="pot", teacher=teacher, **SMALL
        )
    with pytest.raises(pj.UserError, match="target_prompt was tuned on"):
        pj.train(
            tiny,
            task="toy_review",
            method="panda",
            source=source.prompt,
            target_prompt=source.prompt,
            **SMALL,
        )
    other = pj.train(tiny, task="toy_topic", **SMALL).prompt
    with pytest.raises(pj.UserError, match="The teacher was tuned from"):
        pj.train(
            tiny,
            task="toy_review",
            method="panda",
            source=other,
            teacher=teacher,
            **SMALL,
        )


def test_rank_knows_the_target_in_memory_and_by_any_path(
    tiny, source, panda, monkeypatch
):
    bank = {"a": source.prompt, "b": panda.prompt}
    options = {"backbone": tiny, "examples": 16}
    assert [n for n, _ in pj.rank("b", sources=bank, **options)] == ["a"]
    assert [n for n, _ in pj.rank(panda.prompt, sources=bank, **options)] == [
        "a"
    ]
    assert [n for n, _ in pj.rank("toy_review", sources=bank, **options)] == [
        "a"
    ]
    folder = source.folder.parent
    monkeypatch.chdir(folder.parent)
    found = pj.rank(str(folder / "run"), sources=folder.name, **options)
    assert found == []
