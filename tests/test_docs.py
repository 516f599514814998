"""The documentation is run: every fenced block, or a table here says why not.

A page's blocks run in order in a folder of their own, python blocks in one
namespace, shell blocks by bash with commands that only note how they were
called; the notes of `panda-jax` are then run in this process, with flags that
make them small.
"""

import ast
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import made_up_data
import numpy as np
import pytest
import yaml
from panda_jax.tasks import specs

from panda_jax import cli, models
from panda_jax.cli import arguments, flags
from panda_jax.data import task_metrics
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.interop import hf, tables
from panda_jax.models import BertConfig, T5Config
from panda_jax.transfer import transfer_metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
if not (ROOT / "README.md").is_file():
    pytest.skip("installed without the checkout", allow_module_level=True)
TOPS = (
    "benchmarks", "docs", "findings", "gin", "launch", "panda_jax", "tasks",
    "tests",
)  # fmt: skip
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(path for path in ROOT.glob("*") if path.is_file()),
        *(path for top in TOPS for path in (ROOT / top).rglob("*")),
    )
    if "__pycache__" not in path.parts
)
PAGES = [name for name in FILES if name.endswith(".md")]
BASH = shutil.which("bash") or "bash"

# Blocks that are shown, not run: page and begin of the block -> why.
SHOWN = {
    "docs/grid.md: source prompt ──>": "a drawing",
    "docs/pods.md: FROM python": "a Dockerfile",
    "docs/ranking.md: 5 backbones x": "what the command above it prints; "
    "tests/experiments/test_published.py holds its figures",
    "docs/tutorial.md: prompt   ": "what the page printed, in full size",
    "docs/tasks.md: ": "what `panda-jax tasks --markdown` writes; "
    "tests/data/test_catalogue.py holds the page",
}
# Blocks whose `panda-jax` commands are held against the flags and gin files
# that there are, and not run.
NOT_RUN = {
    "docs/exchange.md: panda-jax import FORMAT": "how to write the command",
    "docs/exchange.md: panda-jax export FORMAT": "how to write the command",
    "docs/pods.md: panda-jax train ...": "several machines",
    "docs/results.md: panda-jax train": "the real data that the figures are of",
    "docs/results.md: S=": "the real data that the figures are of",
    "docs/results.md: panda-jax import": "prompts of another project",
    "docs/results/paper_small/README.md: ": "an hour of real data",
    "docs/t5x.md: panda-jax train": "a T5X checkpoint",
}
VERBS_NOT_RUN = {
    "demo": "tests/test_package.py runs it",
    "doctor": "imports TensorFlow in another process; tests/cli/test_doctor.py",
    "plan": "compiles for minutes, for TPUs by libtpu; planning/test_plan.py",
}
# Commands that are not ours -> why they are not run.
COMMANDS_NOT_RUN = {
    ".ci/run": "these tests",
    "bash": "benchmarks on an accelerator",
    "docker": "an image",
    "gcloud": "a cloud project",
    "kubectl": "a cluster",
    "launch/jobset.sh": "a cluster; tests/test_launch.py runs it with stubs",
    "launch/local.sh": "several devices; tests/test_launch.py runs it",
    "launch/tpu_pod.sh": "a pod; tests/test_launch.py runs it with stubs",
    "pip": "installs packages",
    "pyright": "run by .ci/run",
    "pytest": "these tests",
    "python": "a benchmark, with its peers",
    "python3": "sets up an environment, which .ci/run does",
    "ruff": "run by .ci/run",
    "sbatch": "a SLURM cluster",
    "SHARED/venv/bin/pip": "installs packages",
    "tail": "a log that is not there",
    "tensorboard": "a server",
}
# What stands for minilm-l6: one layer and no dropout are compiled quickly.
QUICK = BertConfig(
    Tokenizer.builtin().vocab_size,
    width=32,
    layers=1,
    heads=2,
    ffn=64,
    positions=160,
    dropout=0.0,
    attention_dropout=0.0,
)
BACKBONE, BANK = "random:bert-quick", "random-bert-quick"
# Commands that the shell runs.
DONE = ("cat", "mkdir")
# What `panda-jax` is given in addition, so that it takes a second.
SMALL = {
    "train": "--epochs=None --steps=2 --train_examples=16 --eval_examples=16 "
    "--batch_size=8 --prompt_length=8 --max_length=32",
    "score": "--examples=8",
    "rank": "--examples=8",
    "evaluate": "--eval_examples=16",
    "evaluate-ranking": "--resamples=20 --permutations=20 --scatters=false",
    "grid": f"--backbones={BACKBONE} --seeds=0 --methods=prompt,pot "
    "--sources=toy_sentiment --targets=toy_review --overrides={} --settings="
    '{"steps":2,"train_examples":16,"eval_examples":16,"batch_size":8,'
    '"prompt_length":8,"max_length":32}',
}
OF_BACKBONE = ("train", "tasks")
# Page -> what is replaced in its blocks. Runs of like sizes are compiled once.
SMALLER = {
    "README.md": {
        "train_examples=64, epochs=4": "train_examples=16, eval_examples=16, "
        "prompt_length=8, max_length=32, epochs=1",
        'targets="bank")': 'targets="bank", examples=8)',
        "TARGET_PROMPT": "bank/review",
    },
    "docs/extending.md": {"epochs=2": "batch_size=8, epochs=2"},
    "docs/grid.md": {
        '("mrpc", "stsb")': '("mrpc",)',
        "(0, 1)": "(0,)",
        '"steps": 300': '"steps": 2, "batch_size": 8, "prompt_length": 8, '
        '"max_length": 32, "train_examples": 16, "eval_examples": 16',
    },
    "docs/tutorial.md": {
        "train_examples=320": "train_examples=16",
        "train_examples=64": "train_examples=16",
        "eval_examples=256": "eval_examples=16",
        "examples=64,": "examples=8,",
        "learning_rate=3e-2": "learning_rate=0.3",
        # Such short runs all score alike, and a truth needs differences.
        "{best_score}": "{len(source)}",
    },
}
# Page -> commands that make what it begins with.
BEFORE = {
    "README.md": [
        "train --task=cb --model_dir=runs/cb",
        "import npy mrpc.npy --out_dir=made --backbone=T5_FOLDER",
        "export peft made --out_dir=ADAPTER_FOLDER",
    ],
    "docs/differences.md": ["train --task=mrpc --model_dir=bank/mrpc"],
    "docs/metrics.md": [
        "train --task=cb --model_dir=bank/cb",
        "train --task=mrpc --model_dir=bank/mrpc",
    ],
    "docs/report.md": [
        "grid --gin_file=runs/smoke.gin --out_dir=grid",
        f"score --sources=grid/sources/{BANK}/s0 --metrics=e_avg "
        f"--targets=grid/targets/{BANK}/s0 --out_dir=scores",
    ],
}
CB_ROW = '{"premise": "It rained. She saw it.", "hypothesis": "it rained"}'
PAIRS = [
    (source, target, 0.5 + i / 10)
    for target in ("mrpc", "review", "rte")
    for i, source in enumerate(("review", "sentiment", "mrpc"))
]
TRUTH = [f"{source},{target},{score}" for source, target, score in PAIRS]
SCORES = [f"{source},{target},panda,{score}" for source, target, score in PAIRS]
# Page -> files that it begins with.
GIVEN = {
    "README.md": {
        "transfers.csv": ["source,target,score", *TRUTH],
        "new.jsonl": [CB_ROW],
    },
    "docs/ranking.md": {
        "truth.csv": ["source,target,score", *TRUTH],
        "scores.csv": ["source,target,metric,score", *SCORES],
    },
}
# Flags of others' programs that a text names.
OTHERS_FLAGS = {
    "gpus-per-node", "gpus-per-task", "no-deps", "nodes", "ntasks-per-node",
    "update-addons", "xla_gpu_deterministic_ops",
    "xla_force_host_platform_device_count",
}  # fmt: skip
# Files that a text names and that are not kept here: others', or written.
ELSEWHERE = {
    "config.gin", "greetings.gin", "my_metrics.py", "my_tasks.py",
    "from_file.gin", "from_sampled_vocab.gin", "panda_jax/interop/hf_NAME.py",
    "panda_jax/models/NAME.py", "prompts/from_class_labels.gin", "report.md",
    "t5_1_1_small_prompt.gin", "t5x/configs/runs/finetune.gin", "utils.py",
}  # fmt: skip


