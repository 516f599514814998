"""Tries which pairs of transformers and PEFT run the prompts that we export.

    python launch/try_peft.py                        # all that the table has
    python launch/try_peft.py --transformers=5.24.0 --peft=0.21.2   # one more
    python launch/try_peft.py --table          # the table of docs/exchange.md

Exports a prompt of each form, of tiny random backbones, with our own outputs.
Installs each version to a temporary folder (torch is the one installed here),
runs the lines that a card prints in a process of its own, and writes down
whether the outputs are ours.  Takes some minutes and a package index.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHILD = ROOT / "launch" / "try_peft_pair.py"
OUT = ROOT / "panda_jax" / "interop" / "peft_pairs.json"
TRANSFORMERS = ("4.56.0", "5.0.0", "5.23.0", "5.24.0")
PEFT = ("0.17.0", "0.19.1", "0.21.2")
TOLERANCE = 1e-4
P, ROWS, LENGTH, STEPS = 5, 12, 9, 6
KINDS = ("deep", "shallow")
# A task of each kind that has a head of its own.
TASKS = {
    "SEQ_CLS": "cb",
    "TOKEN_CLS": "conll04",
    "QUESTION_ANS": "squad",
    "FEATURE_EXTRACTION": "imported",
    "SEQ_2_SEQ_LM": "rte",
}
ENCODERS = [name for name in TASKS if name != "SEQ_2_SEQ_LM"]


def main() -> None:
    """Parses the flags and does what they ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--transformers", default=",".join(TRANSFORMERS))
    parser.add_argument("--peft", default=",".join(PEFT))
    parser.add_argument("--out", default=OUT, type=pathlib.Path)
    parser.add_argument("--table", action="store_true")
    flags = parser.parse_args()
    if flags.table:
        print(table())
    else:
        transformers, peft = flags.transformers, flags.peft
        try_pairs(transformers.split(","), peft.split(","), flags.out)


# --- Here: what is exported, and what is expected of it ---


def try_pairs(
    transformers: list[str], peft: list[str], out: pathlib.Path
) -> None:
    """Tries all pairs of these and puts each into the file at once."""
    with tempfile.TemporaryDirectory() as name:
        made, installed = pathlib.Path(name) / "made", pathlib.Path(name)
        export_all(made)
        for version in peft:
            _install(installed, "peft", version, "--no-deps")
        for version in transformers:
            _install(installed, "transformers", version)
            for other in peft:
                paths = [
                    installed / f"transformers-{version}",
                    installed / f"peft-{other}",
                ]
                print(
                    f"Trying PEFT {other} with it", file=sys.stderr, flush=True
                )
                pair = {"transformers": version, "peft": other}
                found = run_pair(made, paths)
                if found.pop("versions") != pair:
                    sys.exit(f"The process did not import {pair}.")
                _put(out, pair | _environment() | found)


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch").split("+")[0],
        "accelerate": importlib.metadata.version("accelerate"),
    }


def _put(out: pathlib.Path, pair: dict[str, Any]) -> None:
    """Adds a pair to the file, in the place of one of the same versions."""

    def versions(pair: dict[str, Any]) -> tuple[Version, Version]:
        return Version(pair["transformers"]), Version(pair["peft"])

    pairs = json.loads(out.read_text())["pairs"] if out.exists() else []
    pairs = [old for old in pairs if versions(old) != versions(pair)]
    pairs = sorted([*pairs, pair], key=versions)
    found = {"tolerance": TOLERANCE, "pairs": pairs}
    out.write_text(json.dumps(found, indent=1) + "\n")


def _install(folder: pathlib.Path, package: str, version: str, *how: str):
    target = folder / f"{package}-{version}"
    command = (sys.executable, "-m", "pip", "install", "--quiet")
    # Most of its files are never imported.
    command += ("--no-compile", *how)
    print(f"Installing {package} {version}", file=sys.stderr, flush=True)
    subprocess.run(
        [*command, "--target", str(target), f"{package}=={version}"],
        check=True,
    )


def run_pair(made: pathlib.Path, paths: list[pathlib.Path]) -> dict[str, Any]:
    """What a pair makes of `export_all`'s folder, in a process of its own.

    Args:
      made: the folder.
      paths: where the pair's packages are; first on the process's path.
    """
    done = subprocess.run(
        [sys.executable, str(CHILD), str(made), str(TOLERANCE)],
        check=True,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONWARNINGS": "ignore",
            "HF_HUB_OFFLINE": "1",
            "USE_TF": "0",
            "TRANSFORMERS_VERBOSITY": "error",
        },
    )
    return json.loads(done.stdout)


def export_all(folder: pathlib.Path) -> None:
    """A folder a form: the prompt, the lines to run, inputs and outputs."""
    _export_encoders(folder)
    _export_text_to_text(folder)


def _backbone(folder: pathlib.Path, config: Any, seed: int) -> Any:
    """Writes a backbone, all of whose weights are random, biases too."""
    import flax.linen as nn
    import jax

    from panda_jax import models
    from panda_jax.interop import hf

    made = models.module(config).init(jax.random.key(seed), config)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32),
        nn.meta.unbox(made),
    )
    folder.mkdir(parents=True)
    hf.save(folder, params, config)
    return params


