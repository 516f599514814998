"""`panda-jax VERB`: flags and gin files to the functions of the library.

Plain flags are sugar over gin bindings: `--epochs=5` is
`--gin.train.epochs=5`.  The only file that knows gin.
"""

import argparse
import dataclasses
import errno
import json
import os
import pathlib
import sys
import tokenize
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from panda_jax import cluster, commands, distributed, t5x_names
from panda_jax.errors import InterruptedRun, UserError, unknown_name

_PACKAGE = pathlib.Path(__file__).resolve().parent


def _train(args: commands.Train) -> int:
    from panda_jax.runs import Run

    distributed.initialize(args)
    from panda_jax.sharding import Partitioner
    from panda_jax.training import train

    fields = {field.name for field in dataclasses.fields(Run)}
    values = dataclasses.asdict(args)
    for field in dataclasses.fields(cluster.Settings):
        # Who else takes part makes it no other run.
        del values[field.name]
    model_dir = args.model_dir or _default_model_dir(values)
    settings = {k: v for k, v in values.items() if k in fields}
    t5x_names.warn_of_pretraining(args.backbone, args.steps)
    paths = {k: v for k, v in values.items() if k not in fields}
    if "," in (args.sources or ""):
        paths["sources"] = list(_listed(paths["sources"]))
    backbone = settings.pop("backbone")
    partitioner = Partitioner.of_flags(
        **{name: paths.pop(name) for name in Partitioner.FLAGS}
    )
    done = train(
        backbone,
        partitioner=partitioner,
        **settings,
        **{**paths, "model_dir": model_dir},
    )
    result = done.result
    if not distributed.is_main():
        return 0
    print(
        f"{result['task']} {result['method']} seed {result['seed']}: best "
        f"{result['metric']} {done.best:.4f} at step "
        f"{result['best']['step']} of {result['steps']} (after the first "
        f"epoch {result['first_epoch']['value']:.4f}, at the end "
        f"{result['final']['value']:.4f}), {result['seconds']:.0f}s\n"
        f"run folder: {model_dir}"
    )
    return 0


def _default_model_dir(values: dict[str, Any]) -> str:
    """A folder below runs/ that only the same arguments lead to."""
    import hashlib

    # What may be replaced there makes it no other folder.
    named = {name: x for name, x in values.items() if name != "overwrite"}
    text = json.dumps(named, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{values['task']}-{values['method']}-s{values['seed']}-{digest}"
    return str(pathlib.Path("runs") / name)


def _evaluate(args: commands.Evaluate) -> int:
    from panda_jax.evaluation import evaluate

    print(json.dumps(evaluate(**dataclasses.asdict(args))))
    return 0


def _predict(args: commands.Predict) -> int:
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


def _score(args: commands.Score) -> int:
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
    for path in scores.write(out_dir, overwrite=overwrite):
        print(path)
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _rank(args: commands.Rank) -> int:
    from panda_jax.scoring import rank

    ranked = rank(**_scoring(args))
    for place, (name, value) in enumerate(ranked, start=1):
        print(f"{place:3d}  {value: .4f}  {name}")
    return 0


def _evaluate_ranking(args: commands.EvaluateRanking) -> int:
    from panda_jax.experiments.ranking import evaluate_ranking

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


def _demo(args: Any) -> int:
    from panda_jax.demo import demo

    demo(args)
    return 0


def _import(args: commands.Import) -> int:
    from panda_jax import ownership
    from panda_jax.backbone import load_backbone
    from panda_jax.exchange import IMPORTS, import_prompt
    from panda_jax.store import FILES, save_prompt

    if args.format not in IMPORTS:
        raise unknown_name("import format", args.format, IMPORTS)
    ownership.check(args.out_dir, "import", FILES, overwrite=args.overwrite)
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


def _export(args: commands.Export) -> int:
    from panda_jax.exchange import EXPORTS, export_bank, export_prompt
    from panda_jax.store import PromptBank, is_bank, load_prompt

    if args.format not in EXPORTS:
        raise unknown_name("export format", args.format, EXPORTS)
    values = dataclasses.asdict(args)
    format, path = values.pop("format"), values.pop("prompt")
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


def _tasks(args: commands.Tasks) -> int:
    from panda_jax import catalogue
    from panda_jax.tasks import specs

    if args.task is None and args.markdown is None:
        for row in catalogue.list_tasks():
            names = ("source", "target", "offline")
            marks = [name for name in names if row[name]]
            counts = "/".join(str(count) for count in row["rows"].values())
            print(
                f"{row['name']:18s} {row['kind']:15s} {row['metric']:17s} "
                f"{counts:>14s}  {' '.join(marks)}"
            )
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
        print(args.markdown)
    elif args.task is not None:
        about = catalogue.describe(args.task, **options)
        print("\n".join(_lines(about)))
    return 0


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


def _plan(args: commands.Plan) -> int:
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
        say=lambda words: print(words, file=sys.stderr),
    )
    print(text(report))
    if args.json is not None:
        path = pathlib.Path(args.json)
        with ownership.writing(
            path.parent, "plan", overwrite=args.overwrite
        ) as new:
            write_json(new / path.name, report)
    return 0


