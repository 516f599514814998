"""T5's encoder, decoder, embedding and logits, put together as one module."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from panda_jax.models import layers
from panda_jax.models.relative import RelativeBias
from panda_jax.models.t5_layers import (
    Block,
    DecoderLayer,
    EncoderLayer,
    T5Config,
)
from panda_jax.types import Array


def fp32_product(equation: str, x: Array, y: Array) -> Array:
    """`einsum(equation, x, y)` as if both were cast to fp32.

    Two bf16 arrays are only summed in fp32, which their products are exact
    in: a vocabulary's worth of fp32 copies is never made.
    """
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


class SharedEmbed(nn.Module):
    """A table [entries, D] of embeddings that can also make the logits."""

    entries: int
    width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.embedding: Any = self.param(
            "embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(1.0), ("vocab", "embed")
            ),
            (self.entries, self.width),
            jnp.float32,
        )

    def __call__(self, ids: Array) -> Array:
        """The rows of `ids`, [..., D]."""
        return jnp.asarray(self.embedding)[ids].astype(self.dtype)

    def logits(self, x: Array) -> Array:
        """[..., D] -> [..., entries] fp32, without T5's scaling."""
        return fp32_product("...d,vd->...v", x, jnp.asarray(self.embedding))


class LogitsDense(nn.Module):
    """The untied output projection [..., D] -> [..., V] fp32."""

    entries: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.variance_scaling(
                    1.0, "fan_in", "truncated_normal"
                ),
                ("embed", "vocab"),
            ),
            (x.shape[-1], self.entries),
            jnp.float32,
        )
        return fp32_product("...d,dv->...v", x, jnp.asarray(kernel))


def padding_bias(mask: Array) -> Array:
    """[B, 1, 1, S] attention bias of a mask [B, S], true where real."""
    return jnp.where(mask, 0.0, layers.MASKED)[:, None, None, :]


class Encoder(Block):
    """The encoder's layers, from embeddings to its last norm."""

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, text: Array, probe: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        """[B, T, D] -> the same; neurons [L, B, F] at `probe`, and the means
        [L, B, D] that `text` [B, T] weighs, before the last norm."""
        c = self.config
        positions = RelativeBias(
            c.heads, c.buckets, c.max_distance, True, name="relpos_bias"
        )(x.shape[1], x.shape[1])
        stack = layers.scanned(
            EncoderLayer,
            length=c.layers,
            in_axes=(nn.broadcast,) * 4,
            remat=c.remat,
            unroll=c.unroll,
        )
        x, probed = stack(c, self.train, name="layers")(
            self.drop(x), padding_bias(mask), positions, text, probe
        )
        x = self.norm("encoder_norm")(x)
        # The one draw that T5X makes for each position by itself.
        x = layers.dropout(self.dropout_key(), c.dropout, x)
        return x, probed


class Decoder(Block):
    """The decoder's layers, from embeddings to its last norm and the logits.

    Attributes:
      cached: as in `DecoderLayer`.
    """

    cached: bool

    def setup(self) -> None:
        c = self.config
        self.relpos_bias = RelativeBias(
            c.heads, c.buckets, c.max_distance, False
        )
        each = 0 if self.cached else nn.broadcast
        stack = layers.scanned(
            DecoderLayer,
            length=c.decoder_layers,
            in_axes=(0, each, nn.broadcast, nn.broadcast, nn.broadcast),
            remat=c.remat,
            unroll=c.unroll,
        )
        self.layers = stack(c, self.train, self.cached)
        self.decoder_norm = self.norm()
        if not c.tied:
            self.logits_dense = LogitsDense(c.vocab_size)

    def bias(self, queries: int, first: int) -> Array:
        """[1, H, queries, first + queries]: positions, and no later key."""
        keys = first + queries
        later = jnp.arange(keys) > first + jnp.arange(queries)[:, None]
        return self.relpos_bias(queries, keys, first=first) + jnp.where(
            later, layers.MASKED, 0.0
        )

    def __call__(
        self,
        x: Array,
        past: Array,
        memory: Array,
        bias: Array,
        mask: Array,
        index: Array,
    ) -> tuple[Array, Any]:
        """Arguments as `DecoderLayer`'s, `past` and cached memory stacked."""
        x, new = self.layers(
            self.drop(x), past, memory, bias, padding_bias(mask), index
        )
        return self.drop(self.decoder_norm(x)), new


class T5(nn.Module):
    """Encoder, decoder and the embedding that they share."""

    config: T5Config
    train: bool = False
    cached: bool = False

    def setup(self) -> None:
        c = self.config
        self.token_embedder = SharedEmbed(
            c.vocab_size, c.width, jnp.dtype(c.dtype)
        )
        self.encoder = Encoder(c, self.train)
        self.decoder = Decoder(c, self.train, self.cached)

    def encode(
        self, inputs: Array, vectors: Array, probe: Array
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """Hidden states, mask, and what `Encoder` probes; `vectors` [P, D] come
        first."""
        batch, prompted = inputs.shape[0], vectors.shape[0]
        x = self.token_embedder(inputs)
        shallow = jnp.broadcast_to(
            vectors.astype(x.dtype), (batch, *vectors.shape)
        )
        mask = jnp.concatenate(
            [jnp.ones((batch, prompted), bool), inputs != 0], axis=1
        )
        x = jnp.concatenate([shallow, x], axis=1)
        text = layers.mean_weights(inputs, x.shape[1])
        hidden, probed = self.encoder(x, mask, text, probe)
        return hidden, mask, probed

    def bias(self, queries: int, first: int) -> Array:
        """The decoder's, for decoding step by step."""
        return self.decoder.bias(queries, first)

    def decode(
        self,
        tokens: Array,
        past: Array,
        memory: Array,
        bias: Array,
        mask: Array,
        index: Array,
    ) -> tuple[Array, Any]:
        """Logits [R, U, V] fp32 of decoder inputs [R, U], and what is new."""
        c = self.config
        x = self.token_embedder(tokens)
        x, new = self.decoder(x, past, memory, bias, mask, index)
        if c.tied:
            return self.token_embedder.logits(x) * c.width**-0.5, new
        return self.decoder.logits_dense(x), new

    def teach(
        self, targets: Array, past: Array, encoded: Array, mask: Array
    ) -> Array:
        """Logits [R, U, V] of targets [R, U], each after those before it."""
        tokens = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
        bias = self.decoder.bias(targets.shape[1], past.shape[3])
        index = jnp.asarray(0)
        return self.decode(tokens, past, encoded, bias, mask, index)[0]

    def __call__(
        self, tokens: Array, vectors: Array, past: Array, probe: Array
    ) -> Array:
        """Everything once, for the parameters."""
        encoded, mask, _ = self.encode(tokens, vectors, probe)
        return self.teach(tokens, past, encoded, mask)
