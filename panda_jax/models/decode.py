"""Reading answers from a T5: greedy decoding and ranking of labels.

Both run the encoder once and compute cross-attention's keys and values once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from panda_jax.errors import UserError
from panda_jax.models import t5
from panda_jax.models.t5 import T5, T5Config
from panda_jax.prompts import Prompt
from panda_jax.types import Array, ArrayLike, Params

EOS = 1


def greedy(
    params: Params,
    config: T5Config,
    inputs: ArrayLike,
    prompt: Prompt,
    *,
    steps: int,
) -> Array:
    """The most probable token after those before it, up to `steps` of them.

    Stops early when every row has ended. Compiled for each `steps` and shape.

    Args:
      params: the backbone's parameters.
      config: its sizes.
      inputs: [B, T] int32, 0 where padded.
      prompt: shallow or deep; a length of 0 is no prompt.
      steps: how many tokens at most, the end of sequence (1) included.

    Returns:
      [B, steps] int32, 0 after the first 1.

    Raises:
      UserError: `steps` < 1, or the prompt is for another backbone.
    """
    if steps < 1:
        raise UserError(f"Decoding for {steps} steps, expected 1 or more.")
    return _greedy(params, inputs, prompt, config=config, steps=steps)


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def _greedy(
    params: Params,
    inputs: ArrayLike,
    prompt: Prompt,
    *,
    config: T5Config,
    steps: int,
) -> Array:
    batch = inputs.shape[0]
    encoded, mask, _ = t5.encode(params, config, inputs, prompt)
    memory = _memory(params, config, encoded)
    _, deep = t5.split_prompt(prompt, config)
    first = deep.shape[3]
    prefix = jnp.broadcast_to(
        deep.astype(encoded.dtype), (*deep.shape[:2], batch, *deep.shape[3:])
    )
    room = ((0, 0), (0, 0), (0, 0), (0, steps), (0, 0), (0, 0))
    model = T5(config, cached=True)
    variables = {"params": params}
    # A row a step: the query's own position, and no later key.
    bias: Any = model.apply(variables, steps, first, method="bias")

    def unfinished(state: tuple[Array, ...]) -> Array:
        step, _, _, _, done = state
        return (step < steps) & ~done.all()

    def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, token, tokens, cache, done = state
        output: Any = model.apply(
            variables,
            token[:, None],
            cache,
            memory,
            jax.lax.dynamic_slice_in_dim(bias, step, 1, axis=2),
            mask,
            first + step,
            method="decode",
        )
        logits, new = output
        # One write of a position, not a new cache out of the scan.
        cache = jax.lax.dynamic_update_slice_in_dim(
            cache, new, first + step, axis=3
        )
        token = jnp.where(done, 0, logits[:, 0].argmax(-1)).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tokens, token[:, None], step, axis=1
        )
        return step + 1, token, tokens, cache, done | (token == EOS)

    state = (
        jnp.asarray(0),
        jnp.zeros((batch,), jnp.int32),
        jnp.zeros((batch, steps), jnp.int32),
        jnp.pad(prefix, room),
        jnp.zeros((batch,), bool),
    )
    return jax.lax.while_loop(unfinished, advance, state)[2]


def _memory(params: Params, config: T5Config, encoded: Array) -> Array:
    """Every layer's cross-attention keys and values, [L, 2, B, S, H, K]."""
    kernels = params["decoder"]["layers"]["encoder_decoder_attention"]
    kernel = jnp.stack(
        [kernels[name]["kernel"] for name in ("key", "value")], axis=1
    )
    memory = jnp.einsum(
        "bsd,lcdi->lcbsi", encoded, kernel.astype(encoded.dtype)
    )
    return memory.reshape(*memory.shape[:4], config.heads, config.head_dim)


@functools.partial(jax.jit, static_argnames=("config",))
def rank(
    params: Params,
    inputs: ArrayLike,
    prompt: Prompt,
    labels: ArrayLike,
    *,
    config: T5Config,
) -> Array:
    """The log-probability of each label's text as the answer to each input.

    Rank classification: the class is the label that scores highest, whatever
    else the model would rather write. One pass of the encoder, whose keys and
    values all labels share.

    Args:
      params: the backbone's parameters.
      inputs: [B, T] int32, 0 where padded.
      prompt: shallow or deep; a length of 0 is no prompt.
      labels: [C, U] int32 ids of the label words, each with its end of
        sequence where that should count; 0-padded, none empty.
      config: the backbone's sizes.

    Returns:
      [B, C] fp32, nats, at most 0; higher = more probable.

    Raises:
      UserError: the prompt is for another backbone.
    """
    batch, (classes, length) = inputs.shape[0], labels.shape
    encoded, mask, _ = t5.encode(params, config, inputs, prompt)
    targets = jnp.broadcast_to(labels, (batch, classes, length))
    logits = t5.decode_logits(
        params, config, encoded, mask, targets.reshape(-1, length), prompt
    ).reshape(batch, classes, length, config.vocab_size)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_probability = chosen - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(targets != 0, log_probability, 0.0).sum(-1)
