"""The package as a whole: layers, gin files, lightness, the front door."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import panda_jax as pj
from panda_jax import cli, demo, runs

ROOT = pathlib.Path(pj.__file__).resolve().parent
GIN = next(p for p in (ROOT / "gin", ROOT.parent / "gin") if p.is_dir())
TASKS = next(p for p in (ROOT / "tasks", ROOT.parent / "tasks") if p.is_dir())

# From the ground up: a module may import only from the rows before its own.
LAYERS = [
    {"errors", "types", "progress", "memory", "hlo_text", "plan_text"},
    {"experiments", "experiments.ranking_stats", "experiments.outcomes"},
    {"experiments.summaries"},
    {"files", "trees", "cluster", "t5x_names", "chips", "hlo"},
    {
        "arrays",
        "distributed",
        "prompts",
        "tasks.lexicon",
        "tasks.spec",
        "text_metrics",
    },
    {"csv_rows", "vector_cache", "interop.folders"},
    {"experiments.run_folders", "experiments.variants"},
    {"experiments.agreement"},
    {"experiments.results"},
    {"losses", "optim", "metrics", "similarity", "readouts", "writers"},
    {"models.layers", "models.relative", "pictures", "sharding"},
    {"transferability"},
    {"measures"},
    {"models.bert", "models.t5_layers"},
    {"models.t5_stacks"},
    {"models.t5"},
    {"models", "models.decode"},
    {"tasks.offline_single", "tasks.offline_pairs", "tasks.table_offline"},
    {"tasks.offline", "tasks.table_texts", "tasks.table_tokens"},
    {"steps"},
    {"fleet", "signals", "tokenizer", "text_tokenizer", "tasks.specs"},
    {"interop.peft_layout", "interop.torch_pickle"},
    {"interop.tensors", "interop.torch_files", "interop.npy"},
    {"interop.tables", "interop.zarr", "interop.peft"},
    {"interop.hf_bert", "interop.hf_t5", "interop.t5x_files"},
    {"interop.prompthub", "interop.panda_release"},
    {"interop.hf", "interop.t5x"},
    {"store", "scores", "tasks.rows", "examples"},
    {"tasks.readers_flat", "tasks.views", "combine", "experiments.truth"},
    {"experiments.cells", "experiments.paper"},
    {"experiments.resampling", "experiments.board", "experiments.doubts"},
    {"experiments.findings", "experiments.layout", "experiments.pairs"},
    {"experiments.boards"},
    {"experiments.ranking_text", "experiments.comparisons"},
    {"experiments.choices", "experiments.gain_tables"},
    {"experiments.paper_tables", "experiments.report_tables"},
    {"experiments.report_text", "experiments.html_page"},
    {"experiments.ranking_report", "experiments.report_sections"},
    {"experiments.report_summary"},
    {"experiments.ranking", "experiments.report"},
    {"backbone", "tasks.readers_nested", "tasks.readers_conll"},
    {"tasks.readers", "tasks.encoding", "answers", "probing"},
    {"labelled"},
    {"tasks.from_tfds", "tasks.vocabulary", "tasks.features"},
    {"tasks.sources"},
    {"tasks.registry"},
    {"token_cache"},
    {"data", "catalogue"},
    {"doctor", "evaluation", "runs"},
    {"predictions"},
    {"experiments.claims", "experiments.planned"},
    {"experiments.grid", "experiments.ledger"},
    {"experiments.expansion", "experiments.news"},
    {"experiments.grid_text"},
    {"checkpoints", "commands", "exchange", "starts", "several"},
    {"lane"},
    {"chunks"},
    {"assembly"},
    {"loop", "abstract", "first_steps"},
    {"scorer"},
    {"scoring"},
    {"givens"},
    {"training", "plan"},
    {"experiments.attempts"},
    {"experiments.worker"},
    {"demo", "experiments.runner"},
    {"cli"},
    {"__main__", "__init__", "tasks", "interop"},
]


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for base, prefix in ((ROOT, ""), (TASKS, "tasks.")):
        for path in base.rglob("*.py"):
            name = prefix + ".".join(
                path.relative_to(base).with_suffix("").parts
            )
            found[name.removesuffix(".__init__") or "__init__"] = path
    return found


def imported(path: pathlib.Path, known: set[str]) -> set[str]:
    """The package's modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                node.module,
                *(f"{node.module}.{a.name}" for a in node.names),
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    short = {n.removeprefix("panda_jax.") for n in names if "panda_jax" in n}
    return short & known


