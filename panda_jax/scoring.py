"""Scores of every source x target pair, from stored prompts."""

import os
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from panda_jax import similarity, steps
from panda_jax.backbone import Backbone, load_backbone
from panda_jax.errors import UserError, unknown_name
from panda_jax.evaluation import load_view, padded_batches
from panda_jax.files import PathLike
from panda_jax.scores import Scores
from panda_jax.store import (
    PromptBank,
    StoredPrompt,
    bound_backbone,
    check_backbone,
    content_hash,
    load_prompt,
)
from panda_jax.types import Array, ArrayLike

METRICS = ("panda", "e_avg", "on")
# Those that run the backbone.
RUN = ("panda", "on")
DEFAULT_METRIC = "panda"
EXAMPLES = 100
# For prompts that do not say what they were trained on.
MAX_LENGTH = 128

Feature = Callable[[StoredPrompt], ArrayLike]
Metric = Callable[[ArrayLike, ArrayLike], Array]
BankLike = PromptBank | PathLike | Mapping[str, StoredPrompt]


def as_bank(bank: BankLike) -> PromptBank:
    """A bank from a folder, a mapping of names to prompts, or itself."""
    if isinstance(bank, PromptBank):
        return bank
    if isinstance(bank, str | os.PathLike):
        return PromptBank(bank)
    return PromptBank.of(dict(bank))


def task_vector(
    backbone: Backbone,
    stored: StoredPrompt,
    *,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    examples: int = EXAMPLES,
    max_length: int | None = None,
    readout: str = "mean",
    contrast: bool = False,
) -> np.ndarray:
    """h_T [D]: the mean output under a task's own prompt.

    Args:
      backbone: the frozen model that the prompt was tuned on.
      stored: the task's own tuned prompt; its task names the data.
      data_dir: as in `load_examples`.
      tfds_data_dir: likewise.
      examples: how many rows of the training split (never the evaluation
        split), chosen label-balanced and independent of any seed.
      max_length: of the text, in word pieces; None for the prompt's own.
      readout: `pooled`, `first` or `mean`.
      contrast: subtract the same mean without the prompt.
    """
    similarity.check_readout(readout)
    rows = load_view(
        stored.info.task,
        "train",
        backbone=backbone,
        max_length=max_length or stored.info.max_length or MAX_LENGTH,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        limit=examples,
    )
    total = len(rows.tokens)

    def mean(vectors: np.ndarray) -> np.ndarray:
        parts = [
            steps.probe_step(
                backbone.params,
                tokens,
                segments,
                vectors,
                0,
                config=backbone.config,
            )[readout]
            for tokens, segments in padded_batches(rows, total)
        ]
        return np.concatenate(jax.device_get(parts))[:total].mean(0)

    vector = mean(np.asarray(stored.prompt.vectors))
    return vector - mean(backbone.empty_vectors) if contrast else vector


def neurons(backbone: Backbone, stored: StoredPrompt) -> np.ndarray:
    """[L, F] feed-forward activations under a prompt and no text at all.

    The input is `[CLS] [SEP]`, read at `[CLS]`, or T5's end of sequence: Su et
    al. (arXiv 2111.06719) feed the prompt with special tokens only, so no data
    is needed.
    """
    tokens = np.array([backbone.tokenizer.empty_ids], np.int32)
    prompt = stored.prompt
    probe = 0 if prompt.kind == "deep" else prompt.length
    aux = steps.probe_step(
        backbone.params,
        tokens,
        0 * tokens,
        np.asarray(prompt.vectors),
        probe,
        config=backbone.config,
    )
    return np.asarray(aux["neurons"])[:, 0]


def check_prompt(backbone: Backbone, name: str, stored: StoredPrompt) -> None:
    """Refuses a prompt of another backbone, and a head without a prompt.

    Raises:
      UserError: names the prompt, and both backbones.
    """
    try:
        check_backbone(stored.info, backbone.fingerprint, backbone.id)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if stored.prompt.length == 0:
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
            "the decoder sees; metrics panda and on read the encoder. Ask for "
            "--metrics=e_avg (and for training with PANDA give "
            "--similarity=NUMBER)."
        )


def score(
    *,
    sources: BankLike,
    targets: BankLike,
    metrics: Sequence[str] = METRICS,
    backbone: Backbone | str | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    examples: int = EXAMPLES,
    max_length: int | None = None,
    readout: str = "mean",
    contrast: bool = False,
) -> Scores:
    """Scores every source for every target.

    Args:
      sources: a bank, its folder, or `{name: prompt}`.
      targets: likewise; may be the same bank.
      metrics: of `panda`, `e_avg`, `on`.
      backbone: by default the one that the first source names. Metric `e_avg`
        compares the vectors alone and loads none.
      data_dir: where the tasks' files are (metric `panda` reads training
        examples of each task).
      tfds_data_dir: of TFDS, where there is no `data_dir`.
      examples: for `panda`, a task.
      max_length: for `panda`, of the text; None for each prompt's own.
      readout: for `panda`: `pooled`, `first` or `mean`.
      contrast: for `panda`: subtract the output without the prompt.

    Returns:
      `Scores`; higher = more transferable for every metric.

    Raises:
      UserError: unknown metric, empty bank, prompts of several backbones,
        kinds or lengths (where the metric needs equal ones).
    """
    for name in metrics:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    prompts = {
        role: _prompts(bank, role)
        for role, bank in (("sources", sources), ("targets", targets))
    }
    model = _model(backbone, prompts, metrics)

    def vector(stored: StoredPrompt) -> np.ndarray:
        assert model is not None
        return task_vector(
            model,
            stored,
            data_dir=data_dir,
            tfds_data_dir=tfds_data_dir,
            examples=examples,
            max_length=max_length,
            readout=readout,
            contrast=contrast,
        )

    def read_neurons(stored: StoredPrompt) -> np.ndarray:
        assert model is not None
        return neurons(model, stored)

    metric_parts: dict[str, tuple[Feature, Metric]] = {
        "panda": (vector, similarity.activation_similarity),
        "e_avg": (lambda p: p.prompt.vectors, similarity.e_avg),
        "on": (read_neurons, similarity.neuron_overlap),
    }
    return Scores(
        sources=tuple(prompts["sources"]),
        targets=tuple(prompts["targets"]),
        values={
            metric: _matrix(metric, *metric_parts[metric], prompts)
            for metric in metrics
        },
    )


