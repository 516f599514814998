"""The package as a whole: layers, gin files, lightness, the front door."""

import ast
import graphlib
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping

import pytest

import panda_jax as pj
from panda_jax import cli
from panda_jax.cli import demo
from panda_jax.config import runs
from panda_jax.training import identity

ROOT = pathlib.Path(pj.__file__).resolve().parent
GIN = next(p for p in (ROOT / "gin", ROOT.parent / "gin") if p.is_dir())
TASKS = next(p for p in (ROOT / "tasks", ROOT.parent / "tasks") if p.is_dir())

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
DESIGN = CHECKOUT / "docs" / "design.md"


def modules() -> dict[str, pathlib.Path]:
    """Name within the package -> file, but for packages that only say what."""
    found = {}
    for base, prefix in ((ROOT, ""), (TASKS, "tasks.")):
        for path in base.rglob("*.py"):
            name = prefix + ".".join(
                path.relative_to(base).with_suffix("").parts
            )
            if len(ast.parse(path.read_text()).body) > 1:
                found[name.removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST, known: Collection[str]) -> Iterator[str]:
    """The package's modules that code imports, at any depth."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            home = node.module or ""
            assert not node.level, "imports are absolute"
            for alias in node.names:
                full = f"{home}.{alias.name}"
                inner = full.removeprefix("panda_jax.") in known
                names.append(full if inner else home)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "panda_jax":
                yield name.removeprefix("panda_jax.")


def rooms(text: str) -> list[str]:
    """The folders of the design's table, from the top down."""
    table = text.partition("\n## Rooms, top to bottom\n")[2]
    table = table.partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)/?` \|", table, re.M)


def room(name: str) -> str:
    """The folder of a module; what lies beside them is in `panda_jax`."""
    home = {"tasks": "data"}.get(name.partition(".")[0], name.partition(".")[0])
    return home if (ROOT / home).is_dir() else "panda_jax"


def upward(order: list[str], imports: Mapping[str, Collection[str]]) -> set:
    """The imports that lead from a room to one above it."""
    place = {name: number for number, name in enumerate(order)}
    return {
        f"{name} imports {other}"
        for name, others in imports.items()
        for other in others
        if place.get(room(other), -1) < place[room(name)]
    }


def inner_imports() -> dict[str, set[str]]:
    """Module -> the package's modules that it imports, but for front doors."""
    found = modules()
    for name in ("", "__init__", "__main__"):
        found.pop(name, None)
    return {
        name: set(imported(ast.parse(path.read_text()), found))
        for name, path in found.items()
    }


@pytest.mark.skipif(not DESIGN.is_file(), reason="without the checkout")
def test_rooms_import_only_rooms_below_them():
    order, imports = rooms(DESIGN.read_text()), inner_imports()
    assert set(map(room, imports)) == set(order)
    assert len(order) == len(set(order))
    assert upward(order, imports) == set()


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter(
        {
            name: {other for other in others if other != name}
            for name, others in inner_imports().items()
        }
    ).prepare()


def test_at_most_six_files_have_no_room():
    assert len(list(ROOT.glob("*.py"))) <= 6


@pytest.mark.skipif(not DESIGN.is_file(), reason="without the checkout")
def test_tests_lie_as_the_rooms_do():
    here = pathlib.Path(__file__).parent
    folders = {path.parent.name for path in here.glob("*/test_*.py")}
    assert folders == set(rooms(DESIGN.read_text())) - {"panda_jax"}


def test_an_upward_import_is_found_wherever_it_stands():
    code = (
        "from panda_jax.io import files\n"
        "def late():\n"
        "    from panda_jax.models import t5\n"
        "    import panda_jax.cli.entry\n"
        "    from panda_jax.models import config\n"
    )
    known = ["cli.entry", "models", "models.t5", "io.files"]
    names = set(imported(ast.parse(code), known))
    assert names == {"io.files", "models.t5", "cli.entry", "models"}
    order = rooms("\n## Rooms, top to bottom\n\n| `cli/` | x |\n| `io/` | y |")
    assert order == ["cli", "io"]
    assert upward(order, {"io.files": {"cli.entry", "io.arrays"}}) == {
        "io.files imports cli.entry"
    }
    assert upward(order, {"cli.entry": {"io.files"}}) == set()


def test_only_the_command_line_knows_gin():
    for name, path in modules().items():
        if name not in ("cli.bindings", "cli.doctor"):
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
        "heavy = {'jax', 'numpy', 'orbax', 'tensorflow', 'seqio', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "for name in pj.__all__: getattr(pj, name)\n"
        "assert callable(pj.train) and callable(pj.evaluate)\n"
        "heavy -= {'jax', 'numpy'}\n"
        "print(heavy & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"


def test_run_ids_follow_from_settings_alone():
    run = runs.make_run(task="cb", seed=3)
    name = identity.run_id(run, {"source": None})
    assert name.startswith("cb-prompt-s3-")
    assert name == identity.run_id(
        runs.make_run(seed=3, task="cb"), {"source": None}
    )
    assert name != identity.run_id(
        runs.make_run(task="cb", seed=4), {"source": None}
    )
    assert name != identity.run_id(run, {"source": "mrpc@1"})
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


# Put before site-packages, it makes an installation without the extra `data`.
WITHOUT_DATA = """
import importlib.machinery, sys
ABSENT = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"}
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return None
        return super().find_spec(name, path, target)
at = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[at] = Without
"""
COMMANDS = """
import json, sys
from panda_jax import cli
for command in json.loads(sys.argv[1]):
    status = cli.main(command)
    print(command[0], status, file=sys.stderr)
"""
TINY = ("--backbone=random:bert-tiny", "--prompt_length=2", "--epochs=1")
FEW = ("--train_examples=16", "--eval_examples=16", "--max_length=16")


@pytest.fixture(scope="module")
def without_data(tmp_path_factory):
    """Runs commands where the libraries of the extra `data` are absent."""
    folder = tmp_path_factory.mktemp("absent")
    (folder / "sitecustomize.py").write_text(WITHOUT_DATA)

    def run(*commands: list[str]) -> subprocess.CompletedProcess[str]:
        paths = [str(folder), str(ROOT.parent), os.environ.get("PYTHONPATH")]
        return subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
        )

    return run


def test_a_filled_token_cache_needs_nothing_of_the_extra_data(
    without_data, tmp_path
):
    """Every verb that trains, reads or writes, but for `plan` (libtpu)."""
    bank = tmp_path / "bank"
    argv = {
        task: ["train", f"--task=toy_{task}", *TINY, *FEW]
        for task in ("topic", "review")
    }
    for task, command in argv.items():
        assert cli.main([*command, f"--model_dir={tmp_path / task}"]) == 0
    row = tmp_path / "new.jsonl"
    row.write_text('{"sentence": "The film was not bad."}\n')
    truth = tmp_path / "truth.csv"
    pairs = ((s, t, i) for t in "xy" for i, s in enumerate("abcd"))
    lines = [f"{s},{t},{i}" for s, t, i in pairs]
    truth.write_text("\n".join(["source,target,score", *lines, ""]))
    made = tmp_path / "made.csv"
    lines = [",".join([*line.split(",")[:2], "m", line[-1]]) for line in lines]
    made.write_text("\n".join(["source,target,metric,score", *lines, ""]))
    peft, out = tmp_path / "peft", tmp_path / "out"
    scores = tmp_path / "scores"
    commands = [
        *([*argv[task], f"--model_dir={bank / task}"] for task in argv),
        ["evaluate", f"--prompt={bank / 'review'}", "--eval_examples=16"],
        [
            *("predict", f"--prompt={bank / 'review'}", f"--input={row}"),
            f"--out_dir={out / 'predict'}",
        ],
        [
            *("score", f"--sources={bank}", f"--targets={bank}"),
            *("--metrics=panda,on,logme", f"--out_dir={scores}"),
            "--examples=16",
        ],
        [
            *("rank", f"--target={bank / 'review'}", f"--sources={bank}"),
            "--examples=16",
        ],
        [
            *("evaluate-ranking", f"--scores={made}"),
            *(f"--truth={truth}", "--resamples=20", "--permutations=20"),
            "--scatters=false",
        ],
        [
            *("report", f"--runs={bank}", f"--out_dir={out / 'report'}"),
            "--resamples=20",
        ],
        ["export", "peft", str(bank / "review"), f"--out_dir={peft}"],
        [
            *("import", "peft", str(peft), f"--out_dir={out / 'import'}"),
            "--backbone=random:bert-tiny",
        ],
        ["tasks", "toy_review"],
        ["doctor"],
    ]
    done = without_data(*commands)
    statuses = re.findall(r"^([a-z-]+) (\d+)$", done.stderr, re.MULTILINE)
    assert statuses == [(command[0], "0") for command in commands], done.stderr
    result = json.loads((bank / "review" / "result.json").read_text())
    first = json.loads((tmp_path / "review" / "result.json").read_text())
    assert result["best"] == first["best"]
    assert "pip install 'panda-jax[data]' to fill them" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["--task=toy_tense", *TINY], "'seqio'"),
        (["--task=cb", *TINY], "'seqio'"),
        (["--task=toy_tense", "--backbone=random:t5-small"], "'seqio'"),
    ],
    ids=["generated", "of TFDS", "text to text"],
)
def test_without_it_filling_is_refused_in_one_message(
    without_data, tmp_path, monkeypatch, arguments, missing
):
    monkeypatch.setenv("PANDA_CACHE_DIR", str(tmp_path / "empty"))
    folder = f"--model_dir={tmp_path / 'run'}"
    done = without_data(["train", *arguments, folder])
    assert done.stderr.splitlines()[-1] == "train 2"
    assert "Traceback" not in done.stderr
    (message,) = (
        line
        for line in done.stderr.splitlines()
        if line.startswith("panda-jax:")
    )
    assert missing in message
    assert message.endswith("Run: pip install 'panda-jax[data]'")


def test_rows_of_one_s_own_need_nothing_of_it(without_data, tmp_path):
    rows = [
        f"{'good' if n % 2 else 'bad'} film {n},{'yn'[n % 2]}"
        for n in range(40)
    ]
    file = tmp_path / "films.csv"
    file.write_text("\n".join(["text,liked", *rows, ""]))
    own = [f"--train_file={file}", "--text=text", "--label=liked"]
    t5 = ["--backbone=random:t5-small", "--prompt_length=2", "--max_length=16"]
    commands = [
        ["train", *own, *TINY, f"--model_dir={tmp_path / 'a'}"],
        ["train", *own, *t5, "--steps=1", f"--model_dir={tmp_path / 'b'}"],
        [
            *("predict", f"--prompt={tmp_path / 'a'}", f"--input={file}"),
            f"--out_dir={tmp_path / 'out'}",
        ],
    ]
    done = without_data(*commands)
    assert done.stderr.splitlines()[-1] == "predict 0", done.stderr
    assert (
        len((tmp_path / "out" / "predictions.jsonl").open().readlines()) == 40
    )


def test_tasks_of_tfds_are_listed_without_it(without_data, tmp_path):
    """A prepared copy needs TFDS to be looked into, and this says so."""
    version = tmp_path / "super_glue" / "cb" / "1.0.2"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    flag = f"--tfds_data_dir={tmp_path}"
    done = without_data(["tasks"], ["tasks", "cb", flag])
    assert "tasks 0\n" in done.stderr
    assert done.stderr.splitlines()[-1] == "tasks 2"
    assert "'tensorflow_datasets', which is not installed" in done.stderr
