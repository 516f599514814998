"""BERT's encoder in Flax Linen, with a soft prompt as an argument.

Layers are scanned, so that compile time does not grow with depth; parameters
carry T5X-style logical axis names (embed, heads, mlp, vocab, layers).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from panda_jax.errors import UserError
from panda_jax.models import layers
from panda_jax.prompts import Prompt
from panda_jax.types import Array, ArrayLike, Params, PyTree, ScalarLike


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT encoder; hashable, so that jit can key on it.

    Attributes:
      types: of segments.
      pooler: whether there is a dense layer between the first position's
        output and what a head reads; some encoders come without one.
      dtype: of the computation.
      remat: whether the backward pass computes each layer's inside again.
      unroll: whether layers are compiled one by one, in place of a loop. What
        the backward pass needs is then not copied into arrays of all layers,
        and the first layer's inputs get no gradient that nobody reads.
    """

    vocab_size: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    positions: int = 512
    types: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    epsilon: float = 1e-12
    activation: str = "gelu"
    pooler: bool = True
    dtype: str = "float32"
    remat: bool = False
    unroll: bool = False

    @property
    def head_dim(self) -> int:
        """K, the width of one attention head."""
        return self.width // self.heads


class Layer(nn.Module):
    """One post-norm transformer layer; the body of the scan."""

    config: BertConfig
    train: bool

    def key(self, use: int) -> Array | None:
        """A dropout key of this layer, one for each use, or None."""
        if not self.train:
            return None
        return jax.random.fold_in(self.make_rng("dropout"), use)

    @nn.compact
    def __call__(
        self,
        x: Array,
        prefix: Array,
        bias: Array,
        text: Array,
        probe: Array,
        read: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Applies the layer.

        Args:
          x: [B, T, D] input.
          prefix: [2, P, H, K] this layer's key and value prompt; P may be 0.
          bias: broadcast to [B, H, Q, P + T], attention bias; Q is T, or what
            `read` has.
          text: [B, Q] as `layers.mean_weights` makes it, or [B, S, Q] for each
            of S texts in a row.
          probe: scalar, the position whose neurons are returned, or [B, S, Q]
            one-hot, likewise.
          read: [B, Q, T] the positions that are read of this layer, one-hot:
            the others are keys and values alone. None for all of them.

        Returns:
          [B, Q, D] output; [B, F] feed-forward activations at `probe`, and
          [B, D] the output averaged over the text; [B, S, ...] of S texts.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        batch = x.shape[0]
        # One-hot products in place of a gather, whose gradient is a scatter.
        own = x if read is None else read.astype(dtype) @ x

        def project(name: str, x: Array) -> Array:
            y = layers.Dense(c.width, ("embed", "joined_kv"), dtype, name=name)(
                x
            )
            return y.reshape(batch, -1, c.heads, c.head_dim)

        # Dropout falls on every example's own copy of the prefix, as in the
        # released code (`expand` to the batch, then dropout).
        prefix = jnp.broadcast_to(
            prefix[:, None].astype(dtype),
            (2, batch, *prefix.shape[1:]),
        )
        prefix = layers.dropout(self.key(0), c.dropout, prefix)
        context = layers.attend(
            project("query", own),
            jnp.concatenate([prefix[0], project("key", x)], axis=1),
            jnp.concatenate([prefix[1], project("value", x)], axis=1),
            bias,
            dropout_key=self.key(1),
            dropout_rate=c.attention_dropout,
        ).reshape(own.shape)
        y = layers.Dense(c.width, ("joined_kv", "embed"), dtype, name="out")(
            context
        )
        x = layers.LayerNorm(c.epsilon, dtype, name="attention_norm")(
            own + layers.dropout(self.key(2), c.dropout, y)
        )
        hidden = layers.ACTIVATIONS[c.activation](
            layers.Dense(c.ffn, ("embed", "mlp"), dtype, name="wi")(x)
        )
        y = layers.Dense(c.width, ("mlp", "embed"), dtype, name="wo")(hidden)
        x = layers.LayerNorm(c.epsilon, dtype, name="mlp_norm")(
            x + layers.dropout(self.key(3), c.dropout, y)
        )
        mean = layers.weighted_mean(x, text)
        return x, (layers.at_position(hidden, probe), mean)


class Encoder(nn.Module):
    """Embeddings, the scanned layers and the pooler."""

    config: BertConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        segments: Array,
        prompt: Prompt,
        probe: Array,
    ) -> dict[str, Array]:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        deep, length = prompt.kind == "deep", prompt.length
        vectors = jnp.asarray(prompt.vectors)
        batch = tokens.shape[0]
        # The text's position ids follow the prompt's, deep or shallow.
        positions = jnp.arange(tokens.shape[1]) + length
        mask = jnp.concatenate(
            [jnp.ones((batch, length), bool), tokens != 0], axis=1
        )
        bias = jnp.where(mask, 0.0, layers.MASKED)[:, None, None, :]

        x = layers.Embed(c.vocab_size, c.width, "vocab", dtype, name="token")(
            tokens
        )
        if not deep:
            shallow = jnp.broadcast_to(
                vectors.astype(dtype), (batch, *vectors.shape)
            )
            x = jnp.concatenate([shallow, x], axis=1)
            segments = jnp.pad(segments, ((0, 0), (length, 0)))
            positions = jnp.arange(x.shape[1])
        x = x + layers.Embed(
            c.positions, c.width, "positions", dtype, name="position"
        )(positions)
        x = x + layers.Embed(c.types, c.width, "types", dtype, name="segment")(
            segments
        )
        x = layers.LayerNorm(c.epsilon, dtype, name="embedding_norm")(x)
        if self.train:
            x = layers.dropout(self.make_rng("dropout"), c.dropout, x)

        if deep:
            prefixes = vectors
        else:
            prefixes = jnp.zeros((c.layers, 2, 0, c.heads, c.head_dim))
        # One prefix a layer; what else they are given is the same for all.
        stack = layers.scanned(
            Layer,
            length=c.layers,
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            remat=c.remat,
            unroll=c.unroll,
        )
        text = layers.mean_weights(tokens, x.shape[1])
        x, (neurons, means) = stack(c, self.train, name="layers")(
            x, prefixes, bias, text, probe
        )
        if c.pooler:
            pooler = layers.Dense(
                c.width, ("embed", "pooled"), dtype, name="pooler"
            )
            pooled = jnp.tanh(pooler(x[:, 0]))
        else:
            pooled = x[:, x.shape[1] - tokens.shape[1]]
        return {
            "hidden": x,
            "pooled": pooled,
            "neurons": neurons,
            "layers": means,
        }


