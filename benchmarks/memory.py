"""How much memory does prompt-tuning a T5 take beside its activations?

    python benchmarks/memory.py --out=FILE.json

Runs `python -m panda_jax train` on a built-in task in processes of its own and
reads the most that each ever held (its peak resident set). Once the backbone
has random weights, once it is read from a Hugging Face folder, as is usual.
From the peak are taken the `baseline`, which a process has that only imports
JAX and this package and makes a device, and the `activations`, the temporary
bytes that XLA allots to the largest program of the run. What is left, over the
backbone's bytes in fp32, is `times_backbone`: 1 would be its weights alone.

The caches are filled by a first start, told apart: the first reads the text
with TensorFlow and compiles. `phases` are of a run that takes its own pulse:
bytes above the baseline at the peak of each part and after it. Memory that the
system may take back at any time, such as the mapped pages of a file, is part of
a resident set.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import turns

OURS = "panda-jax train"
INSIDE, SAVE, BARE = "--inside", "--save", "--bare"
# Compiled programs whose temporary bytes count as activations.
_PROGRAMS = ("run_steps", "predict", "rank", "write")
_PHASES = {
    "training._loaded": "load the backbone",
    "givens.load": "read the tokens",
    "Assembly.start": "the first prompt and optimizer state",
    "Assembly.load": "put the rows on the device",
    "fleet.run_steps": "the steps",
    "evaluation.fleet_scores": "the evaluation",
    "Lane.keep": "store the prompt",
}


def peak(command: list[str], environment: dict[str, str]) -> int:
    """Bytes that a process held at its most, from start to end."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    # Of this child alone; `RUSAGE_CHILDREN` is the largest of all so far.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return usage.ru_maxrss * 1024


