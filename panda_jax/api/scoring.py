"""Scores of every source x target pair, from stored prompts."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from panda_jax.errors import UserError, unknown_name
from panda_jax.io.files import PathLike
from panda_jax.store.backbones import Backbone, load_backbone
from panda_jax.store.prompt_folders import (
    PromptBank,
    PromptInfo,
    StoredPrompt,
    backbone_place,
    check_backbone,
    content_hash,
    load_prompt,
)
from panda_jax.tasks import specs
from panda_jax.transfer import combine
from panda_jax.transfer.scorer import Entry, Options, Scorer
from panda_jax.transfer.scores import Scores
from panda_jax.transfer.transfer_metrics import METRICS, RANKING, Measure

DEFAULT_METRICS = ("panda", "e_avg", "on")

# Bytes of prompts that a call keeps from its first reading on.
_KEPT = 2**28

BankLike = PromptBank | PathLike | Mapping[str, StoredPrompt]


def as_bank(bank: BankLike) -> PromptBank:
    """A bank from a folder, a mapping of names to prompts, or itself."""
    if isinstance(bank, PromptBank):
        return bank
    if isinstance(bank, str | os.PathLike):
        return PromptBank(bank)
    return PromptBank.of(dict(bank))


def check_prompt(
    backbone: Backbone,
    name: str,
    stored: StoredPrompt,
    *,
    head_alone: bool = False,
) -> None:
    """Refuses a prompt of another backbone, and a head without a prompt.

    Args:
      backbone: that it is to be used with.
      name: for the message.
      stored: the prompt.
      head_alone: a head without a prompt is what is wanted.

    Raises:
      UserError: names the prompt, and both backbones.
    """
    length = stored.prompt.length
    if head_alone and length:
        raise UserError(
            f"{name} is a prompt of length {length}, and method 'finetune' "
            "goes on from the head of a model-tuned backbone alone: give the "
            "run that made it, and its model as --backbone."
        )
    if head_alone and not stored.prompt.head:
        raise UserError(
            f"{name} has neither prompt nor head: a tuned text-to-text model "
            "goes on as --backbone alone. Leave out --start."
        )
    _check_prompt(backbone, name, stored.info, length or int(head_alone))


def _check_prompt(
    backbone: Backbone, name: str, info: PromptInfo, length: int
) -> None:
    try:
        check_backbone(
            info,
            backbone.fingerprint,
            backbone.id,
            backbone.tokenizer.identity,
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if length == 0:
        raise UserError(
            f"{name} is the head of a model-tuned backbone and has no prompt."
        )


def check_readable(backbone: Backbone, name: str, kind: str) -> None:
    """Refuses prompts that the metrics which run the backbone cannot see.

    Raises:
      UserError: a deep prompt of a text-to-text backbone; says what is left.
    """
    if backbone.text_to_text and kind == "deep":
        raise UserError(
            f"{name} is a deep prompt of a text-to-text backbone, which only "
            "the decoder sees; metrics panda, on, logme, h_score and probe "
            "read the encoder. Ask for --metrics=e_avg (and for training with "
            "PANDA give --transfer_metric=e_avg or --similarity=NUMBER)."
        )


def score(
    *,
    sources: BankLike,
    targets: BankLike | list[str] | tuple[str, ...],
    metrics: Sequence[str] = DEFAULT_METRICS,
    backbone: Backbone | str | None = None,
    **options: Any,
) -> Scores:
    """Scores every source for every target.

    A bank is read one prompt at a time, a large one twice, and the backbone run
    over each prompt's own rows: M + N passes for M x N pairs. Metrics of the
    target's labels run it over each target's rows under each source: M x N
    passes.

    Args:
      sources: a bank, its folder, or `{name: prompt}`.
      targets: likewise, and may be the same bank; for the metrics that read
        labels a list of task ids will do.
      metrics: of `measures.METRICS`, or sums of them as `combine.parse` reads
        them (`e_avg+on+panda`: their ranks, a target at a time).
      backbone: by default the one that the first source names. Metrics that
        compare the vectors alone load none.
      **options: the fields of `scorer.Options`.

    Returns:
      `Scores`; higher = more transferable for every metric; NaN in the column
      of a target that a metric can say nothing of, with a warning.

    Raises:
      UserError: unknown metric, empty bank, a broken prompt folder, a target
        without a prompt, prompts of several backbones, kinds or lengths
        (where the metric needs equal ones).
    """
    rows = _entries(sources, "sources")
    if targets is sources:
        columns = rows
    elif isinstance(targets, list | tuple):
        columns = _tasks(targets)
    else:
        columns = _entries(targets, "targets")
    return _score(rows, columns, metrics, backbone, Options(**options))


def _score(
    rows: Sequence[Entry],
    columns: Sequence[Entry],
    metrics: Sequence[str],
    backbone: Backbone | str | None,
    options: Options,
) -> Scores:
    measures = _measures(metrics)
    model = _model(backbone, [*rows, *columns], measures)
    scorer = Scorer(model, rows, columns, measures, options)
    parts = Scores(
        sources=tuple(entry.name for entry in rows),
        targets=tuple(entry.name for entry in columns),
        values={m.name: scorer.matrix(m) for m in measures},
    )
    values = {
        name: parts.values[name]
        if name in METRICS
        else combine.combined(parts, None, name)
        for name in metrics
    }
    return dataclasses.replace(parts, values=values)


def _measures(metrics: Sequence[str]) -> list[Measure]:
    """The metrics that are asked for, and those that combinations name.

    Raises:
      UserError: an unknown name, or a prior, which takes results.
    """
    names: dict[str, None] = {}
    for metric in metrics:
        if metric in METRICS:
            names[metric] = None
            continue
        parsed = combine.parse(metric)
        if combine.PRIOR in parsed.weights:
            raise UserError(
                f"Metric {metric!r} names the prior, which is learned from "
                "results of transfers: score the others, and add it with "
                "panda-jax evaluate-ranking --combine."
            )
        names |= dict.fromkeys(parsed.weights)
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    return [METRICS[name] for name in names]


def _tasks(names: Sequence[str]) -> list[Entry]:
    """Targets without prompts, by the names that `train` takes too."""
    tasks = [specs.of_registry(name)[0] for name in names]
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(
            f"The targets are {list(names)}, expected task ids, each once."
        )
    return [Entry(task, task) for task in tasks]


def _entries(bank: BankLike, role: str) -> list[Entry]:
    """What is known of each prompt; those beyond `_KEPT` are let go again.

    A broken folder is told of here, before anything is computed.
    """
    bank = as_bank(bank)
    if len(bank) == 0:
        raise UserError(f"The bank of {role} holds no prompt folder.")
    entries, held = [], 0
    for name in bank.names:
        stored = bank.read(name)
        held += stored.prompt.vectors.nbytes
        if not np.isfinite(stored.prompt.vectors).all():
            raise UserError(
                f"{name} of the {role} has vectors that are not finite: its "
                "run diverged, or its file was made elsewhere. Leave it out."
            )
        entries.append(
            Entry(
                name,
                stored.info.task,
                stored.info,
                np.shape(stored.prompt.vectors),
                content_hash(stored.prompt),
                functools.partial(bank.read, name)
                if held > _KEPT
                else functools.partial(_itself, stored),
            )
        )
    return entries


def _itself(stored: StoredPrompt) -> StoredPrompt:
    return stored


def _model(
    backbone: Backbone | str | None,
    entries: Sequence[Entry],
    measures: Sequence[Measure],
) -> Backbone | None:
    """The backbone that all prompts are of; None where no metric runs it.

    Raises:
      UserError: a prompt of another backbone, or one that a metric cannot be
        read off.
    """
    running = [measure for measure in measures if measure.runs_backbone]
    infos = [(e.name, e.info) for e in entries if e.info is not None]
    first_name, first = infos[0]
    if backbone is None and not running:
        for name, info in infos:
            if info.fingerprint != first.fingerprint:
                raise UserError(
                    f"{first_name} is of backbone {_of(first)}, {name} of "
                    f"{_of(info)}: prompts of one backbone alone can be "
                    "compared."
                )
        return None
    if backbone is None:
        backbone = backbone_place(first)
    model = load_backbone(backbone) if isinstance(backbone, str) else backbone
    for entry in entries:
        if entry.info is None:
            continue
        _check_prompt(model, entry.name, entry.info, entry.prompt_length)
        if any(m.reads_encoder for m in running):
            check_readable(model, entry.name, entry.info.kind)
    return model


def _of(info: PromptInfo) -> str:
    return f"{info.backbone!r} (weights {info.fingerprint})"


def rank(
    target: PathLike | StoredPrompt,
    *,
    sources: BankLike,
    metric: str = RANKING,
    k: int | None = None,
    backbone: Backbone | str | None = None,
    **options: Any,
) -> list[tuple[str, float]]:
    """Sources by their score for one target, best first.

    Args:
      target: the target's own tuned prompt, its folder, or the name of a
        prompt (or task) of the bank; for a metric that reads labels a task id.
      sources: the bank; the target itself is left out.
      metric: as in `score`; by default the sum of the ranks by three.
      k: how many; None for all.
      backbone: as in `score`.
      **options: the fields of `scorer.Options`.
    """
    bank = as_bank(sources)
    labels = not any(m.needs_target_prompt for m in _measures([metric]))
    if labels and target in specs.names():
        column = Entry(str(target), str(target))
    else:
        name, prompt = _target(target, bank)
        (column,) = _entries({name: prompt}, "targets")
    # Left out before combinations rank the sources, not after.
    rows = [
        entry
        for entry in _entries(bank, "sources")
        if entry.name != column.name
        and (column.load is not None or entry.task != column.task)
    ]
    if not rows:
        return []
    result = _score(rows, [column], (metric,), backbone, Options(**options))
    return result.top(column.name, k=k, metric=metric)


def _target(
    target: PathLike | StoredPrompt, bank: PromptBank
) -> tuple[str, StoredPrompt]:
    """The target's prompt and its name in the bank, or its task's name."""
    if not isinstance(target, StoredPrompt) and os.path.isdir(target):
        target = load_prompt(target)
    if isinstance(target, StoredPrompt):
        for name, stored in bank.items():
            if stored is target or (
                stored.path is not None
                and target.path is not None
                and stored.path.resolve() == target.path.resolve()
            ):
                return name, stored
        return target.info.task, target
    stored = bank[str(target)]
    return next(n for n, member in bank.items() if member is stored), stored