def _export(
    folder: pathlib.Path,
    backbone: pathlib.Path,
    prompt: Any,
    task_type: str,
    numbers: dict[str, Any],
) -> None:
    from panda_jax.interop import peft_code
    from panda_jax.store import prompt_folders

    info = prompt_folders.PromptInfo(
        task=TASKS[task_type],
        backbone=None,
        fingerprint=None,
        kind=prompt.kind,
        method="import-peft",
        task_type=task_type,
    )
    prompt_folders.save_prompt(folder, prompt, info)
    head = bool(prompt.head)
    layout = prompt_folders.layout_of(prompt.vectors.shape, info, head=head)
    outputs = len(prompt.head["bias"]) if head else 0
    base = str(backbone)
    code = peft_code.with_peft(layout, base, outputs=outputs)
    (folder / "with_peft.txt").write_text(code)
    if task_type == "SEQ_2_SEQ_LM":
        code = f"{code}\n{peft_code.decoding()}"
    else:
        code = peft_code.without_peft(layout, base, outputs=outputs)
    (folder / "without_peft.txt").write_text(code)
    np.savez(folder / "numbers.npz", **numbers)


def _prompt(kind: str, config: Any, outputs: int) -> Any:
    from panda_jax import models
    from panda_jax.prompts import Prompt, prompt_shape

    rng = np.random.default_rng(1)
    shape = prompt_shape(
        kind,
        P,
        layers=models.prompt_layers(config),
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
    )
    head = {
        "kernel": rng.normal(size=(config.width, outputs)),
        "bias": rng.normal(size=outputs),
    }
    vectors = rng.normal(size=shape).astype(np.float32)
    head = {name: x.astype(np.float32) for name, x in head.items()}
    return Prompt(vectors, head if outputs else {})


def _texts(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    mask = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, (ROWS, 1))
    return rng.integers(5, vocabulary, (ROWS, LENGTH)) * mask, mask


def _plain(prompt: Any, config: Any) -> Any:
    """The same head behind no prompt."""
    from panda_jax import models
    from panda_jax.prompts import Prompt

    layers = models.prompt_layers(config)
    shape = (layers, 2, 0, config.heads, config.head_dim)
    return Prompt(np.zeros(shape, np.float32), prompt.head)


def _export_encoders(folder: pathlib.Path) -> None:
    import jax
    from panda_jax.tasks import specs

    from panda_jax.models import BertConfig, bert

    config = BertConfig(60, width=32, layers=3, heads=4, ffn=48, positions=64)
    params = _backbone(folder / "bert", config, 0)
    apply = jax.jit(bert.apply, static_argnums=1, static_argnames="per_token")
    tokens, mask = _texts(config.vocab_size)
    segments = (np.arange(LENGTH) > 2) & mask

    def ours(segments: np.ndarray, prompt: Any, task_type: str) -> np.ndarray:
        logits, aux = apply(
            params,
            config,
            tokens,
            segments.astype(np.int32),
            prompt,
            per_token=task_type != "SEQ_CLS",
        )
        hidden = np.asarray(aux["hidden"])[:, -LENGTH:]
        return np.asarray(logits) if prompt.head else hidden

    for task_type, kind in itertools.product(ENCODERS, KINDS):
        task = TASKS[task_type]
        outputs = specs.get(task).outputs if task in specs.names() else 0
        prompt = _prompt(kind, config, outputs)
        numbers = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": segments,
            "expected": ours(segments, prompt, task_type),
            "without_segments": ours(0 * segments, prompt, task_type),
            "without_prompt": ours(segments, _plain(prompt, config), task_type),
        }
        name = f"{kind} {task_type}"
        _export(folder / name, folder / "bert", prompt, task_type, numbers)


def _export_text_to_text(folder: pathlib.Path) -> None:
    import jax

    from panda_jax.models import T5Config, decode, t5

    config = T5Config(
        60,
        width=32,
        layers=3,
        decoder_layers=3,
        heads=4,
        head_dim=12,
        ffn=48,
    )
    params = _backbone(folder / "t5", config, 1)
    apply = jax.jit(t5.apply, static_argnums=1)
    tokens, mask = _texts(config.vocab_size)
    targets, _ = _texts(config.vocab_size)
    for kind in KINDS:
        prompt = _prompt(kind, config, 0)
        numbers: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": mask,
            "labels": targets,
        }
        for name, used in (
            ("expected", prompt),
            ("without_prompt", _plain(prompt, config)),
        ):
            logits, _ = apply(params, config, tokens, targets, used)
            numbers[name] = np.asarray(logits)
            written = decode.greedy(params, config, tokens, used, steps=STEPS)
            numbers[f"{name}_tokens"] = np.asarray(written)
        name = f"{kind} SEQ_2_SEQ_LM"
        _export(folder / name, folder / "t5", prompt, "SEQ_2_SEQ_LM", numbers)


# --- docs/exchange.md ---


def table() -> str:
    """Form by form, what the pairs do, as docs/exchange.md shows it."""
    from panda_jax.interop import peft_pairs

    rows: dict[tuple[str, str, str], list[str]] = {}
    for form in peft_pairs.pairs()[0].with_peft:
        for versions, others, outcome in peft_pairs.grouped(form):
            row = (", ".join(versions), ", ".join(others), outcome.words)
            rows.setdefault(row, []).append(form)
    heads = ("prompt", "transformers", "PEFT", "PEFT gives")
    lines = [heads, ["---"] * len(heads)]
    lines += [(", ".join(forms), *row) for row, forms in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
