"""`panda-jax VERB`: flags and gin files to the functions of the library.

Plain flags are sugar over gin bindings: `--epochs=5` is
`--gin.train.epochs=5`.
"""

import contextlib
import dataclasses
import errno
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from panda_jax import (
    bindings,
    cluster,
    commands,
    distributed,
    flags,
    logs,
    runs,
    settings,
    t5x_names,
)
from panda_jax.default_folder import default_folder
from panda_jax.errors import (
    InterruptedRun,
    UnusedSetting,
    UserError,
    first_line,
    unknown_name,
)


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


def _train(args: commands.Train, output: Output) -> int:
    from panda_jax.runs import Run

    distributed.initialize(args)
    from panda_jax.sharding import Partitioner
    from panda_jax.training import train

    fields = {field.name for field in dataclasses.fields(Run)}
    values = dataclasses.asdict(args)
    for field in dataclasses.fields(cluster.Settings):
        del values[field.name]
    model_dir = args.model_dir or default_folder(args)
    given = {k: v for k, v in values.items() if k in fields}
    t5x_names.warn_of_pretraining(args.backbone, args.steps)
    paths = {k: v for k, v in values.items() if k not in fields}
    if "," in (args.sources or ""):
        paths["sources"] = list(_listed(paths["sources"]))
    backbone = given.pop("backbone")
    partitioner = Partitioner.of_flags(
        **{name: paths.pop(name) for name in Partitioner.FLAGS}
    )
    with _nothing_in_vain():
        done = train(
            backbone,
            partitioner=partitioner,
            quiet=output.quiet,
            **given,
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


def _evaluate(args: commands.Evaluate, output: Output) -> int:
    from panda_jax.evaluation import evaluate

    found = evaluate(**dataclasses.asdict(args))
    output.give(found, json.dumps(found))
    return 0


def _predict(args: commands.Predict, output: Output) -> int:
    from panda_jax import ownership
    from panda_jax.predictions import FILE, predict, write_predictions

    values = dataclasses.asdict(args)
    out_dir, rows = values.pop("out_dir"), values.pop("input")
    overwrite = values.pop("overwrite")
    ownership.check(out_dir, "predict", [FILE], overwrite=overwrite)
    found = predict(rows=rows, **values)
    print(write_predictions(out_dir, found, overwrite=overwrite))
    return 0


def _scoring(args: Any) -> dict[str, Any]:
    """The arguments that `score` and `rank` take as they are."""
    from panda_jax.sharding import Partitioner

    values = dataclasses.asdict(args)
    values["partitioner"] = Partitioner.of_flags(
        values.pop("num_partitions"), values.pop("mesh_shape"), 1
    )
    return values


def _score(args: commands.Score, output: Output) -> int:
    from panda_jax import ownership
    from panda_jax.scores import written
    from panda_jax.scoring import score

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


def _rank(args: commands.Rank, output: Output) -> int:
    from panda_jax.scoring import rank

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


def _evaluate_ranking(args: commands.EvaluateRanking, output: Output) -> int:
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
    from panda_jax.demo import demo

    demo(args, quiet=output.quiet)
    return 0


def _import(args: commands.Import, output: Output) -> int:
    from panda_jax import ownership
    from panda_jax.backbone import load_backbone
    from panda_jax.exchange import IMPORTS, import_prompt
    from panda_jax.store import FILES, save_prompt

    if args.format not in IMPORTS:
        raise unknown_name("import format", args.format, IMPORTS)
    ownership.check(
        args.out_dir, "import", FILES, overwrite=args.overwrite, alone=True
    )
    backbone = args.backbone and load_backbone(args.backbone)
    stored = import_prompt(
        args.format, args.path, backbone=backbone or None, task=args.task
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


def _export(args: commands.Export, output: Output) -> int:
    from panda_jax.exchange import EXPORTS, export_bank, export_prompt
    from panda_jax.store import PromptBank, is_bank, load_prompt

    if args.format not in EXPORTS:
        raise unknown_name("export format", args.format, EXPORTS)
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


def _tasks(args: commands.Tasks, output: Output) -> int:
    from panda_jax import catalogue
    from panda_jax.tasks import specs

    if args.task is None and args.markdown is None:
        _check_unused(args, "tasks without NAME and --markdown")
        rows = catalogue.list_tasks()
        output.give({"tasks": rows}, catalogue.table(rows))
        return 0
    if args.task is not None:
        specs.get(args.task)
    from panda_jax import ownership
    from panda_jax.backbone import load_backbone
    from panda_jax.files import write_text
    from panda_jax.text_tokenizer import TextTokenizer

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


def _plan(args: commands.Plan, output: Output) -> int:
    import jax

    # Nothing is run, and TPUs that are compiled for need not be here.
    jax.config.update("jax_platforms", "cpu")
    from panda_jax import chips, ownership
    from panda_jax.files import write_json
    from panda_jax.plan import plan
    from panda_jax.plan_text import text
    from panda_jax.runs import Run
    from panda_jax.sharding import Partitioner

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


def _grid(args: commands.Grid, output: Output) -> int:
    distributed.initialize(args)
    from panda_jax.experiments.grid.runner import run_grid
    from panda_jax.sharding import Partitioner

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


def _report(args: commands.Report, output: Output) -> int:
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


def _doctor(args: commands.Doctor, output: Output) -> int:
    from panda_jax import doctor

    checks = doctor.diagnose(data_dir=args.data_dir)
    broken = any(check.ok is False for check in checks)
    document = {
        "ok": not broken,
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    output.give(document, doctor.report(checks))
    return 2 if broken else 0


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


def _overview() -> str:
    lines = [
        "usage: panda-jax VERB [--FLAG=VALUE ...]",
        "       panda-jax help VERB",
        "       panda-jax --version",
        "",
        "Prompt transfer for frozen language models, in JAX.",
        "",
    ]
    for verb, cls in commands.VERBS.items():
        lines.append(f"  {verb:16s} {(cls.__doc__ or '').splitlines()[0]}")
    lines += ["", "panda-jax help VERB (or VERB --help) shows a verb's flags."]
    return "\n".join(lines)


def resolve(verb: str, argv: Sequence[str]) -> tuple[Any, str, flags.Given]:
    """The verb's arguments from gin files, bindings and flags.

    What libraries say is shown from here on, and the modules that the user
    names are imported.

    Returns:
      The arguments, the operative configuration as gin text, and what the
      command line says.
    """
    given = flags.parse(verb, argv)
    logs.show(given.log_level)
    for name in given.imports:
        _import_module(name)
    args, config = bindings.resolve(verb, given)
    if verb in ("train", "plan"):
        args = _of_use(args, given)
    return args, config, given


def _of_use(args: Any, given: flags.Given) -> Any:
    """The settings of a run without what its gin files give in vain.

    A file may serve several methods. What the command line gives in vain is
    refused.
    """
    values = {name: getattr(args, name) for name in runs.DEFAULTS}
    several = getattr(args, "sources", None) is not None
    idle = settings.unused(values, runs.DEFAULTS, several=several)
    names = [text.partition("=")[0].strip() for text in given.bindings]
    typed = {*given.values, *(name.rpartition(".")[2] for name in names)}
    of_files = {name: why for name, why in idle.items() if name not in typed}
    for name, why in of_files.items():
        warnings.warn(
            f"A gin file sets {name} to {values[name]!r}: {why}.",
            RuntimeWarning,
            stacklevel=1,
        )
    args = dataclasses.replace(
        args, **{name: runs.DEFAULTS[name] for name in of_files}
    )
    with contextlib.nullcontext() if given.dry_run else _nothing_in_vain():
        runs.left_out(args, several=several)
    return args


@contextlib.contextmanager
def _nothing_in_vain() -> Iterator[None]:
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


def _import_module(name: str) -> None:
    """Imports a module of the user's; from this folder too, if need be."""
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())  # Last, so that it hides no other module.
    try:
        importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--import={name} failed: {type(error).__name__}: "
            f"{first_line(error).rstrip('.')}. Give the name of a module that "
            "Python can import: one in this folder, on PYTHONPATH, or "
            "installed."
        ) from error


def _version() -> str:
    try:
        return f"panda-jax {importlib.metadata.version('panda-jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "panda-jax (not installed)"


def _execute(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        for verb in argv[1:]:
            _check_verb(verb)
        pages = [flags.parser(verb).format_help() for verb in argv[1:]]
        print("\n".join(pages).rstrip() or _overview())
        return 0
    if "--version" in argv:
        print(_version())
        return 0
    verb, *rest = argv
    _check_verb(verb)
    for word in rest:
        try:
            word.encode()
        except UnicodeEncodeError:
            # How Python gives bytes that are no text; no JSON could hold them.
            raise UserError(
                f"Got the argument {word!r}, expected UTF-8 text. Rename what "
                "it names."
            ) from None
    args, config, given = resolve(verb, rest)
    output = Output(given.json, given.quiet, sys.stdout)
    with contextlib.ExitStack() as stack:
        if given.json:
            # Whatever else prints must not stand beside the document.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if given.log_level == "error":
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if given.dry_run:
            return _dry_run(verb, args, config, output)
        return VERBS[verb](args, output)


def _check_verb(verb: str) -> None:
    if verb.startswith("-"):
        raise UserError(
            f"Got the flag {verb} first, expected a verb: panda-jax VERB "
            f"{verb}. See panda-jax help."
        )
    if verb not in commands.VERBS:
        raise unknown_name("verb", verb, commands.VERBS)


def _dry_run(verb: str, args: Any, config: str, output: Output) -> int:
    """What would be done: the settings, and a grid's runs."""
    text = config.strip()
    if verb == "grid":
        from panda_jax.experiments.grid.grid import listing

        text += f"\n{listing(args)}"
    document = {"verb": verb, "settings": dataclasses.asdict(args)}
    output.give({**document, "text": text}, text)
    return 0


def _keep_compiled() -> None:
    """What one run compiled, the next one finds on disk."""
    from panda_jax.files import cache_folder

    folder = str(cache_folder() / "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    # JAX keeps what took a second; the twenty small programs of a start take
    # as long together.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _plain_warnings() -> None:
    """Warnings as one line for people, without our source line."""
    usual = warnings.formatwarning

    def line(message: Any, category: type[Warning], *place: Any) -> str:
        if issubclass(category, RuntimeWarning):
            return f"panda-jax: warning: {message}\n"
        return usual(message, category, *place)

    warnings.formatwarning = line


def program() -> NoReturn:
    """The command `panda-jax`: `main`, and the end of the process.

    One that a signal ended leaves at once, for there may be threads of writers
    and compilers: Python's own end takes them out of C++ that does not allow
    it, and aborts (CPython before 3.14).
    """
    status = main()
    if status > 128:
        distributed.end_at_once(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb. Returns 0 done, 2 the user's mistake; raises on ours.

    One of several processes that fails ends here, so that the others end too.
    """
    try:
        status = _main(argv)
    except Exception as error:
        words = distributed.explain(error)
        if words is not None:
            traceback.print_exc()
            print(f"panda-jax: {words}", file=sys.stderr)
            distributed.leave(1)
        raise
    if status:
        distributed.leave(status)
    return status


def _main(argv: Sequence[str] | None) -> int:
    _plain_warnings()
    _keep_compiled()
    try:
        return _execute(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"panda-jax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has gone; that is no mistake.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        distributed.leave(1)  # The others cannot go on without this one.
        return 0
    except InterruptedRun as stopped:
        print(f"panda-jax: {stopped}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        given = sys.argv[1:] if argv is None else argv
        left = "what was complete is kept, and nothing else was written"
        if given and given[0] in _RESUMED:
            left = "the same command goes on from the last checkpoint"
        print(f"panda-jax: interrupted; {left}.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in _USERS_ERRNOS:
            raise
        print(
            f"panda-jax: {error.strerror}: {error.filename or 'a file'}. "
            "Nothing that was complete is lost; mend it and run the same "
            "command again.",
            file=sys.stderr,
        )
        return 2


# Verbs that go on where they were.
_RESUMED = ("demo", "train", "grid")
_USERS_ERRNOS = (
    errno.ENOSPC,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
)


if __name__ == "__main__":
    sys.exit(main())