def test_imports_go_only_downward():
    level = {name: i for i, row in enumerate(LAYERS) for name in row}
    found = modules()
    assert set(found) - set(level) == set(), "a module without a layer"
    wrong = [
        f"{name} imports {other}"
        for name, path in found.items()
        for other in imported(path, set(found)) - {"tasks", "interop", name}
        if not name.startswith(f"{other}.") and level[other] >= level[name]
    ]
    assert wrong == []


def test_only_the_command_line_knows_gin():
    for name, path in modules().items():
        if name not in ("cli", "__main__", "doctor"):
            assert "import gin" not in path.read_text(), name


REQUIRED = {
    "BACKBONE": "'minilm-l6'",
    "MIXTURE_OR_TASK_NAME": "'cb'",
    "TRAIN_STEPS": 300,
    "INITIAL_CHECKPOINT_PATH": "'random:t5-small'",
}


def whole(path: pathlib.Path) -> str:
    """A gin file's text with that of the files that it includes."""
    text = path.read_text()
    names = re.findall(r'^include "(.*)"', text, re.MULTILINE)
    return text + "".join(whole(GIN / name) for name in names)


@pytest.mark.parametrize(
    "path", sorted(GIN.rglob("*.gin")), ids=lambda p: p.name
)
def test_every_gin_file_opens_with_its_use_and_resolves(path, capsys):
    text = path.read_text()
    for heading in (
        "Must be set:",
        "Commonly overridden:",
        "Command:",
        "Expect:",
    ):
        assert heading in text.split("\n\n")[0], heading
    verb = next((v for v in ("demo", "grid") if f"{v}." in text), "train")
    needed = ["--task=cb"] if verb == "train" else ["--out_dir=somewhere"]
    # What a file asks for is what the files that it includes ask for.
    for name in re.findall(r"^(\w+) = %gin.REQUIRED", whole(path), re.M):
        needed += [f"--gin.{name}={REQUIRED[name]}"]
    name = str(path.relative_to(GIN))
    assert cli.main([verb, f"--gin_file={name}", *needed, "--dry_run"]) == 0
    assert f"{verb}.backbone" in capsys.readouterr().out


def test_import_is_light():
    code = (
        "import sys, panda_jax as pj\n"
        "assert 'jax' not in sys.modules\n"
        "for name in pj.__all__: getattr(pj, name)\n"
        "assert callable(pj.train) and callable(pj.evaluate)\n"
        "print({'tensorflow', 'seqio', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"


def test_run_ids_follow_from_settings_alone():
    run = runs.make_run(task="cb", seed=3)
    name = runs.run_id(run, {"source": None})
    assert name.startswith("cb-prompt-s3-")
    assert name == runs.run_id(
        runs.make_run(seed=3, task="cb"), {"source": None}
    )
    assert name != runs.run_id(
        runs.make_run(task="cb", seed=4), {"source": None}
    )
    assert name != runs.run_id(run, {"source": "mrpc@1"})
    with pytest.raises(pj.UserError, match="learning_rate"):
        runs.make_run(task="cb", learningrate=1)


def test_demo_tells_the_whole_story(tmp_path, capsys):
    """On random weights: the rows and files, not the figures."""
    arguments = [
        "demo",
        f"--out_dir={tmp_path}",
        "--backbone=random:bert-tiny",
        "--sources=toy_sentiment,toy_topic",
        "--source_examples=16",
        "--source_epochs=1",
        "--target_examples=16",
        "--target_epochs=1",
        "--eval_examples=16",
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "results.md").read_text()
    for row in demo.ROWS:
        assert row in printed
        assert f"| {row} |" in table
    results = list(tmp_path.rglob("result.json"))
    assert len(results) == 2 + 4 * 3
    assert (tmp_path / "scores.csv").is_file()
    assert (tmp_path / "heatmap_panda.png").is_file()


def test_the_readme_s_python_runs(tmp_path, monkeypatch, capsys):
    """As it stands, but for the weights."""
    readme = ROOT.parent / "README.md"
    if not readme.is_file():
        pytest.skip("installed without the checkout")
    block = readme.read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(block.replace("minilm-l6", "random:bert-tiny"), {})
    assert capsys.readouterr().out.startswith("sentiment ")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