def apply(
    params: Params,
    config: BertConfig,
    tokens: ArrayLike,
    segments: ArrayLike,
    prompt: Prompt,
    *,
    per_token: bool = False,
    key: Array | None = None,
    probe: ScalarLike = 0,
) -> tuple[Array, dict[str, Array]]:
    """Runs the encoder and the prompt's head.

    With a shallow prompt the pooler reads position 0, which is then the first
    prompt vector: PEFT's PROMPT_TUNING puts the prompt before `[CLS]` and
    leaves BERT's pooler as it is, and a prompt must mean the same here.  A
    backbone without a pooler is read at its first token, `[CLS]`, whatever
    stands before it.

    Args:
      params: the backbone's parameters, as `init` shapes them.
      config: its sizes, static.
      tokens: [B, T] int32, 0 where padded.
      segments: [B, T] int32 token types.
      prompt: vectors and head; a length of 0 is a plain encoder.
      per_token: whether the head reads every token (tagging, spans) instead of
        the pooler; static.
      key: PRNG key that turns dropout on (text, prompt and head), or None.
      probe: position in the encoder's sequence whose neurons are read.

    Returns:
      logits [B, C], or [B, T, C] per token, fp32 (C = 0 for a prompt without
      head), and the activations: hidden [B, T, D] ([B, P + T, D] when
      shallow), pooled [B, D], neurons [L, B, F] at position `probe`, and
      layers [L, B, D] fp32, each layer's output averaged over the text.
    """
    total = tokens.shape[1] + prompt.length
    if total > config.positions:
        raise UserError(
            f"{tokens.shape[1]} tokens and a prompt of {prompt.length} make "
            f"{total} positions; the backbone has {config.positions}. Lower "
            "--max_length or the prompt length."
        )
    train = key is not None
    aux: Any = Encoder(config, train).apply(
        {"params": params},
        jnp.asarray(tokens),
        jnp.asarray(segments),
        Prompt(prompt.vectors, {}, prompt.kind),
        jnp.asarray(probe),
        rngs={"dropout": jax.random.fold_in(key, 0)} if train else None,
    )
    read = aux["pooled"]
    if per_token:
        hidden = aux["hidden"]
        read = hidden[:, hidden.shape[1] - tokens.shape[1] :]
    head_key = jax.random.fold_in(key, 1) if key is not None else None
    return head_logits(read, prompt.head, config, key=head_key), aux


def head_logits(
    read: ArrayLike, head: Params, config: BertConfig, *, key: Array | None
) -> Array:
    """What a prompt's head makes of what it reads.

    Args:
      read: [..., D], of the pooler or of tokens.
      head: as `Prompt` has it; may be empty.
      config: the backbone's sizes; its dropout falls on what is read.
      key: PRNG key that turns dropout on, or None.

    Returns:
      [..., C] fp32, C = 0 without a head.
    """
    read = jnp.asarray(read, jnp.float32)
    if not head:
        return read[..., :0]
    read = layers.dropout(key, config.dropout, read)
    return read @ jnp.asarray(head["kernel"]) + jnp.asarray(head["bias"])


def init(key: Array, config: BertConfig) -> PyTree:
    """Random parameters, boxed with their logical axes (`nn.meta.unbox`)."""
    tokens = jnp.ones((1, 2), jnp.int32)
    vectors = jnp.zeros((config.layers, 2, 0, config.heads, config.head_dim))
    plain = Prompt(vectors, {})
    return Encoder(config).init(
        {"params": key}, tokens, 0 * tokens, plain, jnp.asarray(0)
    )["params"]
