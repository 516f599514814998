"""What users get, to the last digit, before and after a change of the code.

    python tests/golden.py OUT                  # this checkout's figures
    python tests/golden.py --compare BEFORE AFTER

Uses the command line and files alone, so it runs on any commit from 0.1 on:
`PYTHONPATH=CHECKOUT python tests/golden.py OUT`. Figures are of one machine:
make both on the same one. The demo, a PANDA run on `toy_review` and its
prompt, one T5 run, the grid and the report of `gin/runs/smoke.gin`, and the
published ranking figures.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

# Of a result, what says how the run went and not when or where.
_KEPT = ("best", "final", "first_epoch", "steps", "metric", "parameters")
_SMALL = (
    "--max_length=32",
    "--prompt_length=8",
    "--batch_size=8",
    "--train_examples=64",
    "--eval_examples=64",
    "--epochs=2",
    "--learning_rate=3e-2",
)


def panda(*arguments: str | pathlib.Path) -> str:
    """What a verb prints; a failing one ends this."""
    command = [sys.executable, "-m", "panda_jax", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.returncode}\n{done.stderr}")
    return done.stdout


def result(folder: pathlib.Path) -> dict[str, Any]:
    """A run's figures, and the numbers of its prompt as a hash."""
    found = json.loads((folder / "result.json").read_text())
    return {
        **{name: found[name] for name in _KEPT},
        "prompt": digest(folder / "prompt" / "adapter_model.safetensors"),
    }


def digest(path: pathlib.Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def texts(folder: pathlib.Path) -> dict[str, str]:
    """The hashes of tables and texts; pictures hold their library's version."""
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".csv", ".md", ".tex", ".json", ".html")
        and not any(part.startswith(".") for part in path.parts[1:])
    }


def made(out: pathlib.Path) -> dict[str, Any]:
    """All figures; the folders that they are of stay in `out`."""
    published = pathlib.Path(
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import panda_jax.experiments as e; print(e.__path__[0])",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    published = next(published.rglob("published"))
    panda("demo", f"--out_dir={out / 'demo'}")
    source, t5 = out / "source", "random:t5_1_1-small"
    panda("train", "--task=toy_sentiment", *_SMALL, f"--model_dir={source}")
    panda(
        "train",
        "--task=toy_review",
        "--method=panda",
        f"--source={source}",
        *_SMALL,
        f"--model_dir={out / 'panda'}",
    )
    panda(
        "train",
        "--task=toy_review",
        f"--backbone={t5}",
        *_SMALL[:-2],
        "--steps=4",
        f"--model_dir={out / 't5'}",
    )
    smoke = ("--gin_file=runs/smoke.gin", f"--out_dir={out / 'smoke'}")
    panda("grid", *smoke)
    panda("report", f"--runs={out / 'smoke'}", f"--out_dir={out / 'report'}")
    ranking = panda(
        "evaluate-ranking",
        f"--scores={published / 'scores.csv'}",
        f"--truth={published / 'truth.csv'}",
        f"--out_dir={out / 'ranking'}",
    )
    return {
        "demo": (out / "demo" / "results.md").read_text().splitlines(),
        "panda": result(out / "panda"),
        "t5": result(out / "t5"),
        "smoke": {
            str(path.parent.relative_to(out / "smoke")): result(path.parent)
            for path in sorted((out / "smoke").rglob("result.json"))
        },
        "report": texts(out / "report"),
        "ranking": texts(out / "ranking"),
        "ranking printed": re.findall(r"-?\d+\.\d+", ranking),
    }


def differing(one: Any, other: Any, where: str = "") -> list[str]:
    """The places in which two such figures differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for name in sorted({*one, *other}):
            found += differing(
                one.get(name), other.get(name), f"{where}/{name}"
            )
        return found
    return [] if one == other else [f"{where}: {one!r}, {other!r}"]


def main() -> int:
    if sys.argv[1] == "--compare":
        one, other = (
            json.loads((pathlib.Path(folder) / "golden.json").read_text())
            for folder in sys.argv[2:]
        )
        found = differing(one, other)
        print("\n".join(found) or "the same to the last digit")
        return bool(found)
    out = pathlib.Path(sys.argv[1]).resolve()
    out.mkdir(parents=True)
    figures = made(out)
    (out / "golden.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
