"""A split of examples -> logits -> the task's metrics."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.data import answers, packing
from panda_jax.data.examples import AnyExamples, Examples, TextExamples
from panda_jax.data.loading import load_examples, load_text_examples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.errors import UserError
from panda_jax.io.files import PathLike
from panda_jax.models import Config, cpu
from panda_jax.models.bert import BertConfig
from panda_jax.parallel import sharding
from panda_jax.prompts import Prompt
from panda_jax.step import fleet, parts, steps
from panda_jax.step.fleet import Lanes
from panda_jax.step.steps import Trainable
from panda_jax.store.backbones import Backbone, load_backbone
from panda_jax.store.prompt_folders import (
    StoredPrompt,
    backbone_place,
    check_backbone,
    load_prompt,
)
from panda_jax.tasks import own, specs, views
from panda_jax.tasks.spec import TaskSpec
from panda_jax.types import Params

BATCH = 64
# For prompts that do not say what they were trained on.
MAX_LENGTH = 128
_LENGTHS = 16


def sorted_batches(
    examples: AnyExamples, size: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of rows of like length: which rows, tokens and segments.

    Rows are sorted by length, and a batch is as wide as a power of two (or the
    split) allows: a few shapes, and little padding.

    Args:
      examples: R rows.
      size: of a batch; the last one repeats a row.

    Returns:
      [size] row numbers, R for a repeated one; [size, T] and [size, T].
    """
    lengths = packing.lengths_of(examples.tokens)
    total, longest = len(lengths), examples.tokens.shape[1]
    size = min(size, total)
    order = np.argsort(-lengths, kind="stable")
    batches = []
    for start in range(0, total, size):
        rows = order[start : start + size]
        here = int(lengths[rows[0]])
        width = min(longest, max(_LENGTHS, 1 << (here - 1).bit_length()))
        filled = np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])
        tokens = examples.tokens[filled, :width]
        segments = (
            examples.segments[filled, :width]
            if isinstance(examples, Examples)
            else np.zeros_like(tokens)
        )
        number = np.full(size, total)
        number[: len(rows)] = rows
        batches.append((number, tokens, segments))
    return batches


def _in_order(
    batches: Sequence[tuple[np.ndarray, np.ndarray]], rows: int
) -> np.ndarray:
    """[..., R, ...] of batches' outputs, in the rows' order.

    Args:
      batches: row numbers [size], and outputs [N, size, ...] whose third axis,
        if there is one, may be longer in some than in others.
      rows: R.
    """
    widest = max((found.shape for _, found in batches), key=lambda s: s[2:])
    first = batches[0][1]
    whole = np.zeros((widest[0], rows + 1, *widest[2:]), first.dtype)
    for number, found in batches:
        if found.ndim > 2:
            whole[:, number, : found.shape[2]] = found
        else:
            whole[:, number] = found
    return whole[:, :rows]


def load_view(
    task: str,
    split: str,
    *,
    backbone: Backbone,
    max_length: int,
    target_length: int | None = None,
    **options: Any,
) -> AnyExamples:
    """A split in the view of the backbone's family.

    Its rows are as long as its longest, and then up to a multiple of 16, so
    that tasks of like length share a compilation.

    Args:
      task: task id.
      split: `train` or `validation`.
      backbone: whose tokenizer and family count.
      max_length: of the text, in pieces.
      target_length: of the text that answers; encoders have none.
      **options: of `load_examples`.
    """
    tokenizer = backbone.tokenizer
    if isinstance(tokenizer, TextTokenizer):
        texts = load_text_examples(
            task,
            split,
            tokenizer=tokenizer,
            input_length=max_length,
            target_length=target_length,
            **options,
        )
        return texts.widened(bucket(texts.inputs.shape[1], max_length))
    rows = load_examples(
        task, split, tokenizer=tokenizer, max_length=max_length, **options
    )
    return rows.widened(bucket(rows.tokens.shape[1], max_length))


def fitting_length(
    asked: int | None, stored: StoredPrompt, backbone: Backbone
) -> int:
    """Most pieces of a text beside a prompt.

    Args:
      asked: for once; None for the prompt's own, or what fits of it: release
        0.1 kept more than rows ever needed.
      stored: the prompt.
      backbone: whose positions are counted, if it has such a table.

    Raises:
      UserError: more is asked than fits.
    """
    length = asked or stored.info.max_length or MAX_LENGTH
    prompt = stored.prompt.length
    if asked is None and isinstance(backbone.config, BertConfig):
        return min(length, backbone.config.positions - prompt)
    check_positions(length, prompt, backbone)
    return length