def _model(
    backbone: Backbone | str | None,
    prompts: dict[str, dict[str, StoredPrompt]],
    metrics: Sequence[str],
) -> Backbone | None:
    """The backbone that all prompts are of; None where no metric runs it.

    Raises:
      UserError: a prompt of another backbone, or one that a metric cannot be
        read off.
    """
    named = {n: p for group in prompts.values() for n, p in group.items()}
    first_name, first = next(iter(named.items()))
    if backbone is None and not set(metrics) & set(RUN):
        for name, stored in named.items():
            if stored.info.fingerprint != first.info.fingerprint:
                raise UserError(
                    f"{first_name} is of backbone {_of(first)}, {name} of "
                    f"{_of(stored)}: prompts of one backbone alone can be "
                    "compared."
                )
        return None
    if backbone is None:
        backbone = bound_backbone(first.info)
    model = load_backbone(backbone) if isinstance(backbone, str) else backbone
    for name, stored in named.items():
        check_prompt(model, name, stored)
        if set(metrics) & set(RUN):
            check_readable(model, name, stored.prompt.kind)
    return model


def _of(stored: StoredPrompt) -> str:
    info = stored.info
    return f"{info.backbone!r} (weights {info.fingerprint})"


def _prompts(bank: BankLike, role: str) -> dict[str, StoredPrompt]:
    bank = as_bank(bank)
    if len(bank) == 0:
        raise UserError(f"The bank of {role} holds no prompt folder.")
    return {name: bank[name] for name in bank.names}


def _matrix(
    metric: str,
    feature: Feature,
    function: Metric,
    prompts: dict[str, dict[str, StoredPrompt]],
) -> np.ndarray:
    """[M, N]; a prompt that is both source and target is read once."""
    # Keyed by content: two banks over one folder load a prompt twice.
    known: dict[str, np.ndarray] = {}
    for group in prompts.values():
        for stored in group.values():
            key = f"{stored.info.task} {content_hash(stored.prompt)}"
            if key not in known:
                known[key] = np.asarray(feature(stored))
    stacks = [
        _stack(
            {
                name: known[f"{p.info.task} {content_hash(p.prompt)}"]
                for name, p in prompts[role].items()
            },
            metric,
        )
        for role in ("sources", "targets")
    ]
    if stacks[0].shape[1:] != stacks[1].shape[1:]:
        raise UserError(
            f"Metric {metric!r}: source prompts have shape "
            f"{stacks[0].shape[1:]}, target prompts {stacks[1].shape[1:]}; "
            "they must be alike."
        )
    return np.asarray(function(*stacks))


def _stack(arrays: dict[str, np.ndarray], metric: str) -> np.ndarray:
    """[M, ...] from M arrays of one shape, or an error that names the odd."""
    first, *_ = arrays
    shape = arrays[first].shape
    for name, array in arrays.items():
        if array.shape != shape:
            raise UserError(
                f"Metric {metric!r} needs prompts of one shape: {first!r} has "
                f"{shape}, {name!r} has {array.shape}."
            )
    return np.stack(list(arrays.values()))


def pair_similarity(
    backbone: Backbone,
    source: StoredPrompt,
    target: StoredPrompt,
    *,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    max_length: int | None = None,
) -> float:
    """The paper's metric for one pair: the KD weight's second factor."""
    scores = score(
        sources={"source": source},
        targets={"target": target},
        metrics=("panda",),
        backbone=backbone,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        max_length=max_length,
    )
    return float(scores.values["panda"][0, 0])


def rank(
    target: PathLike | StoredPrompt,
    *,
    sources: BankLike,
    metric: str = DEFAULT_METRIC,
    k: int | None = None,
    **options: object,
) -> list[tuple[str, float]]:
    """Sources by their score for one target, best first.

    Args:
      target: the target's own tuned prompt, its folder, or the name of a
        prompt (or task) of the bank.
      sources: the bank; the target itself is left out.
      metric: of `panda`, `e_avg`, `on`.
      k: how many; None for all.
      **options: of `score`.
    """
    bank = as_bank(sources)
    name, prompt = _target(target, bank)
    result = score(
        sources=bank,
        targets={name: prompt},
        metrics=(metric,),
        **options,  # pyright: ignore[reportArgumentType]
    )
    return result.top(name, k=k or len(bank), metric=metric)


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