def told(command: list[str], environment: dict[str, str]) -> Any:
    """The JSON on the last line that a process prints."""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(
    case: str, backbone: str, args: argparse.Namespace, folder: pathlib.Path
) -> dict[str, Any]:
    """One backbone's runs, as a case of the report."""
    environment = {
        **os.environ,
        "PANDA_CACHE_DIR": str(folder / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    # The program's own default counts.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    flags = [
        "train",
        f"--backbone={backbone}",
        f"--task={args.task}",
        f"--steps={args.steps}",
        f"--batch_size={args.batch_size}",
        f"--max_length={args.max_length}",
        f"--eval_examples={2 * args.batch_size}",
    ]
    runs = (str(folder / f"{case}{number}") for number in range(1 << 20))

    def train() -> list[str]:
        return [*flags, f"--model_dir={next(runs)}"]

    script = [sys.executable, os.path.abspath(__file__)]
    whole = [sys.executable, "-m", "panda_jax"]
    first = peak([*whole, *train()], environment)
    temporary = told([*script, INSIDE, "programs", *train()], environment)
    phases = told([*script, INSIDE, "phases", *train()], environment)
    weights = phases.pop("backbone_bytes")
    activations = max(temporary.values())
    peaks, baselines = [], []
    for _ in range(args.repeats):
        peaks.append(peak([*whole, *train()], environment))
        baselines.append(peak([*script, BARE], environment))
    beside = [
        most - bare - activations
        for most, bare in zip(peaks, baselines, strict=True)
    ]
    return {
        "case": case,
        "times_backbone": turns.spread([x / weights for x in beside]),
        "facts": {
            OURS: {
                "backbone_bytes": weights,
                "activation_bytes": activations,
                "temporary_bytes": temporary,
                "peak_bytes": turns.spread(peaks),
                "baseline_bytes": turns.spread(baselines),
                "beside_activations_bytes": turns.spread(beside),
                "first_start_peak": first,
                "phases": phases,
            }
        },
    }


def status(name: str) -> int:
    """A number of bytes of this process, as `VmRSS` or `VmHWM`."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"This system tells no {name}.")


class Pulse:
    """Takes the memory of parts of this process."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, int]] = {}
        self._bare = status("VmRSS")

    def watched(self, name: str, function: Callable[..., Any]) -> Any:
        """The function; its peak and what is left after it are kept."""
        import jax

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            # Peaks count anew from here.
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            found = function(*args, **options)
            # A dispatch returns before it has run.
            jax.block_until_ready(jax.tree.leaves(found))
            most = status("VmHWM") - self._bare
            before = self.phases.get(name, {"peak": most})
            self.phases[name] = {
                "peak": max(most, before["peak"]),
                "after": status("VmRSS") - self._bare,
            }
            return found

        return call


def bare() -> None:
    """Imports all that a run imports, and makes a device."""
    from panda_jax.api import training  # noqa: F401

    _device()


def _device() -> None:
    import jax

    jax.block_until_ready(jax.numpy.zeros(1))


def inside(what: str, argv: list[str]) -> None:
    """A run that prints what it finds out of itself.

    Args:
      what: `phases`, its memory part by part; or `programs`, the temporary
        bytes of what it compiles.
      argv: the command's.
    """
    from panda_jax.cli import entry

    # JAX reads where its cache is when it is imported.
    entry._keep_compiled()
    from panda_jax.api import run_inputs, training
    from panda_jax.step import fleet
    from panda_jax.training import evaluation, lane, step_inputs

    found: dict[str, Any] = {}
    if what == "programs":
        for name in _PROGRAMS:
            setattr(fleet, name, _asked(name, getattr(fleet, name), found))
    else:
        _device()
        pulse = Pulse()
        owners = {
            "training": training,
            "givens": run_inputs,
            "Assembly": step_inputs.Assembly,
            "fleet": fleet,
            "evaluation": evaluation,
            "Lane": lane.Lane,
        }
        for place, name in _PHASES.items():
            owner, _, attribute = place.partition(".")
            plain = getattr(owners[owner], attribute)
            setattr(owners[owner], attribute, pulse.watched(name, plain))
        found = pulse.phases
        loaded = training._loaded

        def counted(*args: Any) -> Any:
            backbone = loaded(*args)
            found["backbone_bytes"] = 4 * _size(backbone.params)
            return backbone

        training._loaded = counted
    code = entry.main(argv)
    if code:
        raise SystemExit(code)
    print(json.dumps(found))


def _size(params: Any) -> int:
    from panda_jax.models import trees

    return trees.size(params)


def _asked(name: str, function: Any, found: dict[str, int]) -> Any:
    """A jitted function; at its first call it is asked what it allots."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if name not in found:
            compiled = function.lower(*args, **options).compile()
            analysis = compiled.memory_analysis()
            found[name] = analysis.temp_size_in_bytes
        return function(*args, **options)

    return call


def save(name: str, folder: str) -> None:
    """Writes a backbone as a Hugging Face folder with its tokenizer."""
    import panda_jax as pj
    from panda_jax.interop import hf

    backbone = pj.load_backbone(name)
    hf.save(pathlib.Path(folder), backbone.params, backbone.config)
    backbone.tokenizer.save(folder)


def main() -> None:
    """Measures both ways to come by a backbone; writes a JSON file."""
    role = sys.argv[1:2]
    if role == [INSIDE]:
        return inside(sys.argv[2], sys.argv[3:])
    if role == [SAVE]:
        return save(*sys.argv[2:])
    if role == [BARE]:
        return bare()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="random:t5_1_1-small")
    parser.add_argument("--task", default="toy_review")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=64)
    args = parser.parse_args()
    script = [sys.executable, os.path.abspath(__file__)]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        saved = str(folder / "backbone")
        subprocess.run([*script, SAVE, args.backbone, saved], check=True)
        for case, backbone in (
            ("random weights", args.backbone),
            ("Hugging Face folder", saved),
        ):
            results.append(measured(case, backbone, args, folder))
    turns.report(results, out=args.out)


if __name__ == "__main__":
    main()
