"""A split of examples -> logits -> the task's metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax import answers, steps
from panda_jax.backbone import Backbone, load_backbone
from panda_jax.data import load_examples
from panda_jax.errors import UserError
from panda_jax.examples import Examples
from panda_jax.files import PathLike
from panda_jax.models.bert import BertConfig
from panda_jax.prompts import Prompt
from panda_jax.store import StoredPrompt, check_backbone, load_prompt
from panda_jax.tasks import specs
from panda_jax.tasks.spec import TaskSpec
from panda_jax.types import Params

BATCH = 64


def padded_batches(
    examples: Examples, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """[size, T] tokens and segments, in order; the last batch repeats row 0.

    One shape for every batch means one compilation.
    """
    total = len(examples.tokens)
    size = min(size, total)
    batches = []
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        rows[rows >= total] = 0
        batches.append((examples.tokens[rows], examples.segments[rows]))
    return batches


def outputs(
    params: Params,
    config: BertConfig,
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
    prompt = jax.tree.map(jnp.asarray, prompt)
    found = [
        steps.predict_step(
            params,
            tokens,
            segments,
            prompt,
            config=config,
            per_token=steps.per_token(examples.kind),
            best=best,
        )
        for tokens, segments in padded_batches(examples, batch_size)
    ]
    return np.concatenate(jax.device_get(found))[: len(examples.tokens)]


def scores(
    params: Params,
    config: BertConfig,
    prompt: Prompt,
    examples: Examples,
    *,
    spec: TaskSpec,
    batch_size: int = BATCH,
) -> dict[str, float]:
    """Each metric of the task on a split; higher = better.

    Raises:
      UserError: the model's outputs hold NaN or Inf.
    """
    found = outputs(
        params,
        config,
        prompt,
        examples,
        batch_size=batch_size,
        # A hundred tags a token: only the best one leaves the device.
        best=spec.kind == "tags",
    )
    return answers.scores(spec, examples, found)


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
) -> dict[str, Any]:
    """Scores a stored prompt.

    Args:
      prompt: a prompt, or the folder of one (or of its run).
      task: by default the prompt's own.
      split: `train` or `validation`.
      backbone: loaded, or an id; by default the one the prompt names.
      data_dir: folder of the tasks' files; default `PANDA_DATA_DIR`.
      tfds_data_dir: of TFDS.
      max_length: of the text, in word pieces; None for the prompt's own.
      eval_examples: rows of a label-balanced subsample; None for all.

    Returns:
      `{"task", "split", "examples", "scores": {metric: value}}`.

    Raises:
      UserError: a wrong name or folder, a prompt of another backbone, or one
        whose head does not fit the task.
    """
    stored = prompt if isinstance(prompt, StoredPrompt) else load_prompt(prompt)
    spec = specs.get(task or stored.info.task)
    if backbone is None:
        backbone = stored.info.backbone
        if stored.info.method == "model" and stored.path is not None:
            # A model-tuned run keeps its backbone beside its head.
            backbone = str(stored.path.parent / "model")
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    check_backbone(stored.info, backbone.fingerprint, backbone.id)
    prompt_of_task = _prompt_for(stored, spec)
    examples = load_examples(
        spec.name,
        split,
        tokenizer=backbone.tokenizer,
        max_length=max_length or stored.info.max_length or 128,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        limit=eval_examples,
    )
    found = scores(
        backbone.params,
        backbone.config,
        prompt_of_task,
        examples,
        spec=spec,
    )
    return {
        "task": spec.name,
        "split": split,
        "examples": examples.questions,
        "scores": found,
    }


def _prompt_for(stored: StoredPrompt, spec: TaskSpec) -> Prompt:
    """The prompt, its head's outputs in the order of the task's.

    Raises:
      UserError: the head answers another kind of task, or says other labels.
    """
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
    return Prompt(prompt.vectors, head)
