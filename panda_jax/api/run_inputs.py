"""What a run is given: loaded, checked, described."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

from panda_jax.api import scoring
from panda_jax.config import runs, settings
from panda_jax.config.runs import Run
from panda_jax.data import loading
from panda_jax.data.examples import AnyExamples
from panda_jax.errors import UnusedSetting, UserError
from panda_jax.io.files import PathLike
from panda_jax.parallel.sharding import Partitioner
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import (
    PromptBank,
    StoredPrompt,
    content_hash,
    load_prompt,
)
from panda_jax.tasks import specs
from panda_jax.training import identity
from panda_jax.training.evaluation import check_positions, load_view
from panda_jax.transfer import source_fusion
from panda_jax.transfer.transfer_metrics import METRICS

PromptLike = StoredPrompt | PathLike


@dataclasses.dataclass(frozen=True)
class Where:
    """Where data is read and progress is shown; never part of a run's id."""

    data_dir: PathLike | None = None
    tfds_data_dir: PathLike | None = None
    quiet: bool = False
    partitioner: Partitioner | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows of a run.

    Attributes:
      train: to learn from.
      reported: whose score is reported.
      selection: by whose score the best prompt is chosen; `reported` itself
        where the choice is made on what is reported.
    """

    train: AnyExamples
    reported: AnyExamples
    selection: AnyExamples

    @property
    def cut_rows(self) -> dict[str, int]:
        """How many rows of each part the lengths cut something off."""
        parts = {"train": self.train, "evaluation": self.reported}
        if self.selection is not self.reported:
            parts["selection"] = self.selection
        return {name: rows.cut_rows for name, rows in parts.items()}


def load(run: Run, backbone: Backbone, where: Where) -> Data:
    """The rows to learn from, to choose by and to report.

    Raises:
      UserError: no such data, or too long for the backbone with the prompt.
    """
    prompt = 0 if run.method == "finetune" else run.prompt_length or 0
    check_positions(run.max_length, prompt, backbone)

    def loaded(
        split: str, limit: int | None, target_length: int | None = None
    ) -> AnyExamples:
        return load_view(
            run.task,
            split,
            backbone=backbone,
            max_length=run.max_length,
            target_length=target_length,
            data_dir=where.data_dir,
            tfds_data_dir=where.tfds_data_dir,
            limit=limit,
        )

    # Answers are read whole, whatever is learnt of them.
    learnt = loaded("train", run.train_examples, run.target_length)
    reported = loaded(run.split, run.eval_examples)
    if run.select_on == "held_out":
        spec = specs.get(run.task)
        learnt, selection = loading.held_out(spec, learnt)
        if run.target_length is not None and backbone.text_to_text:
            whole = loaded("train", run.train_examples)
            _, selection = loading.held_out(spec, whole)
    elif run.split == "validation":
        selection = reported
    else:
        selection = loaded("validation", run.eval_examples)
    return Data(learnt, reported, selection)


def said_cut(run: Run, data: Data) -> str | None:
    """One line about rows that are cut; None where none is."""
    sizes = {
        "train": data.train,
        "evaluation": data.reported,
        "selection": data.selection,
    }
    words = [
        f"{count} of {sizes[name].questions} {name} rows"
        for name, count in data.cut_rows.items()
        if count
    ]
    if not words:
        return None
    return (
        f"Longer than --max_length={run.max_length}"
        + (f" or --target_length={run.target_length}" * bool(run.target_length))
        + f", and cut: {', '.join(words)}."
    )


def as_path(value: PromptLike | None) -> str | None:
    """Where a prompt or folder lies; None for one in memory."""
    path = value.path if isinstance(value, StoredPrompt) else value
    if path is None or "://" in str(path):  # TFDS reads buckets too
        return None if path is None else str(path)
    return os.path.abspath(path)


def as_paths(sources: Any) -> str | None:
    """Where several sources lie, as a flag says it; None for those in memory.

    A bank is its folder, several folders are joined by commas.
    """
    if isinstance(sources, PromptBank):
        sources = sources.path
    if isinstance(sources, list | tuple):
        return ",".join(os.path.abspath(path) for path in sources)
    one = isinstance(sources, str | os.PathLike)
    return os.path.abspath(sources) if one else None


def prompts(
    values: Mapping[str, PromptLike | None], backbone: Backbone, method: str
) -> dict[str, StoredPrompt | None]:
    """The prompts that a run is given, loaded.

    Args:
      values: by role; `start`, of method `finetune`, is a head alone.
      backbone: of the run.
      method: likewise.

    Raises:
      UserError: one is no prompt of the backbone's.
    """
    found: dict[str, StoredPrompt | None] = dict.fromkeys(values)
    for role, value in values.items():
        if value is None:
            continue
        stored = value
        if not isinstance(stored, StoredPrompt):
            stored = load_prompt(stored)
        name = f"{role.replace('_', ' ')} ({stored.info.task})"
        alone = role == "start" and method == "finetune"
        scoring.check_prompt(backbone, name, stored, head_alone=alone)
        found[role] = stored
    return found


def _checked(
    stored: StoredPrompt, backbone: Backbone, name: str
) -> StoredPrompt:
    """The prompt, if it is one of the backbone's."""
    scoring.check_prompt(backbone, name, stored)
    return stored


