"""The prompt that a run starts from: fresh, or a stored prompt's vectors."""

import dataclasses

import jax
import jax.numpy as jnp

from panda_jax import models
from panda_jax.config.runs import Run
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError
from panda_jax.prompts import (
    Prompt,
    fresh_head,
    label_vectors,
    normal_vectors,
    prompt_shape,
    resized_vectors,
    text_vectors,
    vocabulary_vectors,
)
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import StoredPrompt
from panda_jax.tasks import specs
from panda_jax.types import Array


def initial_prompt(
    run: Run,
    backbone: Backbone,
    source: StoredPrompt | None,
    start: Prompt | None = None,
) -> Prompt:
    """The prompt of step 0; its head is fresh, unless `start` has one.

    A source (vanilla transfer) brings its vectors only, as in the released
    code; with `resize_source` they are cropped, or padded with fresh ones.
    Method `finetune` has a head and a prompt of length 0.

    Raises:
      UserError: an initialiser that does not fit the prompt or the task.
    """
    width = backbone.config.width
    vector_key, head_key = jax.random.split(
        jax.random.fold_in(jax.random.key(run.seed), 0)
    )
    head = {}
    if not backbone.text_to_text:
        head = fresh_head(head_key, width, specs.get(run.task).outputs)
    if start is not None:
        # Copies: the train step donates its state.
        head = {n: jnp.array(x, copy=True) for n, x in start.head.items()}
    if run.method == "finetune":
        return Prompt(jnp.asarray(backbone.empty_vectors), head)
    if start is not None:
        return dataclasses.replace(
            start, vectors=jnp.array(start.vectors, copy=True), head=head
        )
    if source is None:
        return Prompt(fresh_vectors(run, backbone, vector_key), head)
    vectors = jnp.array(source.prompt.vectors, copy=True)
    if source.prompt.length != run.prompt_length:
        fill = fresh_vectors(run, backbone, vector_key)
        assert run.prompt_length is not None
        vectors = resized_vectors(vectors, run.prompt_length, fill=fill)
    return Prompt(vectors, head)


def fresh_vectors(run: Run, backbone: Backbone, key: Array) -> Array:
    """Vectors that come from no other prompt, by `run.prompt_init`.

    Args:
      run: with its family's defaults filled in.
      backbone: whose embeddings may be drawn.
      key: PRNG key.

    Raises:
      UserError: word embeddings for a deep prompt, or labels where the task
        has none or more than the prompt is long.
    """
    c, length = backbone.config, run.prompt_length
    assert run.prompt_kind is not None
    assert length is not None
    if run.prompt_init == "normal":
        shape = prompt_shape(
            run.prompt_kind,
            length,
            layers=models.prompt_layers(c),
            width=c.width,
            heads=c.heads,
            head_dim=c.head_dim,
        )
        return normal_vectors(key, shape, stddev=run.init_stddev)
    if run.prompt_kind == "deep":
        raise UserError(
            f"--prompt_init={run.prompt_init} makes word embeddings, which a "
            "deep prompt is not of: give --prompt_kind=shallow or "
            "--prompt_init=normal."
        )
    tokenizer = backbone.tokenizer
    embedder = "token_embedder" if backbone.text_to_text else "token"
    table = backbone.params[embedder]["embedding"]
    # T5's pieces are in the order of frequency, and the first are drawn from;
    # BERT's begin with a thousand that no text has.
    words = tokenizer.word_ids if isinstance(tokenizer, Tokenizer) else None
    if run.prompt_init == "vocabulary":
        return vocabulary_vectors(key, table, length, ids=words)
    if run.prompt_init == "text":
        (text,) = tokenizer.encode([run.init_text or ""])
        return text_vectors(key, table, length, text, ids=words)
    labels = specs.get(run.task).labels
    if not labels:
        raise UserError(
            f"--prompt_init=labels: task {run.task!r} has no class labels. "
            "Give --prompt_init=vocabulary, text or normal."
        )
    return label_vectors(
        key, table, length, tokenizer.encode(labels), ids=words
    )