def _grid(args: commands.Grid) -> int:
    distributed.initialize(args)
    from panda_jax.experiments.runner import run_grid
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
        partitioner=partitioner,
        overwrite=args.overwrite,
    )
    if distributed.is_main():
        for name, reason in found.failed.items():
            print(f"panda-jax: failed: {name}: {reason}", file=sys.stderr)
        print(
            f"{found.done} of {found.total} runs are done, "
            f"{len(found.failed)} failed: {args.out_dir}"
        )
    return 0


def _report(args: commands.Report) -> int:
    from panda_jax.experiments.report import write_report

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


def _doctor(args: commands.Doctor) -> int:
    from panda_jax import doctor

    checks = doctor.diagnose(data_dir=args.data_dir)
    print(doctor.report(checks))
    return 2 if any(check.ok is False for check in checks) else 0


VERBS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "demo": (commands.Demo, _demo),
    "train": (commands.Train, _train),
    "evaluate": (commands.Evaluate, _evaluate),
    "predict": (commands.Predict, _predict),
    "score": (commands.Score, _score),
    "rank": (commands.Rank, _rank),
    "evaluate-ranking": (commands.EvaluateRanking, _evaluate_ranking),
    "import": (commands.Import, _import),
    "export": (commands.Export, _export),
    "tasks": (commands.Tasks, _tasks),
    "plan": (commands.Plan, _plan),
    "grid": (commands.Grid, _grid),
    "report": (commands.Report, _report),
    "doctor": (commands.Doctor, _doctor),
}


