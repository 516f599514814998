"""The front door of training: checks, what a run starts from, then the loop."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from panda_jax import losses, runs, scoring
from panda_jax.backbone import Backbone, load_backbone
from panda_jax.errors import UserError
from panda_jax.evaluation import load_view
from panda_jax.examples import AnyExamples
from panda_jax.files import PathLike, write_json, write_text
from panda_jax.loop import Needs, Session, TrainResult
from panda_jax.models.bert import BertConfig
from panda_jax.runs import Run
from panda_jax.store import StoredPrompt, content_hash, load_prompt
from panda_jax.tasks import specs

PromptLike = StoredPrompt | PathLike


@dataclasses.dataclass(frozen=True)
class Where:
    """Where data is read and progress is shown; never part of a run's id."""

    data_dir: PathLike | None = None
    tfds_data_dir: PathLike | None = None
    quiet: bool = False
    num_partitions: int = 1


def train(
    backbone: Backbone | str = "minilm-l6",
    *,
    source: PromptLike | None = None,
    teacher: PromptLike | None = None,
    target_prompt: PromptLike | None = None,
    similarity: float | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    model_dir: PathLike | None = None,
    quiet: bool = False,
    num_partitions: int = 1,
    **settings: Any,
) -> TrainResult:
    """Trains one prompt (or, with method `model`, the backbone) on a task.

    Started again on the same `model_dir` with the same settings it resumes,
    and returns at once when the run is done.

    Args:
      backbone: loaded, or an id (see `load_backbone`).
      source: for `pot` and `panda`: a prompt tuned on the source task, or the
        folder of one (or of its run).
      teacher: for `panda`: the source's prompt tuned on the target. Without
        it, that run is made first, in `model_dir/teacher`.
      target_prompt: for `panda` with recipe `paper` or `ours`: the target's
        own tuned prompt, for the similarity. Without it, it is trained first,
        in `model_dir/target_prompt`.
      similarity: for `panda`: sets the similarity instead of measuring it.
      data_dir: folder of the tasks' distribution files; default
        `PANDA_DATA_DIR`, and without that TFDS.
      tfds_data_dir: of TFDS.
      model_dir: the run folder; None writes nothing.
      quiet: show no progress.
      num_partitions: with method `model` on several devices: how many hold a
        layer together (T5X's name); weights and optimizer state are split over
        all devices, batches over the groups of so many.
      **settings: the fields of `panda_jax.runs.Run`, `task` at least.

    Raises:
      UserError: anything of the above that is wrong, missing or does not fit,
        or a loss that becomes NaN or Inf.
    """
    if isinstance(backbone, str):
        run = runs.make_run(backbone=backbone, **settings)
        specs.get(run.task)
        dtype = "float32" if run.method == "model" else run.dtype
        backbone = load_backbone(backbone, dtype=dtype)
    else:
        run = runs.make_run(backbone=backbone.id, **settings)
    specs.get(run.task)
    where = Where(data_dir, tfds_data_dir, quiet, num_partitions)
    folder = None if model_dir is None else pathlib.Path(model_dir)
    given = {
        "source": _prompt(source, backbone, "source"),
        "teacher": _prompt(teacher, backbone, "teacher"),
        "target_prompt": _prompt(target_prompt, backbone, "target prompt"),
    }
    if given["source"] is not None and run.needs_source:
        shape = given["source"].prompt
        run = run.shaped_as(shape.kind, shape.length)
    run = run.for_family(text_to_text=backbone.text_to_text)
    _check_needs(run, given, similarity)
    if run.weighs_by_similarity and similarity is None:
        # Before the teacher is trained, not after.
        assert run.prompt_kind is not None
        scoring.check_readable(backbone, "The target's prompt", run.prompt_kind)
        if given["source"] is not None:
            kind = given["source"].prompt.kind
            scoring.check_readable(backbone, "The source's prompt", kind)
    data = _load(run, backbone, where)
    description = _describe(run, backbone, given, similarity, data)
    if folder is not None:
        runs.check_same_run(folder, description)
        done = runs.read_result(folder)
        if done is not None:
            return TrainResult(load_prompt(folder / "prompt"), done, folder)
        # Only now: a start that fails above leaves nothing behind.
        folder.mkdir(parents=True, exist_ok=True)
        paths = {
            "source": source,
            "teacher": teacher,
            "target_prompt": target_prompt,
            "data_dir": data_dir,
            "tfds_data_dir": tfds_data_dir,
        }
        write_json(folder / "run.json", description)
        write_text(
            folder / "config.gin",
            runs.as_gin(
                run,
                {name: _as_path(value) for name, value in paths.items()}
                | {"similarity": similarity},
            ),
        )
    needs = _fill_needs(run, backbone, given, similarity, where, folder)
    session = Session(
        run=run,
        backbone=backbone,
        needs=needs,
        train_data=data[0],
        eval_data=data[1],
        folder=folder,
        quiet=quiet,
        num_partitions=num_partitions,
        run_id=description["run_id"],
    )
    return session.execute()


