"""The whole story offline: train sources, score them, transfer, compare."""

import csv
import io
import pathlib
import statistics
import time

from panda_jax import commands
from panda_jax.backbone import Backbone, load_backbone
from panda_jax.errors import UserError
from panda_jax.files import write_text
from panda_jax.loop import TrainResult
from panda_jax.measures import DEFAULT
from panda_jax.scores import Scores
from panda_jax.scoring import score
from panda_jax.tasks import specs
from panda_jax.training import train

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


def demo(args: commands.Demo) -> dict[str, list[float]]:
    """Runs the demo and prints its table.

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
    backbone = load_backbone(args.backbone)
    print(
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
        ).prompt
        for name in sources
    }
    scores = {row: [] for row in ROWS}
    prompts = []
    for seed in range(args.seeds):
        done = _target(args, backbone, out, "prompt", seed, method="prompt")
        scores["prompt"].append(done.best)
        prompts.append(done.prompt)
    table = score(
        sources=bank,
        targets={**bank, args.target: prompts[0]},
        backbone=backbone,
        # No more of the target's rows than its runs may see.
        examples=args.target_examples,
    )
    table.write(out)
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
            )
            scores[row].append(done.best)
    _report(args, out, table, scores, time.monotonic() - began)
    return scores


def _run(
    args: commands.Demo,
    backbone: Backbone,
    folder: pathlib.Path,
    **settings: object,
) -> TrainResult:
    began = time.monotonic()
    done = train(
        backbone,
        model_dir=folder,
        eval_examples=args.eval_examples,
        eval_every=args.eval_every,
        prompt_length=args.prompt_length,
        max_length=args.max_length,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        quiet=True,
        **settings,  # pyright: ignore[reportArgumentType]
    )
    print(
        f"  {folder.parent.name}/{folder.name}: {done.result['metric']} "
        f"{done.best:.3f} ({time.monotonic() - began:.1f}s)",
        flush=True,
    )
    return done


def _target(
    args: commands.Demo,
    backbone: Backbone,
    out: pathlib.Path,
    name: str,
    seed: int,
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
        **settings,
    )


def _report(
    args: commands.Demo,
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
    write_text(out / "results.csv", buffer.getvalue())
    write_text(out / "results.md", "\n".join(lines) + "\n")
    console.print(
        f"{seconds:.0f}s. Written to {out}: results.csv, results.md, "
        "scores.csv, a heat map a metric, and a folder a run (result.json, "
        "prompt/, TensorBoard events).",
        soft_wrap=True,
    )