class _Parser(argparse.ArgumentParser):
    """argparse, with this program's way of reporting a mistake."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message[0].upper()}{message[1:]}. See --help.")


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    cls, _ = VERBS[verb]
    parser = _Parser(
        prog=f"panda-jax {verb}",
        description=(cls.__doc__ or "").splitlines()[0],
        epilog="--gin.NAME=VALUE binds any gin parameter or macro; "
        f"every flag above is --gin.{_gin_name(verb)}.FLAG.",
        allow_abbrev=False,
    )
    about = commands.settings_help(cls)
    for field in dataclasses.fields(cls):
        default = field.default
        note = (
            " (required)"
            if default is dataclasses.MISSING
            else f" (default: {default})"
        )
        text = (about.get(field.name, "") + note).replace("%", "%%")
        if field.name in commands.PLACED.get(cls, ()):
            # Optional to argparse: a gin file may bind it.
            parser.add_argument(field.name, nargs="?", help=text)
        else:
            parser.add_argument(f"--{field.name}", metavar="V", help=text)
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="F",
        help="gin file, repeatable, later wins; also looked up in the "
        "package's own gin folder",
    )
    parser.add_argument(
        "--gin_search_paths",
        default="",
        metavar="D,D",
        help="more folders to look gin files up in",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the operative configuration and exit",
    )
    return parser


def _gin_name(verb: str) -> str:
    """A verb as gin can name it: `import` begins one of its statements."""
    name = verb.replace("-", "_")
    return f"{name}_prompt" if verb in ("import", "export") else name


def _overview() -> str:
    lines = [
        "usage: panda-jax VERB [--flag=value ...]",
        "",
        "Prompt transfer for frozen language models, in JAX.",
        "",
    ]
    for verb, (cls, _) in VERBS.items():
        lines.append(f"  {verb:16s} {(cls.__doc__ or '').splitlines()[0]}")
    lines += ["", "panda-jax VERB --help shows the flags of a verb."]
    return "\n".join(lines)


def resolve(verb: str, argv: Sequence[str]) -> tuple[Any, str, bool]:
    """The verb's arguments from gin files, bindings and flags.

    Later wins: gin files in order, `--gin.X=V`, then plain flags.

    Returns:
      The arguments, the operative configuration as gin text, and whether this
      is a dry run.
    """
    import gin
    from gin import config as gin_config

    bindings = [a[len("--gin.") :] for a in argv if a.startswith("--gin.")]
    flags = _verb_parser(verb).parse_args(
        [a for a in argv if not a.startswith("--gin.")]
    )
    gin.clear_config()
    configurables = {
        name: gin.external_configurable(cls, name=name, module="panda_jax")
        if f"panda_jax.{name}" not in _REGISTERED
        else _REGISTERED[f"panda_jax.{name}"]
        for name, cls in ((_gin_name(v), cls) for v, (cls, _) in VERBS.items())
    }
    _REGISTERED.update({f"panda_jax.{n}": c for n, c in configurables.items()})
    for name, function in t5x_names.CONFIGURABLES.items():
        if name not in _REGISTERED:
            _REGISTERED[name] = gin.external_configurable(function, name=name)
    bound = _gin_name(verb)
    # gin also takes runs/smoke.gin for a file of a Python package `runs`, and
    # fails where a folder of that name lies: files are all that is meant here.
    gin_config._FILE_READERS[:] = [(open, os.path.isfile)]
    for folder in (
        *filter(None, flags.gin_search_paths.split(",")),
        _PACKAGE / "gin",
        _PACKAGE.parent / "gin",
        _PACKAGE.parent,
    ):
        gin.add_config_file_search_path(str(folder))
    _parse(gin, flags.gin_file, bindings)
    if verb in ("train", "plan"):
        _parse(gin, [], t5x_names.adopted(gin.config_str(), bindings))
    cls, _ = VERBS[verb]
    if verb == "plan":
        _adopt_train(gin, cls)
    for field in dataclasses.fields(cls):
        text = getattr(flags, field.name)
        if text is not None:
            value = commands.convert(cls, field.name, text)
            gin.bind_parameter(f"{bound}.{field.name}", value)
        elif field.default is dataclasses.MISSING:
            if flags.dry_run and field.name == "out_dir":
                _bind_unless_bound(gin, f"{bound}.out_dir", "OUT_DIR")
            _require(gin, verb, field.name)
    try:
        args = configurables[bound]()
    except UserError as error:
        # gin adds to the message which configurable it came from.
        raise UserError(str(error).split("\n  In call to")[0]) from None
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"The gin settings cannot be used: {' '.join(str(error).split())}. "
            "Check the macros (%NAME) and references (@NAME) in gin files and "
            "--gin flags."
        ) from None
    return args, gin.operative_config_str(), flags.dry_run


_REGISTERED: dict[str, Any] = {}


# What gin, and Python's tokenizer below it, raise for one bad text or another.
_GIN_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


def _parse(gin: Any, files: Sequence[str], bindings: Sequence[str]) -> None:
    try:
        for path in files:
            gin.parse_config_file(path)
        for binding in bindings:
            gin.parse_config(binding)
    except _GIN_ERRORS as error:
        message = " ".join(str(error).split())
        raise UserError(
            f"The gin configuration is wrong: {message} (Strings need "
            "quotes: --gin.train.task=\"'cb'\".)"
        ) from None


def _adopt_train(gin: Any, cls: type) -> None:
    """A gin file of `train` is one of `plan`, where it says nothing else."""
    for field in dataclasses.fields(cls):
        for verb in ("plan", "train"):
            try:
                value = gin.query_parameter(f"{verb}.{field.name}")
            except ValueError:
                continue
            if "gin.REQUIRED" not in str(value):
                gin.bind_parameter(f"plan.{field.name}", value)
            break


def _bind_unless_bound(gin: Any, name: str, value: str) -> None:
    """For what a dry run has no use for."""
    try:
        gin.query_parameter(name)
    except ValueError:
        gin.bind_parameter(name, value)


def _require(gin: Any, verb: str, name: str) -> None:
    try:
        value = gin.query_parameter(f"{_gin_name(verb)}.{name}")
    except ValueError:
        value = None
    if value is None or "gin.REQUIRED" in str(value):
        cls, _ = VERBS[verb]
        placed = name in commands.PLACED.get(cls, ())
        flag = name.upper() if placed else f"--{name}=..."
        raise UserError(f"The verb {verb} needs {flag} See --help.")


def _execute(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    for word in rest:
        try:
            word.encode()
        except UnicodeEncodeError:
            # How Python gives bytes that are no text; no JSON could hold them.
            raise UserError(
                f"Got the argument {word!r}, expected UTF-8 text. Rename what "
                "it names."
            ) from None
    args, config, dry_run = resolve(verb, rest)
    if dry_run:
        print(config.strip())
        if verb == "grid":
            from panda_jax.experiments.grid_text import listing

            print(listing(args))
        return 0
    return VERBS[verb][1](args)


def _quiet_libraries() -> None:
    """Keeps TensorFlow's and orbax's chatter off the user's terminal."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # gin reports each search path that lacks a file as an error of the root
    # logger; a file that none of them has is raised all the same.
    logging.getLogger().setLevel(logging.CRITICAL)


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
    _quiet_libraries()
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