def _load(
    run: Run, backbone: Backbone, where: Where
) -> tuple[AnyExamples, AnyExamples]:
    """The training and the development split.

    Raises:
      UserError: no such data, or too long for the backbone with the prompt.
    """
    train_data, eval_data = (
        load_view(
            run.task,
            split,
            backbone=backbone,
            max_length=run.max_length,
            data_dir=where.data_dir,
            tfds_data_dir=where.tfds_data_dir,
            limit=limit,
        )
        for split, limit in (
            ("train", run.train_examples),
            ("validation", run.eval_examples),
        )
    )
    longest = max(train_data.tokens.shape[1], eval_data.tokens.shape[1])
    prompt = 0 if run.method == "model" else run.prompt_length or 0
    config = backbone.config
    if isinstance(config, BertConfig) and longest + prompt > config.positions:
        raise UserError(
            f"{longest} tokens and a prompt of {prompt} do not fit the "
            f"backbone's {config.positions} positions. Lower "
            "--max_length or --prompt_length."
        )
    return train_data, eval_data


def _as_path(value: PromptLike | None) -> str | None:
    """Where a prompt or folder lies; None for one in memory."""
    path = value.path if isinstance(value, StoredPrompt) else value
    return None if path is None else os.path.abspath(path)


def _prompt(
    value: PromptLike | None, backbone: Backbone, role: str
) -> StoredPrompt | None:
    if value is None:
        return None
    stored = value if isinstance(value, StoredPrompt) else load_prompt(value)
    scoring.check_prompt(backbone, f"{role} ({stored.info.task})", stored)
    return stored


def _check_needs(
    run: Run,
    given: dict[str, StoredPrompt | None],
    similarity: float | None,
) -> None:
    """Refuses what a method has no use for, lacks, or what does not fit."""
    source, teacher = given["source"], given["teacher"]
    enough = source or (run.method == "panda" and teacher)
    if run.needs_source and not enough:
        raise UserError(
            f"Method {run.method!r} needs a source prompt: give the folder of "
            "one (--source=DIR). Make one with: panda-jax train "
            "--task=SOURCE_TASK --method=prompt --model_dir=DIR"
        )
    useless = {
        "prompt": list(given),
        "model": list(given),
        "pot": ["teacher", "target_prompt"],
        "panda": [],
    }[run.method]
    for role in useless:
        if given[role] is not None:
            raise UserError(
                f"Method {run.method!r} makes no use of a {role}. Leave out "
                f"--{role}, or choose --method=panda or pot."
            )
    if similarity is not None and run.method != "panda":
        raise UserError("--similarity is for --method=panda alone.")
    if run.method == "pot" and source is not None:
        kind, length = source.prompt.kind, source.prompt.length
        same_length = run.resize_source or length == run.prompt_length
        if kind != run.prompt_kind or not same_length:
            raise UserError(
                f"The source prompt is {kind} with length {length}, the run "
                f"asks for {run.prompt_kind} with length {run.prompt_length}. "
                f"Set --prompt_kind={kind} --prompt_length={length}"
                + (
                    ", or crop or pad it with --resize_source=true."
                    if kind == run.prompt_kind
                    else "."
                )
            )
    for role in ("teacher", "target_prompt"):
        stored = given[role]
        if stored is not None and stored.info.task != run.task:
            raise UserError(
                f"The {role} was tuned on {stored.info.task!r}, the run is on "
                f"{run.task!r}. A prompt of another task is a --source."
            )
    if source is None or teacher is None:
        return
    if teacher.info.source not in (None, source.info.task):
        raise UserError(
            f"The teacher was tuned from {teacher.info.source!r}, the source "
            f"is of {source.info.task!r}. Give the source that it came from, "
            "or leave out --teacher."
        )


