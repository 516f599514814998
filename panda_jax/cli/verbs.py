"""What each verb does with its arguments, and how it answers.

Imports of what loads JAX stand inside the functions, so that `--help` and a
mistake in a flag are answered at once.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from panda_jax.cli import arguments, t5x_names
from panda_jax.cli.default_folder import default_folder
from panda_jax.errors import UnusedSetting, UserError
from panda_jax.parallel import cluster, distributed


@dataclasses.dataclass(frozen=True)
class Output:
    """How a verb answers.

    Attributes:
      json: with one JSON document on stdout; all else goes to stderr.
      quiet: without progress.
      stdout: where answers go.
    """

    json: bool
    quiet: bool
    stdout: TextIO

    def give(self, document: Any, text: str) -> None:
        """The verb's answer: the document, or else the text."""
        if self.json:
            text = json.dumps(_plain(document), indent=2, allow_nan=False)
        print(text, file=self.stdout)

    def remark(self, words: str) -> None:
        """A line on the way to the answer."""
        if not self.quiet:
            print(words, file=sys.stderr)


def _plain(value: Any) -> Any:
    """A value that JSON can hold: what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _own_rows(values: dict[str, Any]) -> dict[str, Any]:
    """Takes the flags about rows of one's own out of a verb's.

    Returns:
      split -> file, of those that are given; and `text`, `label`, `kind` and
      `labels`.
    """
    own = {
        field.name: values.pop(field.name)
        for field in dataclasses.fields(arguments.OwnRows)
    }
    files = {
        split: own.pop(f"{split}_file")
        for split in ("train", "validation", "test")
    }
    if own["labels"] is not None:
        own["labels"] = _listed(own["labels"])
    files = {split: file for split, file in files.items() if file is not None}
    named = [f"--{name}" for name, value in own.items() if value is not None]
    if named and not files:
        raise UserError(
            f"{' and '.join(named)} speak of rows of your own, and none are "
            "given: give --train_file=FILE."
        )
    return {"files": files, **own}


def _train(args: arguments.Train, output: Output) -> int:
    from panda_jax.config.runs import Run

    distributed.initialize(args)
    from panda_jax.api.training import train
    from panda_jax.parallel.sharding import Partitioner

    fields = {field.name for field in dataclasses.fields(Run)}
    values = dataclasses.asdict(args)
    for field in dataclasses.fields(cluster.Settings):
        del values[field.name]
    model_dir = args.model_dir or default_folder(args)
    own = _own_rows(values)
    files = own.pop("files")
    if files and "train" not in files:
        raise UserError(
            f"--{next(iter(files))}_file is given without rows to train on: "
            "give --train_file=FILE."
        )
    rows = {
        "train_rows": files.get("train"),
        "eval_rows": files.get("validation"),
        "test_rows": files.get("test"),
        **own,
    }
    given = {k: v for k, v in values.items() if k in fields}
    t5x_names.warn_of_pretraining(args.backbone, args.steps)
    paths = {k: v for k, v in values.items() if k not in fields}
    if "," in (args.sources or ""):
        paths["sources"] = list(_listed(paths["sources"]))
    backbone = given.pop("backbone")
    partitioner = Partitioner.of_flags(
        **{name: paths.pop(name) for name in Partitioner.FLAGS}
    )
    with nothing_in_vain():
        done = train(
            backbone,
            partitioner=partitioner,
            quiet=output.quiet,
            **given,
            **rows,
            **{**paths, "model_dir": model_dir},
        )
    result = done.result
    if not distributed.is_main():
        return 0
    output.give(
        {**result, "model_dir": model_dir},
        f"{result['task']} {result['method']} seed {result['seed']}: best "
        f"{result['metric']} {done.best:.4f} at step "
        f"{result['best']['step']} of {result['steps']} (after the first "
        f"epoch {result['first_epoch']['value']:.4f}, at the end "
        f"{result['final']['value']:.4f}), {result['seconds']:.0f}s\n"
        f"run folder: {model_dir}",
    )
    return 0


def _evaluate(args: arguments.Evaluate, output: Output) -> int:
    from panda_jax.training.evaluation import evaluate

    values = dataclasses.asdict(args)
    own = _own_rows(values)
    rows = own.pop("files").get(args.split)
    found = evaluate(rows=rows, **own, **values)
    output.give(found, json.dumps(found))
    return 0


def _predict(args: arguments.Predict, output: Output) -> int:
    from panda_jax.io import ownership
    from panda_jax.store.prompt_folders import load_prompt
    from panda_jax.training import predictions

    form, stored = _form(args), load_prompt(args.prompt)
    task = args.task or stored.info.task
    name = predictions.file_name(form, task)
    place = pathlib.Path(args.out_dir or ".") / name
    if args.output is not None:
        place = pathlib.Path(args.output).expanduser()
    # A pipe or a device is no file that could be ours.
    flows = args.output == "-" or (place.exists() and not place.is_file())
    if place.is_dir():
        raise UserError(
            f"output is the folder {args.output!r}, expected a file: give "
            "--out_dir, or a name in it."
        )
    if not flows:
        ownership.check(
            place.parent, "predict", [place.name], overwrite=args.overwrite
        )
    found = predictions.predict(
        stored,
        args.input,
        task=args.task,
        backbone=args.backbone,
        max_length=args.max_length,
        input_format=args.input_format,
        text=args.text,
        keep_fields=args.keep_fields,
        tell=output.remark,
    )
    if flows:
        text = predictions.written(found, form, task=task)
        if args.output != "-":
            place.write_text(text, encoding="utf-8")
            return 0
        print(text, end="", file=output.stdout)
        return 0
    path = predictions.write_predictions(
        place.parent,
        found,
        name=place.name,
        format=form,
        task=task,
        overwrite=args.overwrite,
    )
    print(path)
    return 0


def _form(args: arguments.Predict) -> str:
    """The format of the answers.

    Raises:
      UserError: two places are named for them, or fields for a submission.
    """
    if args.keep_fields and args.format == "submission":
        raise UserError(
            "--keep_fields has no use with --format=submission, which has ids "
            "and answers alone: leave one of them out."
        )
    if args.output is not None and args.out_dir is not None:
        raise UserError(
            f"output is {args.output!r} and out_dir {args.out_dir!r}, expected "
            "one of the two."
        )
    if args.format is not None:
        return args.format
    return "csv" if (args.output or "").endswith(".csv") else "jsonl"


def _scoring(args: Any) -> dict[str, Any]:
    """The arguments that `score` and `rank` take as they are."""
    from panda_jax.parallel.sharding import Partitioner

    values = dataclasses.asdict(args)
    own = _own_rows(values)
    files = own.pop("files")
    if files:
        from panda_jax.tasks import own as own_rows

        name = getattr(args, "target", None) or getattr(args, "targets", None)
        own_rows.add(files, name=name, **own)
    values["partitioner"] = Partitioner.of_flags(
        values.pop("num_partitions"), values.pop("mesh_shape"), 1
    )
    return values


def _score(args: arguments.Score, output: Output) -> int:
    from panda_jax.api.scoring import score
    from panda_jax.io import ownership
    from panda_jax.transfer.scores import written

    values = _scoring(args)
    out_dir, overwrite = values.pop("out_dir"), values.pop("overwrite")
    ownership.check(
        out_dir, "score", written(_listed(args.metrics)), overwrite=overwrite
    )
    targets = values.pop("targets")
    if targets is None:
        targets = args.sources
    elif not os.path.exists(targets) and os.sep not in targets:
        targets = _listed(targets)
    values["metrics"] = _listed(args.metrics)
    scores = score(targets=targets, **values)
    paths = [str(p) for p in scores.write(out_dir, overwrite=overwrite)]
    pairs = [
        {"source": source, "target": target, "metric": name, "score": value}
        for name, matrix in scores.values.items()
        for source, row in zip(scores.sources, matrix.tolist(), strict=True)
        for target, value in zip(scores.targets, row, strict=True)
    ]
    output.give({"scores": pairs, "files": paths}, "\n".join(paths))
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _rank(args: arguments.Rank, output: Output) -> int:
    from panda_jax.api.scoring import rank

    ranked = rank(**_scoring(args))
    document = {
        "target": args.target,
        "metric": args.metric,
        "ranked": [{"source": name, "score": value} for name, value in ranked],
    }
    lines = [
        f"{place:3d}  {value: .4f}  {name}"
        for place, (name, value) in enumerate(ranked, start=1)
    ]
    output.give(document, "\n".join(lines))
    return 0


def _evaluate_ranking(args: arguments.EvaluateRanking, output: Output) -> int:
    from panda_jax.experiments.ranking.ranking import evaluate_ranking

    values = dataclasses.asdict(args)
    out_dir, scatters = values.pop("out_dir"), values.pop("scatters")
    overwrite = values.pop("overwrite")
    values["metrics"] = args.metrics and _listed(args.metrics)
    values["combine"] = _listed(args.combine)
    try:
        values["ks"] = tuple(int(k) for k in _listed(args.ks))
    except ValueError:
        raise UserError(
            f"ks is {args.ks!r}, expected whole numbers, as 3,5."
        ) from None
    report = evaluate_ranking(**values)
    print(report.table())
    if out_dir is not None:
        for path in report.write(
            out_dir, scatters=scatters, overwrite=overwrite
        ):
            print(path)
    return 0


def _demo(args: Any, output: Output) -> int:
    from panda_jax.cli.demo import demo

    demo(args, quiet=output.quiet)
    return 0


def _import(args: arguments.Import, output: Output) -> int:
    from panda_jax.io import ownership
    from panda_jax.store.backbones import load_backbone
    from panda_jax.store.exchange import import_prompt
    from panda_jax.store.prompt_folders import FILES, save_prompt

    ownership.check(
        args.out_dir, "import", FILES, overwrite=args.overwrite, alone=True
    )
    backbone = args.backbone and load_backbone(args.backbone)
    stored = import_prompt(
        args.format,
        args.path,
        backbone=backbone or None,
        task=args.task,
        task_index=args.task_index,
    )
    save_prompt(
        args.out_dir,
        stored.prompt,
        stored.info,
        by="import",
        overwrite=args.overwrite,
    )
    shape = list(stored.prompt.vectors.shape)
    print(f"{args.out_dir}: {stored.info.task}, {stored.info.kind} {shape}")
    return 0


def _export(args: arguments.Export, output: Output) -> int:
    from panda_jax.store.exchange import export_bank, export_prompt
    from panda_jax.store.prompt_folders import PromptBank, is_bank, load_prompt

    values = dataclasses.asdict(args)
    format, path = values.pop("format"), values.pop("prompt")
    if format != "peft":
        _check_unused(args, f"an export as {format}", "base_model")
    if not is_bank(path):
        print(export_prompt(format, load_prompt(path), **values))
    elif format == "peft":
        print(export_bank(PromptBank(path), **values))
    else:
        raise UserError(
            f"{path!r} is a bank, which is exported as peft, got {format!r}: "
            "say which of its prompts."
        )
    return 0


def _tasks(args: arguments.Tasks, output: Output) -> int:
    from panda_jax.data import catalogue
    from panda_jax.tasks import specs

    if args.task is None and args.markdown is None:
        _check_unused(args, "tasks without NAME and --markdown")
        rows = catalogue.list_tasks()
        output.give({"tasks": rows}, catalogue.table(rows))
        return 0
    if args.task is not None:
        specs.get(args.task)
    from panda_jax.data.text_tokenizer import TextTokenizer
    from panda_jax.io import ownership
    from panda_jax.io.files import write_text
    from panda_jax.store.backbones import load_backbone

    options: dict[str, Any] = {
        "tokenizer": load_backbone(args.backbone).tokenizer,
        "text_tokenizer": args.text_vocabulary
        and TextTokenizer.from_file(args.text_vocabulary),
        "max_length": args.max_length,
        "data_dir": args.data_dir,
        "tfds_data_dir": args.tfds_data_dir,
    }
    if args.markdown is not None:
        path = pathlib.Path(args.markdown)
        with ownership.writing(
            path.parent, "tasks", overwrite=args.overwrite
        ) as new:
            page = catalogue.markdown(args.task, **options)
            write_text(new / path.name, page)
        output.give({"files": [args.markdown]}, args.markdown)
    elif args.task is not None:
        about = catalogue.describe(args.task, **options)
        output.give(about, "\n".join(_lines(about)))
    return 0


def _check_unused(args: Any, where: str, *only: str) -> None:
    """Refuses settings that would change nothing.

    Args:
      args: a verb's.
      where: in which case they would not.
      *only: which; all of them without.
    """
    for field in dataclasses.fields(args):
        if only and field.name not in only:
            continue
        if getattr(args, field.name) != field.default:
            raise UserError(
                f"--{field.name} changes nothing of {where}: leave it out."
            )


def _lines(value: Any, indent: str = "") -> list[str]:
    """Nested values as indented lines; items of a list are set apart."""
    if isinstance(value, str):
        return [f"{indent}{value}"]
    if not isinstance(value, dict):
        items = [_lines(item, f"{indent}  ") for item in value]
        return [
            line
            for item in items
            for line in [f"{indent}- {item[0].strip()}", *item[1:]]
        ]
    lines = []
    for name, part in value.items():
        many = isinstance(part, list) and any(
            len(str(item)) > 40 for item in part
        )
        if part and (isinstance(part, dict) or many):
            lines += [f"{indent}{name}:", *_lines(part, f"{indent}  ")]
        elif isinstance(part, list):
            lines.append(f"{indent}{name}: {', '.join(map(str, part))}")
        else:
            lines.append(f"{indent}{name}: {part}")
    return lines


def _plan(args: arguments.Plan, output: Output) -> int:
    import jax

    # Nothing is run, and TPUs that are compiled for need not be here.
    jax.config.update("jax_platforms", "cpu")
    from panda_jax.config.runs import Run
    from panda_jax.io import ownership
    from panda_jax.io.files import write_json
    from panda_jax.parallel.sharding import Partitioner
    from panda_jax.planning import chips
    from panda_jax.planning.plan import plan
    from panda_jax.planning.plan_text import text

    if chips.topology(args.topology).platform == "tpu":
        # What is compiled for chips that are not here cannot be read back.
        jax.config.update("jax_enable_compilation_cache", False)
    partitioner = Partitioner.of_flags(
        args.num_partitions, args.mesh_shape, args.parameter_partitioning_dims
    )
    partitioner = dataclasses.replace(
        partitioner or Partitioner(), chunk=args.chunk
    )
    if args.json is not None:
        path = pathlib.Path(args.json)
        ownership.check(
            path.parent, "plan", [path.name], overwrite=args.overwrite
        )
    fields = [field.name for field in dataclasses.fields(Run)]
    report = plan(
        Run(**{name: getattr(args, name) for name in fields}),
        topology=args.topology,
        fleet=args.fleet,
        partitioner=partitioner,
        search=not args.no_search,
        say=output.remark,
    )
    output.give(report, text(report))
    if args.json is not None:
        path = pathlib.Path(args.json)
        with ownership.writing(
            path.parent, "plan", overwrite=args.overwrite
        ) as new:
            write_json(new / path.name, report)
    return 0


def _grid(args: arguments.Grid, output: Output) -> int:
    distributed.initialize(args)
    from panda_jax.experiments.grid.runner import run_grid
    from panda_jax.parallel.sharding import Partitioner

    partitioner = Partitioner.of_flags(
        **{name: getattr(args, name) for name in Partitioner.FLAGS}
    )
    found = run_grid(
        args,
        args.out_dir,
        shard=args.shard,
        retry_failed=args.retry_failed,
        stale_seconds=args.stale_seconds,
        data_dir=args.data_dir,
        tfds_data_dir=args.tfds_data_dir,
        quiet=output.quiet,
        partitioner=partitioner,
        overwrite=args.overwrite,
    )
    if distributed.is_main():
        for name, reason in found.failed.items():
            print(f"panda-jax: failed: {name}: {reason}", file=sys.stderr)
        output.give(
            {
                "out_dir": args.out_dir,
                "total": found.total,
                "done": found.done,
                "failed": found.failed,
            },
            f"{found.done} of {found.total} runs are done, "
            f"{len(found.failed)} failed: {args.out_dir}",
        )
    # Who leaves with 1 ends the others, and process 0 has something to say.
    distributed.barrier("grid")
    return 1 if found.failed and not args.keep_going else 0


def _report(args: arguments.Report, output: Output) -> int:
    from panda_jax.experiments.report.report import write_report

    values = dataclasses.asdict(args)
    for name in ("resamples", "seed"):
        if values.pop(name) is not None:
            warnings.warn(
                f"--{name} has no effect: a report draws nothing any more.",
                RuntimeWarning,
                stacklevel=1,
            )
    for path in write_report(values.pop("runs"), **values):
        print(path)
    return 0


def _doctor(args: arguments.Doctor, output: Output) -> int:
    from panda_jax.cli import doctor

    checks = doctor.diagnose(data_dir=args.data_dir)
    broken = any(check.ok is False for check in checks)
    document = {
        "ok": not broken,
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    output.give(document, doctor.report(checks))
    return 2 if broken else 0


@contextlib.contextmanager
def nothing_in_vain() -> Iterator[None]:
    """Makes what the command line gives to nobody an error.

    Raises:
      UserError: says who would use it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedSetting)
        try:
            yield
        except UnusedSetting as found:
            raise UserError(str(found)) from None


VERBS: dict[str, Callable[[Any, Output], int]] = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "score": _score,
    "rank": _rank,
    "evaluate-ranking": _evaluate_ranking,
    "import": _import,
    "export": _export,
    "tasks": _tasks,
    "plan": _plan,
    "grid": _grid,
    "report": _report,
    "doctor": _doctor,
}