class Block(NamedTuple):
    """A fenced block.

    Attributes:
      page: its file.
      line: the first of its text.
      language: as the fence says.
      text: in it.
    """

    page: str
    line: int
    language: str
    text: str

    def of(self, table: dict[str, str]) -> str | None:
        """The key of a table that the block has, if any."""
        name = f"{self.page}: {self.text}"
        return next((key for key in table if name.startswith(key)), None)


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.M):
        line = text[: match.start()].count("\n") + 2
        found.append(Block(page, line, match[1], match[2]))
    fences = len(re.findall(r"^ *```", text, re.M))
    assert fences == 2 * len(found), f"{page}: fences that do not match"
    return found


ALL = {page: blocks_of(page) for page in PAGES}
TO_RUN = [
    page
    for page, found in ALL.items()
    if any(not block.of(SHOWN) for block in found)
]


def prose_of(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", text, flags=re.M)


def spans_of(page: str) -> list[str]:
    """What a page has in backticks, within its text."""
    found = re.findall(r"`([^`]+)`", prose_of(page))
    return [" ".join(span.split()) for span in found]


class Shell:
    """A folder in which shell blocks are read by bash, one after another."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.home = folder.with_name(f"{folder.name}_shell")
        self.home.mkdir()
        for name in DONE:
            real = f'exec {shutil.which(name)} "$@"'
            self._stub(self.home / name, name, real)
        for name in COMMANDS_NOT_RUN:
            if "/" in name:
                self._stub(folder / name, name)

    def _stub(self, path: pathlib.Path, name: str, then: str = "") -> None:
        """A program that notes how it was called."""
        path.parent.mkdir(parents=True, exist_ok=True)
        note = f'printf "%s\\0" "$(($# + 1))" {name} "$@" >>"$NOTES"'
        path.write_text(f"#!{BASH}\n{note}\n{then}\n")
        path.chmod(0o755)

    def commands(self, block: Block, text: str) -> list[list[str]]:
        """The words of each command that is no part of bash.

        Those of `DONE` have been run.
        """
        notes, state = self.home / "notes", self.home / "state"
        notes.write_bytes(b"")
        script = (
            "command_not_found_handle() {\n"
            '  printf "%s\\0" "$#" "$@" >>"$NOTES"\n}\n'
            f'[[ -e "{state}" ]] && source "{state}" 2>"{self.home}/ignored"\n'
            f'{text}\nstatus=$?\ndeclare -p >"{state}"\nexit $status'
        )
        done = subprocess.run(
            [BASH, "--norc", "--noprofile", "-c", script],
            cwd=self.folder,
            env={"PATH": str(self.home), "NOTES": str(notes)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )
        where = f"{block.page}:{block.line}"
        assert (done.returncode, done.stderr) == (0, ""), (where, done.stderr)
        words = notes.read_text().split("\0")[:-1]
        found = []
        while words:
            count = int(words[0])
            found.append(words[1 : 1 + count])
            words = words[1 + count :]
        assert found, f"{where}: no command; run it or name it in SHOWN"
        return found


def arguments_of(command: list[str]) -> list[str] | None:
    """Those of `panda-jax`, also where a script passes them on."""
    name, *rest = command
    if name == "sbatch":
        return rest[rest.index("launch/slurm.sbatch") + 1 :]
    ours = ("launch/jobset.sh", "launch/local.sh", "launch/tpu_pod.sh")
    return rest if name == "panda-jax" or name in ours else None


def check(arguments: list[str]) -> None:
    """That verb, flags, values and gin files of a command are right."""
    verb, *rest = (word.strip("[]") for word in arguments)
    if verb in ("help", "--version"):
        assert set(rest) <= {*cli.VERBS, "VERB", "..."}, rest
        return
    assert verb in cli.VERBS, verb
    # In the text N stands for a number, and FORMAT for one of them.
    rest = [re.sub(r"=N$", "=0", word) for word in rest]
    rest = ["npy" if word == "FORMAT" else word for word in rest]
    if "..." not in rest:
        cli.resolve(verb, rest)
        return
    words = [word for word in rest if word != "..."]
    flags.parse(verb, words)


def check_others(command: list[str]) -> None:
    """That a command of another program names files and flags of ours."""
    name, *rest = command
    if name not in ("python", "python3", "pytest"):
        return
    for script in (word for word in rest if word.endswith(".py")):
        text = (ROOT / script).read_text()
        if script.startswith("benchmarks/"):
            text += (ROOT / "benchmarks" / "turns.py").read_text()
        words = re.findall(r"--(\w+)=", " ".join(rest))
        words += rest[rest.index("-k") + 1 :][:1] if "-k" in rest else []
        for word in words:
            assert word in text, f"{script} has no {word}"


def run(arguments: list[str]) -> None:
    """A command of `panda-jax`, small, in this process."""
    verb, *rest = arguments
    if verb in VERBS_NOT_RUN:
        return
    small = [] if "--dry_run" in rest else SMALL.get(verb, "").split()
    named = any(word.startswith("--backbone") for word in rest)
    # A list of all tasks needs none.
    if verb in OF_BACKBONE and not named and rest[:1] not in ([], ["--json"]):
        small.append(f"--backbone={BACKBONE}")
    status = cli.main([verb, *rest, *small])
    assert status == 0, shlex.join(["panda-jax", *arguments])


def smaller(block: Block, data: pathlib.Path) -> str:
    text = block.text
    for old, new in SMALLER.get(block.page, {}).items():
        text = text.replace(old, new)
    # A grid's banks are named after the backbone.
    text = text.replace("s/minilm-l6/", f"s/{BANK}/")
    text = text.replace("minilm-l6", BACKBONE)
    return re.sub(r"\bDATA\b", str(data), text)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    return made_up_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def registries() -> Iterator[None]:
    """Adds the quick backbone, and leaves the tables as they were."""
    known = (
        specs._SPECS,
        transfer_metrics.METRICS,
        task_metrics.METRICS,
        models.CONFIGS,
    )
    before = [dict(table) for table in known]
    models.CONFIGS[BACKBONE.removeprefix("random:")] = QUICK
    yield
    for table, old in zip(known, before, strict=True):
        table.clear()
        table.update(old)


def write_t5(folder: pathlib.Path) -> None:
    """A T5 that reads bytes, of weights that mean nothing."""
    config = T5Config(
        vocab_size=384, width=32, layers=1, decoder_layers=1, heads=2,
        head_dim=16, ffn=32,
    )  # fmt: skip
    params: dict[str, Any] = {}
    for path, shape in tables.shapes(config).items():
        *parents, last = path.split("/")
        at = params
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = np.full(shape, 0.1, np.float32)
    hf.save(folder, params, config)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "ByT5Tokenizer"}'
    )


def is_file(block: Block) -> str | None:
    """The name of the file that the block is, by its first line."""
    match = re.match(r"# (\w+\.(?:py|gin))\n", block.text)
    return match and match[1]


def run_block(
    block: Block, text: str, shell: Shell, namespace: dict[str, object]
) -> None:
    """Writes it, executes it, or runs what of it can be run here."""
    name = is_file(block)
    if name is not None:
        (shell.folder / name).write_text(text)
    elif block.language == "python":
        code = "\n" * (block.line - 1) + text
        exec(compile(code, str(ROOT / block.page), "exec"), namespace)
    else:
        assert not block.language, f"{block.page}:{block.line}: what is it?"
        for command in shell.commands(block, text):
            given = arguments_of(command)
            if given is not None:
                check(given)
            if command[0] != "panda-jax":
                assert command[0] in {*COMMANDS_NOT_RUN, *DONE}, command
                check_others(command)
            elif given and not block.of(NOT_RUN):
                run(given)


@pytest.mark.parametrize("page", TO_RUN)
def test_the_page_s_blocks_run(page, data, registries, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PANDA_DATA_DIR", str(data))
    monkeypatch.syspath_prepend(folder)
    for name, lines in GIVEN.get(page, {}).items():
        (folder / name).write_text("\n".join(lines) + "\n")
    if any("T5_FOLDER" in block.text for block in ALL[page]):
        write_t5(folder / "T5_FOLDER")
        np.save(folder / "mrpc.npy", np.ones((4, 32), np.float32))
    for line in BEFORE.get(page, ()):
        run(line.split())
    shell, namespace = Shell(folder), {"__name__": "__main__"}
    for block in ALL[page]:
        if not block.of(SHOWN):
            run_block(block, smaller(block, data), shell, namespace)
    for path in folder.rglob("my_*.py"):
        sys.modules.pop(path.stem, None)


def test_what_the_tables_name_is_there():
    found = [block for page in PAGES for block in ALL[page]]
    for table in (SHOWN, NOT_RUN):
        stale = set(table) - {block.of(table) for block in found}
        assert not stale
    for page, replaced in SMALLER.items():
        text = "".join(block.text for block in ALL[page])
        assert [old for old in replaced if old not in text] == []
    for page in (*BEFORE, *GIVEN):
        assert page in TO_RUN
    for reason in (*VERBS_NOT_RUN.values(), *COMMANDS_NOT_RUN.values()):
        for name in re.findall(r"tests/[\w/]+\.py", reason):
            assert name in FILES


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_in_the_text_are_right(page):
    known = {
        name.removeprefix("--")
        for verb in arguments.VERBS
        for action in flags.parser(verb)._actions
        for name in action.option_strings
    }
    if page.startswith("benchmarks/"):
        for script in (ROOT / "benchmarks").glob("*.py"):
            known |= set(re.findall(r'"--(\w+)"', script.read_text()))
    for span in spans_of(page):
        if match := re.match(r"--(gin\.)?([\w-]+)", span):
            name = match[2]
            assert match[1] or name in known | OTHERS_FLAGS, f"--{name}"
        if not span.startswith("panda-jax "):
            continue
        verb, *rest = shlex.split(span)[1:]
        if verb == "VERB":
            continue
        rest = [word for word in rest if word not in ("...", "--help")]
        if not any(re.search(r"=(\.\.\.)?$", word) for word in rest):
            check([verb, *rest, "..."])


def anchors_of(page: str) -> set[str]:
    """As GitHub makes them of a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text.strip()).replace(" ", "-")
        seen = sum(1 for other in found if re.sub(r"-\d+$", "", other) == slug)
        found.append(f"{slug}-{seen}" if seen else slug)
    return set(found)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose_of(page))
    for link in links:
        if re.match(r"\w+:", link):
            assert link.startswith("https://"), link
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {link}"
        if anchor:
            name = os.path.relpath(path, ROOT)
            assert anchor in anchors_of(name), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_text_names_are_there(page):
    """Paths of the repository; the end of one will do."""
    ours = re.compile(r"[\w./*-]+\.(?:py|gin|sh|sbatch|md|cff|svg|toml|yaml)")
    for span in spans_of(page):
        path = span.removeprefix("./")
        begins = path.split("/")[0] in TOPS and re.search(r"\.\w+$", path)
        if not re.fullmatch(ours, path) and not begins:
            continue
        if re.search(r"[^\w./*-]", path) or path in ELSEWHERE:
            continue
        end = re.compile(
            r"(?:.*/)?" + re.escape(path).replace(r"\*", "[^/]*") + "$"
        )
        assert any(end.match(name) for name in FILES), f"{page}: {span}"


def messages() -> str:
    """All texts in the code, f-strings with a gap where something is put in."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        parts = node.values if isinstance(node, ast.JoinedStr) else ()
        return "".join(
            text(part) if isinstance(part, ast.Constant) else "\0"
            for part in parts
        )

    found = []
    for name in FILES:
        if name.endswith(".py") and name.startswith(("panda_jax/", "tasks/")):
            for node in ast.walk(ast.parse((ROOT / name).read_text())):
                if isinstance(node, ast.Constant | ast.JoinedStr):
                    found.append(text(node))
    return "\n".join(found)


def test_messages_that_the_text_quotes_are_the_code_s():
    """In docs/troubleshooting.md: `...` stands for what a message fills in."""
    known = messages()
    quoted = re.findall(
        r"^> (.*(?:\n> .*)*)", prose_of("docs/troubleshooting.md"), re.M
    )
    assert len(quoted) > 20
    for words in quoted:
        line = " ".join(words.replace("\n> ", " ").split())
        # A sentence may come from a constant of its own.
        for part in re.split(r"\.\.\.|\. ", line):
            assert part.strip(" .") in known, line


def test_the_citation_is_whole():
    value = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert value["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= value.keys()
    for reference in value["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
