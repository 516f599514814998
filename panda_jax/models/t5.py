"""T5 (1.0, 1.1, LM-adapted, mT5) in Flax Linen, with a prompt as an argument.

Layers are scanned; parameters have T5X's names and logical axes, their layers
stacked. Softmax, norms and logits are fp32 whatever the backbone's dtype.
"""

from typing import Any

import jax
import jax.numpy as jnp

from panda_jax.errors import UserError
from panda_jax.models.t5_layers import T5Config
from panda_jax.models.t5_stacks import T5
from panda_jax.prompts import Prompt
from panda_jax.types import Array, ArrayLike, Params, PyTree, ScalarLike

__all__ = [
    "T5",
    "T5Config",
    "apply",
    "decode_logits",
    "encode",
    "init",
    "split_prompt",
]


def split_prompt(prompt: Prompt, config: T5Config) -> tuple[Array, Array]:
    """The parts of a prompt: the encoder's [P, D], and the decoder's.

    The latter is [L, 2, 1, P, H, K], L decoder layers. One of the two is of
    length 0; both are where the prompt is.

    Raises:
      UserError: the prompt is for a backbone of other sizes.
    """
    c = config
    vectors = jnp.asarray(prompt.vectors)
    shallow = jnp.zeros((0, c.width))
    deep = jnp.zeros((c.decoder_layers, 2, 0, c.heads, c.head_dim))
    if prompt.length:
        expected = {"shallow": shallow.shape, "deep": deep.shape}[prompt.kind]
        axis = expected.index(0)
        expected = (*expected[:axis], prompt.length, *expected[axis + 1 :])
        if vectors.shape != expected:
            raise UserError(
                f"The prompt's vectors have shape {list(vectors.shape)}, "
                f"expected {list(expected)}: it was made for another "
                "backbone. Use it with that one, or train a new prompt."
            )
        if prompt.kind == "shallow":
            shallow = vectors
        else:
            deep = vectors
    return shallow, deep[:, :, None]


def encode(
    params: Params,
    config: T5Config,
    inputs: ArrayLike,
    prompt: Prompt,
    *,
    key: Array | None = None,
    probe: ScalarLike = 0,
) -> tuple[Array, Array, dict[str, Array]]:
    """Runs the encoder.

    Args:
      params: the backbone's parameters, as `init` shapes them.
      config: its sizes, static.
      inputs: [B, T] int32, 0 where padded.
      prompt: a shallow one stands before the inputs' embeddings and takes
        part in relative positions; a deep one is the decoder's alone, so that
        P is 0 here. A length of 0 is no prompt.
      key: PRNG key that turns dropout on, or None.
      probe: position in [0, P + T) whose neurons are read.

    Returns:
      hidden [B, P + T, D]; mask [B, P + T] bool, true where real; and the
      activations: hidden once more, neurons [L, B, F], the feed-forward
      activations at `probe` (the product, where gated), and layers [L, B, D],
      each layer's output averaged over the inputs, before the last norm.

    Raises:
      UserError: the prompt is for a backbone of other sizes.
    """
    shallow, _ = split_prompt(prompt, config)
    train = key is not None
    output: Any = T5(config, train).apply(
        {"params": params},
        jnp.asarray(inputs),
        shallow,
        jnp.asarray(probe),
        rngs={"dropout": key} if train else None,
        method="encode",
    )
    hidden, mask, (neurons, means) = output
    aux = {"hidden": hidden, "neurons": neurons, "layers": means}
    return hidden, mask, aux


def decode_logits(
    params: Params,
    config: T5Config,
    encoded: ArrayLike,
    mask: ArrayLike,
    targets: ArrayLike,
    prompt: Prompt,
    *,
    key: Array | None = None,
) -> Array:
    """Runs the decoder with teacher forcing.

    It reads the targets shifted right, behind a start token of 0. Padding of
    targets is not masked: no real token comes after it.

    A deep prompt's vectors are keys and values before the decoder's own, at
    positions 0 to P - 1, seen by every query; the tokens follow at P. So
    does PEFT's PREFIX_TUNING with T5, which leaves cross-attention alone and
    has no dropout on the vectors.

    Args:
      params: the backbone's parameters.
      config: its sizes, static.
      encoded: [B, S, D], as from `encode`.
      mask: [B, S].
      targets: [B, U] int32; or [B * C, U], C rows in turn for each input,
        whose keys and values are then computed once.
      prompt: vectors, as for `encode`.
      key: PRNG key that turns dropout on, or None.

    Returns:
      [B, U, V] fp32 logits ([B * C, U, V]); row u predicts `targets[:, u]`.

    Raises:
      UserError: the prompt is for a backbone of other sizes; the targets' rows
        are no multiple of the inputs'.
    """
    if targets.shape[0] % encoded.shape[0]:
        raise UserError(
            f"{targets.shape[0]} rows of targets for {encoded.shape[0]} "
            "inputs, expected as many for each. Pass both from one batch."
        )
    _, deep = split_prompt(prompt, config)
    train = key is not None
    logits: Any = T5(config, train).apply(
        {"params": params},
        jnp.asarray(targets),
        deep,
        jnp.asarray(encoded),
        jnp.asarray(mask),
        rngs={"dropout": key} if train else None,
        method="teach",
    )
    return logits


def apply(
    params: Params,
    config: T5Config,
    inputs: ArrayLike,
    targets: ArrayLike,
    prompt: Prompt,
    *,
    key: Array | None = None,
    probe: ScalarLike = 0,
) -> tuple[Array, dict[str, Array]]:
    """Runs encoder and decoder: `encode`, then `decode_logits`.

    Returns:
      logits [B, U, V] fp32 and the encoder's activations.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    encoded, mask, aux = encode(
        params, config, inputs, prompt, key=keys[0], probe=probe
    )
    logits = decode_logits(
        params, config, encoded, mask, targets, prompt, key=keys[1]
    )
    return logits, aux


def init(key: Array, config: T5Config) -> PyTree:
    """Random parameters, boxed with their logical axes (`nn.meta.unbox`)."""
    prompt = Prompt(jnp.zeros((0, config.width)), {})
    return T5(config).init(
        {"params": key},
        jnp.ones((1, 2), jnp.int32),
        *split_prompt(prompt, config),
        jnp.asarray(0),
    )["params"]
