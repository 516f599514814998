"""The whole story offline: train sources, score them, transfer, compare."""

import csv
import functools
import io
import pathlib
import statistics
import time
from collections.abc import Callable

from panda_jax.api.scoring import DEFAULT_METRICS, score
from panda_jax.api.training import train
from panda_jax.cli import arguments
from panda_jax.errors import UserError
from panda_jax.io import ownership
from panda_jax.io.files import write_text
from panda_jax.store.backbones import Backbone, load_backbone
from panda_jax.tasks import specs
from panda_jax.training.trainer import TrainResult
from panda_jax.transfer.scores import Scores, written
from panda_jax.transfer.transfer_metrics import DEFAULT

_VERB = "demo"
_TABLES = ("results.csv", "results.md")
ROWS = {
    "prompt": "prompt-tuning from scratch",
    "pot": "start from the best source's prompt",
    "panda": "distil from that start's result",
    "panda, weight 0": "control: PANDA without its distillation",
}

# What the standard deviations do not hold.
SHARED = (
    "sd: over seeds of the target's runs. All of these share each source's one "
    "prompt, whose own chance is in no figure, and one target."
)


def demo(
    args: arguments.Demo, *, quiet: bool = False
) -> dict[str, list[float]]:
    """Runs the demo and prints its table.

    Args:
      args: its settings.
      quiet: print the tables alone, and nothing while runs are made.

    Returns:
      Row of the table -> best development score of each seed.
    """
    began = time.monotonic()
    sources = [name for name in args.sources.split(",") if name]
    if args.target in sources or len(sources) < 2 or args.seeds < 2:
        raise UserError(
            "The demo needs two or more --sources, a --target that is none of "
            f"them, and two or more --seeds; got {sources}, {args.target!r}, "
            f"{args.seeds}."
        )
    for name in (*sources, args.target):
        specs.get(name)
    out = pathlib.Path(args.out_dir)
    ownership.check(
        out,
        _VERB,
        (*written(DEFAULT_METRICS), *_TABLES),
        overwrite=args.overwrite,
    )
    backbone = load_backbone(args.backbone)
    say = _nothing if quiet else functools.partial(print, flush=True)
    say(
        f"backbone {backbone.id}: frozen. Source prompts: "
        f"{', '.join(sources)}. Target: {args.target}, "
        f"{args.target_examples} labelled rows."
    )
    bank = {
        name: _run(
            args,
            backbone,
            out / "sources" / name,
            task=name,
            method="prompt",
            seed=0,
            epochs=args.source_epochs,
            train_examples=args.source_examples,
            say=say,
        ).prompt
        for name in sources
    }
    scores = {row: [] for row in ROWS}
    prompts = []
    for seed in range(args.seeds):
        done = _target(
            args, backbone, out, "prompt", seed, method="prompt", say=say
        )
        scores["prompt"].append(done.best)
        prompts.append(done.prompt)
    table = score(
        sources=bank,
        targets={**bank, args.target: prompts[0]},
        backbone=backbone,
        # No more of the target's rows than its runs may see.
        examples=args.target_examples,
    )
    table.write(out, overwrite=args.overwrite, by=_VERB)
    ranked = table.top(args.target, k=len(bank), metric=DEFAULT)
    best, similarity = ranked[0]
    for seed in range(args.seeds):
        teacher = _target(
            args,
            backbone,
            out,
            "pot",
            seed,
            method="pot",
            source=bank[best],
            say=say,
        )
        scores["pot"].append(teacher.best)
        for row, weight in (("panda", None), ("panda, weight 0", 0.0)):
            done = _target(
                args,
                backbone,
                out,
                row.replace(", weight 0", "-weight-0"),
                seed,
                method="panda",
                source=bank[best],
                teacher=teacher.prompt,
                similarity=similarity,
                kd_weight=weight,
                kd_lambda=args.kd_lambda,
                say=say,
            )
            scores[row].append(done.best)
    _report(args, out, table, scores, time.monotonic() - began)
    return scores


def _run(
    args: arguments.Demo,
    backbone: Backbone,
    folder: pathlib.Path,
    *,
    say: Callable[[str], None],
    **settings: object,
) -> TrainResult:
    began = time.monotonic()
    done = train(
        backbone,
        model_dir=folder,
        overwrite=args.overwrite,
        eval_examples=args.eval_examples,
        eval_every=args.eval_every,
        prompt_length=args.prompt_length,
        max_length=args.max_length,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        quiet=True,
        **settings,  # pyright: ignore[reportArgumentType]
    )
    say(
        f"  {folder.parent.name}/{folder.name}: {done.result['metric']} "
        f"{done.best:.3f} ({time.monotonic() - began:.1f}s)"
    )
    return done


def _nothing(words: str) -> None:
    """Says nothing."""


def _target(
    args: arguments.Demo,
    backbone: Backbone,
    out: pathlib.Path,
    name: str,
    seed: int,
    *,
    say: Callable[[str], None],
    **settings: object,
) -> TrainResult:
    return _run(
        args,
        backbone,
        out / "target" / f"{name}-s{seed}",
        task=args.target,
        seed=seed,
        epochs=args.target_epochs,
        train_examples=args.target_examples,
        say=say,
        **settings,
    )


def _report(
    args: arguments.Demo,
    out: pathlib.Path,
    table: Scores,
    scores: dict[str, list[float]],
    seconds: float,
) -> None:
    """Prints ranking and table; writes results.csv and results.md."""
    from rich.console import Console
    from rich.table import Table

    metric = specs.get(args.target).metrics[0]
    console = Console()
    ranking = Table(title=f"Which source helps {args.target}?")
    ranking.add_column("source")
    for name in table.values:
        ranking.add_column(f"{name} (higher = better)", justify="right")
    for source, _ in table.top(args.target, k=len(table.sources)):
        column = table.targets.index(args.target)
        row = table.sources.index(source)
        ranking.add_row(
            source, *(f"{m[row, column]:.3f}" for m in table.values.values())
        )
    console.print(ranking)
    shown = Table(
        title=f"{args.target}: {metric} on {args.eval_examples} development "
        f"rows, {args.seeds} seeds"
    )
    for column in ("method", "what it is", "mean", "sd"):
        shown.add_column(column)
    lines = [
        f"| method | {metric}, mean of {args.seeds} seeds | sd |",
        "|---|---|---|",
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "metric", "mean", "sd", "n", "values"])
    for row, values in scores.items():
        mean, sd = statistics.mean(values), statistics.stdev(values)
        shown.add_row(row, ROWS[row], f"{mean:.3f}", f"{sd:.3f}")
        lines.append(f"| {row} | {mean:.3f} | {sd:.3f} |")
        writer.writerow(
            [row, metric, mean, sd, len(values), " ".join(map(str, values))]
        )
    console.print(shown)
    console.print(SHARED, soft_wrap=True)
    lines += ["", SHARED]
    with ownership.writing(out, _VERB, overwrite=args.overwrite) as new:
        texts = buffer.getvalue(), "\n".join(lines) + "\n"
        for name, text in zip(_TABLES, texts, strict=True):
            write_text(new / name, text)
    console.print(
        f"{seconds:.0f}s. Written to {out}: results.csv, results.md, "
        "scores.csv, a heat map a metric, and a folder a run (result.json, "
        "prompt/, TensorBoard events).",
        soft_wrap=True,
    )