def candidates(
    run: Run,
    backbone: Backbone,
    sources: source_fusion.SourcesLike | None,
    given: dict[str, StoredPrompt | None],
) -> dict[str, StoredPrompt]:
    """Several sources by name, of other tasks than the target.

    Raises:
      UserError: a single source or a teacher beside them, a method without
        any use for them, or nothing to choose from.
    """
    if sources is None:
        return {}
    for role in ("source", "teacher"):
        if given[role] is not None:
            raise UserError(
                f"sources and {role} were both given: give --sources alone, "
                "or one --source."
            )
    if run.method not in ("pot", "panda"):
        raise UserError(
            f"Method {run.method!r} makes no use of sources. Leave out "
            "--sources, or choose --method=panda or pot."
        )
    if run.fusion == "late" and run.method != "panda":
        raise UserError(
            "--fusion=late mixes the logits of teachers, which method "
            f"{run.method!r} has none of: give --method=panda or "
            "--fusion=early."
        )
    if not run.needs_source:
        return {}  # The control takes none, given or not.
    return {
        name: _checked(stored, backbone, f"source {name}")
        for name, stored in source_fusion.as_sources(
            sources, task=run.task
        ).items()
    }


def check_needs(
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
        "prompt": ["source", "teacher", "target_prompt"],
        "finetune": ["source", "teacher", "target_prompt"],
        "pot": ["teacher", "target_prompt", "start"],
        "panda": [],
    }[run.method]
    for role in useless:
        if given[role] is not None:
            others = "prompt or panda" if role == "start" else "panda or pot"
            raise UserError(
                f"Method {run.method!r} makes no use of a {role}. Leave out "
                f"--{role}, or choose --method={others}."
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
    _check_start(run, given["start"])
    for role in ("teacher", "target_prompt", "start"):
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


def begun_from(run: Run, start: StoredPrompt | None) -> Run:
    """The run with the shape of the prompt that it goes on from, if any.

    What makes vectors afresh, and was given, is an `UnusedSetting`.
    """
    if start is None:
        return run
    changes = {
        name: runs.DEFAULTS[name]
        for name in settings.FRESH
        if getattr(run, name) != runs.DEFAULTS[name]
    }
    for name in changes:
        warnings.warn(
            f"{name} is {getattr(run, name)!r}, but the prompt starts as "
            f"--start's. Leave out --{name}.",
            UnusedSetting,
            stacklevel=5,
        )
    run = dataclasses.replace(run, **changes)
    if run.method == "finetune":
        return run
    return run.shaped_as(start.prompt.kind, start.prompt.length)


def _check_start(run: Run, start: StoredPrompt | None) -> None:
    """Refuses a prompt to go on from of another shape than is asked for."""
    if start is None or run.method == "finetune":
        return
    kind, length = start.prompt.kind, start.prompt.length
    if (kind, length) != (run.prompt_kind, run.prompt_length):
        raise UserError(
            f"The start is a {kind} prompt of length {length}, the run asks "
            f"for {run.prompt_kind} of length {run.prompt_length}: leave out "
            "--prompt_kind and --prompt_length."
        )


def weighed(
    run: Run, own: StoredPrompt | None, similarity: float | None
) -> tuple[StoredPrompt | None, float | None]:
    """What the distillation's weight is measured by, of what was given.

    The rest is an `UnusedSetting` (`runs.left_out`).

    Args:
      run: with its family's defaults filled in.
      own: the target's own prompt.
      similarity: that was given.

    Returns:
      The target's prompt and the similarity, None where they serve nothing.
    """
    if run.method != "panda" or run.kd_weight == 0:
        return own, similarity
    why = None
    if run.kd_weight is not None:
        why = f"kd_weight={run.kd_weight} sets the weight itself"
    elif run.recipe == "released":
        why = "recipe 'released' takes its weight from kd_beta"
    unused = {"similarity": similarity, "target_prompt": own}
    if why is None:
        if similarity is None:
            return own, None
        why = f"similarity={similarity} is given"
        del unused["similarity"]
    for name, value in unused.items():
        if value is not None:
            warnings.warn(
                f"A {name} serves to weigh the distillation, but {why}. Leave "
                f"out --{name}.",
                UnusedSetting,
                stacklevel=4,
            )
    return None, None if "similarity" in unused else similarity


def check_readable(
    run: Run,
    source: StoredPrompt | None,
    similarity: float | None,
    backbone: Backbone,
) -> None:
    """Refuses, before a teacher is trained, prompts that no metric can read."""
    if not run.weighs_by_similarity or similarity is not None:
        return
    if not METRICS[run.transfer_metric].reads_encoder:
        return
    assert run.prompt_kind is not None
    scoring.check_readable(backbone, "The target's prompt", run.prompt_kind)
    if source is not None:
        kind = source.prompt.kind
        scoring.check_readable(backbone, "The source's prompt", kind)


def describe(
    run: Run,
    backbone: Backbone,
    given: dict[str, StoredPrompt | None],
    similarity: float | None,
    data: Data,
    candidates: dict[str, StoredPrompt],
) -> dict[str, Any]:
    """The content of `run.json`."""
    needs: dict[str, str | float | None] = {
        role: stored and f"{stored.info.task}@{content_hash(stored.prompt)}"
        for role, stored in given.items()
    }
    needs["similarity"] = similarity
    for name, stored in candidates.items():
        known = f"{stored.info.task}@{content_hash(stored.prompt)}"
        needs[f"source {name}"] = known
    fingerprints = {
        "backbone weights": backbone.fingerprint,
        "tokenizer": backbone.tokenizer.identity,
        "training data": data.train.fingerprint,
        "development data": data.reported.fingerprint,
        # What a setting of None came to on this machine.
        "dtype": backbone.config.dtype,
    }
    if data.selection is not data.reported:
        fingerprints["selection data"] = data.selection.fingerprint
    about = {
        "run_id": identity.run_id(run, needs, fingerprints),
        "settings": dataclasses.asdict(run),
        "needs": needs,
        "fingerprints": fingerprints,
    }
    return {
        **about,
        "hash": identity.run_hash(about),
        "versions": runs.versions(),
    }