def check_positions(length: int, prompt: int, backbone: Backbone) -> None:
    """Refuses texts that may grow longer than the backbone's positions.

    Args:
      length: most pieces of a text, whatever today's rows have.
      prompt: P.
      backbone: T5's positions are relative, and without a bound.

    Raises:
      UserError: says what fits.
    """
    config = backbone.config
    if isinstance(config, BertConfig) and length + prompt > config.positions:
        room = config.positions - prompt
        fix = f"--max_length={room} fits" if room > 2 else "shorten the prompt"
        raise UserError(
            f"max_length {length} and a prompt of {prompt} do not fit the "
            f"backbone's {config.positions} positions: {fix}."
        )


def bucket(length: int, most: int) -> int:
    """A length up to a multiple of 16, but not above `most`."""
    return max(length, min(most, -(-length // _LENGTHS) * _LENGTHS))


def outputs(
    params: Params,
    config: Config,
    prompt: Prompt,
    examples: Examples,
    *,
    batch_size: int = BATCH,
    best: bool = False,
) -> np.ndarray:
    """What the model says of every row, without dropout.

    Returns:
      fp32 logits [R, C], or [R, T, C] of kinds tags and span; with `best` the
      highest one's id in place of C logits.
    """
    assert isinstance(config, BertConfig)
    per_token = steps.per_token(examples.kind)
    if _packs(Lanes()):
        reads = parts.reader(examples, config, prompt, per_token=per_token)
        return reads.logits(params, prompt, best=best)
    prompt = jax.tree.map(jnp.asarray, prompt)
    found = []
    for number, tokens, segments in sorted_batches(examples, batch_size):
        here = steps.predict_step(
            params,
            tokens,
            segments,
            prompt,
            config=config,
            per_token=per_token,
            best=best,
        )
        found.append((number, np.asarray(here)[None]))
    return _in_order(found, len(examples.tokens))[0]


def _packs(lanes: Lanes) -> bool:
    """Whether encoders read packed rows: on one CPU device."""
    return (
        jax.default_backend() == "cpu"
        and jax.process_count() == 1
        and lanes.groups == 1
        and cpu.enabled()
    )


def scores(
    backbone: Backbone,
    prompt: Prompt,
    examples: AnyExamples,
    *,
    spec: TaskSpec,
    params: Params | None = None,
    batch_size: int = BATCH,
) -> dict[str, float]:
    """Each metric of the task on a split; higher = better.

    Args:
      backbone: whose sizes and tokenizer count.
      prompt: vectors and head.
      examples: of an encoder's view, or from text to text.
      spec: the task.
      params: in place of the backbone's own.
      batch_size: rows at a time.

    Raises:
      UserError: the model's outputs hold NaN or Inf.
    """
    lane = jax.tree.map(lambda x: jnp.asarray(x)[None], prompt)
    (found,) = fleet_scores(
        backbone,
        Trainable(lane),
        backbone.params if params is None else params,
        examples,
        lanes=Lanes(),
        count=1,
        spec=spec,
        batch_size=batch_size,
    )
    if isinstance(found, UserError):
        raise found
    return found


def fleet_scores(
    backbone: Backbone,
    trained: Trainable,
    frozen: Params | None,
    examples: AnyExamples,
    *,
    lanes: Lanes,
    count: int,
    spec: TaskSpec,
    batch_size: int = BATCH,
) -> list[dict[str, float] | UserError]:
    """`scores` of every lane at once.

    Args:
      backbone: whose sizes and tokenizer count.
      trained: of N lanes, padded.
      frozen: the backbone's weights where the lanes train none.
      examples: the split.
      lanes: how they are computed.
      count: how many of them are real.
      spec: the task.
      batch_size: rows at a time.

    Returns:
      A lane's metrics, or what is wrong with its outputs.
    """
    found = fleet_outputs(
        backbone,
        trained,
        frozen,
        examples,
        lanes=lanes,
        spec=spec,
        batch_size=batch_size,
    )
    results: list[dict[str, float] | UserError] = []
    for rows in found[:count]:
        try:
            results.append(_judge(backbone, spec, examples, rows))
        except UserError as error:
            results.append(error)
    return results


def fleet_outputs(
    backbone: Backbone,
    trained: Trainable,
    frozen: Params | None,
    examples: AnyExamples,
    *,
    lanes: Lanes,
    spec: TaskSpec,
    batch_size: int = BATCH,
) -> np.ndarray:
    """What every lane says of every row; arguments as in `fleet_scores`.

    Returns:
      [N, R, ...]: an encoder's as `answers.predictions` takes them; of text to
      text the label words' log-probabilities [N, R, C] where the task has such
      words, else the ids that were written [N, R, U].
    """
    read, options = _reader(backbone, spec, examples)
    config = backbone.config
    if isinstance(examples, Examples) and _packs(lanes):
        assert isinstance(config, BertConfig)
        return np.stack(
            [
                _packed_outputs(trained, frozen, examples, config, n, options)
                for n in range(len(trained.prompt.vectors))
            ]
        )
    text = isinstance(examples, TextExamples)
    numbers, found = [], []
    for number, tokens, segments in sorted_batches(examples, batch_size):
        inputs = (tokens,) if text else (tokens, segments)
        numbers.append(number)
        found.append(
            read(
                trained,
                frozen,
                *inputs,
                config=config,
                lanes=lanes,
                **options,
            )
        )
    host = sharding.on_host(found)
    return _in_order(
        list(zip(numbers, host, strict=True)), len(examples.tokens)
    )


def _packed_outputs(
    trained: Trainable,
    frozen: Params | None,
    examples: Examples,
    config: BertConfig,
    lane: int,
    options: dict[str, Any],
) -> np.ndarray:
    """One lane's of `fleet_outputs`."""
    own: Trainable = jax.tree.map(lambda x: x[lane], trained)
    params = frozen if own.backbone is None else own.backbone
    assert params is not None
    reads = parts.reader(
        examples, config, own.prompt, per_token=options["per_token"]
    )
    return reads.logits(params, own.prompt, best=options["best"])


def _reader(
    backbone: Backbone, spec: TaskSpec, examples: AnyExamples
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What reads a batch of every lane, and its options.

    Text-to-text tasks with label words are answered by rank classification:
    the class is the label word that the model finds most probable. Others are
    written out greedily, in as many pieces as the longest target has.
    """
    if not isinstance(examples, TextExamples):
        # A hundred tags a token: only the best one leaves the device.
        return fleet.predict, {
            "per_token": steps.per_token(spec.kind),
            "best": spec.kind == "tags",
        }
    tokenizer = backbone.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    if not is_ranked(spec):
        return fleet.write, {"steps": examples.targets.shape[1]}
    words = [[*x, tokenizer.eos_id] for x in tokenizer.encode(spec.labels)]
    longest = max(map(len, words))
    labels = np.array([x + [0] * (longest - len(x)) for x in words])
    return fleet.rank, {"labels": labels}


def is_ranked(spec: TaskSpec) -> bool:
    """Whether a text-to-text model answers by ranking label words."""
    return bool(spec.labels) and spec.kind in ("classification", "choice")


def _judge(
    backbone: Backbone,
    spec: TaskSpec,
    examples: AnyExamples,
    found: np.ndarray,
) -> dict[str, float]:
    """The metrics of one lane's outputs.

    Raises:
      UserError: they hold NaN or Inf.
    """
    if not isinstance(examples, TextExamples):
        return answers.scores(spec, examples, found)
    said = text_answers(backbone, spec, examples, found)
    tokenizer = backbone.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    return answers.text_scores(spec, examples, said, tokenizer.written)


def text_answers(
    backbone: Backbone,
    spec: TaskSpec,
    examples: TextExamples,
    found: np.ndarray,
) -> list[Any]:
    """One answer a row from `fleet_outputs` of a lane; see `views.target`.

    Raises:
      UserError: they hold NaN or Inf.
    """
    if is_ranked(spec):
        bad = int((~np.isfinite(found)).any(-1).sum())
        if bad:
            raise UserError(
                f"Task {spec.name!r}: NaN or infinite logits in {bad} of "
                f"{len(found)} rows: the run diverged. Lower the learning rate."
            )
        return found.argmax(-1).tolist()
    tokenizer = backbone.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    return [
        views.answer_from_text(
            spec, tokenizer.decode(row), reference, tokenizer.written
        )
        for row, reference in zip(
            found, examples.parsed_references, strict=True
        )
    ]


def evaluate(
    prompt: PathLike | StoredPrompt,
    *,
    task: str | None = None,
    split: str = "validation",
    backbone: Backbone | str | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    max_length: int | None = None,
    eval_examples: int | None = None,
    rows: Any = None,
    text: Sequence[str] | str | None = None,
    label: str | None = None,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Scores a stored prompt.

    Args:
      prompt: a prompt, or the folder of one (or of its run).
      task: by default the prompt's own.
      split: `train`, `validation` or `test`.
      backbone: loaded, or an id; by default the one the prompt names.
      data_dir: folder of the tasks' files; default `PANDA_DATA_DIR`.
      tfds_data_dir: of TFDS.
      max_length: of the text, in word pieces; None for the prompt's own.
      eval_examples: rows of a subsample in the labels' proportions; None
        for all.
      rows: of the split, your own: a file's path or rows in memory.
      text: as in `train`, as are `label`, `kind` and `labels`; a prompt of
        your own rows brings them.
      label: likewise.
      kind: likewise.
      labels: likewise.

    Returns:
      `{"task", "split", "examples", "scores": {metric: value}}`.

    Raises:
      UserError: a wrong name or folder, a prompt of another backbone, or one
        whose head does not fit the task.
    """
    if not isinstance(prompt, StoredPrompt):
        prompt = load_prompt(prompt)
    if rows is not None:
        own.add(
            {split: rows},
            text=text,
            label=label,
            kind=kind,
            labels=labels,
            name=task or prompt.info.task,
        )
    stored, backbone, spec, found = bound(prompt, task, backbone)
    examples = load_view(
        spec.name,
        split,
        backbone=backbone,
        max_length=fitting_length(max_length, stored, backbone),
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        limit=eval_examples,
    )
    return {
        "task": spec.name,
        "split": split,
        "examples": examples.questions,
        "scores": scores(backbone, found, examples, spec=spec),
    }


def bound(
    prompt: PathLike | StoredPrompt,
    task: str | None,
    backbone: Backbone | str | None,
) -> tuple[StoredPrompt, Backbone, TaskSpec, Prompt]:
    """A stored prompt with its backbone and its task; errors of `evaluate`.

    Returns:
      What is stored, the backbone, the task, and the prompt with its head's
      outputs in the order of the task's.
    """
    stored = prompt if isinstance(prompt, StoredPrompt) else load_prompt(prompt)
    spec = specs.get(task or stored.info.task)
    if backbone is None:
        backbone = backbone_place(stored.info)
        if stored.info.method == "finetune" and stored.path is not None:
            # A model-tuned run keeps its backbone beside its head.
            backbone = str(stored.path.parent / "model")
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    check_backbone(
        stored.info,
        backbone.fingerprint,
        backbone.id,
        backbone.tokenizer.identity,
    )
    return stored, backbone, spec, prompt_for(stored, spec, backbone)


def prompt_for(
    stored: StoredPrompt, spec: TaskSpec, backbone: Backbone
) -> Prompt:
    """The prompt, its head's outputs in the order of the task's.

    A text-to-text backbone's has no head, and writes the task's own words.

    Raises:
      UserError: the head answers another kind of task, or says other labels.
    """
    if backbone.text_to_text:
        return stored.prompt
    found = stored.prompt.head["bias"].shape[0] if stored.prompt.head else 0
    kind = spec.kind
    if stored.info.task in specs.names():
        kind = specs.get(stored.info.task).kind
    if (found, kind) != (spec.outputs, spec.kind):
        raise UserError(
            f"The prompt of task {stored.info.task!r} has a head of {found} "
            f"outputs for {kind}; task {spec.name!r} needs {spec.outputs} for "
            f"{spec.kind}."
        )
    prompt, labels = stored.prompt, stored.info.labels
    if not labels or labels == list(spec.output_names):
        return prompt
    if set(labels) != set(spec.output_names):
        raise UserError(
            f"The head of task {stored.info.task!r} says "
            f"{', '.join(labels[:9])}; task {spec.name!r} asks for "
            f"{', '.join(spec.output_names[:9])}. A head answers its own "
            "labels only."
        )
    order = np.array([labels.index(name) for name in spec.output_names])
    head = {name: part[..., order] for name, part in prompt.head.items()}
    return dataclasses.replace(prompt, head=head)