def _describe(
    run: Run,
    backbone: Backbone,
    given: dict[str, StoredPrompt | None],
    similarity: float | None,
    data: tuple[AnyExamples, AnyExamples],
) -> dict[str, Any]:
    """The content of `run.json`."""
    needs: dict[str, str | float | None] = {
        role: stored and f"{stored.info.task}@{content_hash(stored.prompt)}"
        for role, stored in given.items()
    }
    needs["similarity"] = similarity
    return {
        "run_id": runs.run_id(run, needs),
        "settings": dataclasses.asdict(run),
        "needs": needs,
        "fingerprints": {
            "backbone weights": backbone.fingerprint,
            "training data": data[0].fingerprint,
            "development data": data[1].fingerprint,
        },
        "versions": runs.versions(),
    }


def _fill_needs(
    run: Run,
    backbone: Backbone,
    given: dict[str, StoredPrompt | None],
    similarity: float | None,
    where: Where,
    folder: pathlib.Path | None,
) -> Needs:
    """Trains the teacher and the target's prompt where none is given."""
    source, teacher = given["source"], given["teacher"]
    if run.method != "panda":
        return Needs(source=source)
    if teacher is None and source is not None and run.kd_weight != 0:
        teacher = _nested(
            run,
            backbone,
            where,
            folder and folder / "teacher",
            method="pot",
            source=source,
            prompt_kind=source.prompt.kind,
            prompt_length=source.prompt.length,
        )
    weight = run.kd_weight
    if weight is None and run.recipe == "released":
        weight = losses.released_weight(run.kd_beta, run.batch_size)
    if weight is None:
        if similarity is None:
            if source is None:
                raise UserError(
                    f"Recipe {run.recipe!r} weighs the distillation by the "
                    "similarity of source and target: give --source=DIR, or "
                    "--similarity=NUMBER, or --kd_weight=NUMBER."
                )
            own = given["target_prompt"] or _nested(
                run,
                backbone,
                where,
                folder and folder / "target_prompt",
                method="prompt",
            )
            similarity = scoring.pair_similarity(
                backbone,
                source,
                own,
                data_dir=where.data_dir,
                tfds_data_dir=where.tfds_data_dir,
                max_length=run.max_length,
            )
        weight = run.kd_lambda * float(np.clip(similarity, 0.0, 1.0))
    return Needs(source, teacher, similarity, float(weight))


def _nested(
    run: Run,
    backbone: Backbone,
    where: Where,
    folder: pathlib.Path | None,
    *,
    source: StoredPrompt | None = None,
    **changes: Any,
) -> StoredPrompt:
    """A run with this run's settings, less those of the distillation."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(Run)
        if field.name.startswith("kd_")
        or field.name in ("recipe", "temperature")
    }
    settings = {**dataclasses.asdict(run), **defaults, **changes}
    del settings["backbone"]
    return train(
        backbone,
        source=source,
        data_dir=where.data_dir,
        tfds_data_dir=where.tfds_data_dir,
        model_dir=folder,
        quiet=where.quiet,
        num_partitions=where.num_partitions,
        **settings,
    ).prompt
