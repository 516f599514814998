"""T5's configuration and its two kinds of layer, in Flax Linen.

Pre-norm layers without biases; parameters have T5X's names and logical axes.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from panda_jax.models import cpu, layers
from panda_jax.types import Array


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The sizes of a T5; hashable, so that jit can key on it.

    The defaults are T5 1.0 small. T5 1.1 (and mT5, with its vocabulary) is
    gated `gelu_new` and not tied.

    Attributes:
      layers: of the encoder.
      head_dim: K; `heads * head_dim` need not be the width.
      buckets: of relative positions.
      max_distance: from which on all distances are one bucket.
      gated: whether the activation is multiplied by a second projection.
      tied: whether the embedding makes the logits, scaled by D^-0.5.
      dtype: of the computation.
      remat: whether the backward pass computes each layer's inside again.
      unroll: whether layers are compiled one by one, in place of a loop. What
        the backward pass needs is then not copied into arrays of all layers,
        and the first layer's inputs get no gradient that nobody reads.
    """

    vocab_size: int = 32128
    width: int = 512
    layers: int = 6
    decoder_layers: int = 6
    heads: int = 8
    head_dim: int = 64
    ffn: int = 2048
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1
    epsilon: float = 1e-6
    activation: str = "relu"
    gated: bool = False
    tied: bool = True
    dtype: str = "float32"
    remat: bool = False
    unroll: bool = False


class Block(nn.Module):
    """What all parts of T5 share: sizes, norms and dropout."""

    config: T5Config
    train: bool

    @property
    def dtype(self) -> jnp.dtype:
        """Of the computation."""
        return jnp.dtype(self.config.dtype)

    def dropout_key(self) -> Array | None:
        """A new key, or None outside of training."""
        return self.make_rng("dropout") if self.train else None

    def drop(self, x: Array) -> Array:
        """Dropout with one draw for all positions of [B, T, ...], as T5X."""
        return layers.dropout(
            self.dropout_key(), self.config.dropout, x, shared=1
        )

    def norm(self, name: str | None = None) -> layers.RMSNorm:
        """T5's normalisation."""
        return layers.RMSNorm(self.config.epsilon, self.dtype, name=name)


class Attention(Block):
    """Multi-head attention; 1/sqrt(K) is left to the query's kernel."""

    def setup(self) -> None:
        c = self.config
        inner = c.heads * c.head_dim

        def linear(
            features: int, axes: tuple[str, str], variance: float = 1.0
        ) -> layers.Linear:
            init = nn.initializers.variance_scaling(
                variance, "fan_in", "normal"
            )
            return layers.Linear(features, axes, self.dtype, init)

        self.query = linear(inner, ("embed", "joined_kv"), 1.0 / c.head_dim)
        self.key = linear(inner, ("embed", "joined_kv"))
        self.value = linear(inner, ("embed", "joined_kv"))
        self.out = linear(c.width, ("joined_kv", "embed"))

    def keys_values(self, x: Array) -> tuple[Array, Array]:
        """Keys and values [B, S, H, K] of x [B, S, D]."""
        c = self.config
        shape = (*x.shape[:2], c.heads, c.head_dim)
        return self.key(x).reshape(shape), self.value(x).reshape(shape)

    def __call__(
        self,
        x: Array,
        key: Array,
        value: Array,
        bias: Array,
        positions: Array | None = None,
    ) -> Array:
        """Attends.

        Args:
          x: [B * C, T, D], the queries' input.
          key: [B, S, H, K]; its rows serve C rows of queries each.
          value: [B, S, H, K].
          bias: fp32, broadcast to [B, H, C * T, S].
          positions: likewise, added as well.

        Returns:
          [B * C, T, D].
        """
        c = self.config
        query = self.query(x).reshape(key.shape[0], -1, c.heads, c.head_dim)
        context = layers.attend(
            query,
            key,
            value,
            bias,
            positions=positions,
            dropout_key=self.dropout_key(),
            dropout_rate=c.dropout,
            dropout_shared=2,
            scale=1.0,
        )
        return self.out(context.reshape(*x.shape[:2], c.heads * c.head_dim))

    def absorbed(self, x: Array, memory: Array, bias: Array) -> Array:
        """The same of a memory whose keys and values are not made.

        Args:
          x: [B * C, T, D], the queries' input; C * T < K for it to pay.
          memory: [B, S, D]; its rows serve C rows of queries each.
          bias: fp32, broadcast to [B, H, C * T, S].

        Returns:
          [B * C, T, D].
        """
        c = self.config
        key, value = (
            linear.weights(c.width).reshape(c.width, c.heads, c.head_dim)
            for linear in (self.key, self.value)
        )
        query = self.query(x).reshape(len(memory), -1, c.heads, c.head_dim)
        drop = functools.partial(
            layers.dropout, self.dropout_key(), c.dropout, shared=2
        )
        context = cpu.absorbed(query, key, value, memory, bias, drop)
        return self.out(context.reshape(*x.shape[:2], c.heads * c.head_dim))


class Mlp(Block):
    """The feed-forward part, gated or not."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[B, T, D] -> the same, and the activations [B, T, F]."""
        c = self.config
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal"
        )

        def wi(name: str) -> Array:
            return layers.Linear(
                c.ffn, ("embed", "mlp"), self.dtype, init, name=name
            )(x)

        activation = layers.ACTIVATIONS[c.activation]
        if c.gated:
            hidden = activation(wi("wi_0")) * wi("wi_1")
        else:
            hidden = activation(wi("wi"))
        y = layers.Linear(
            c.width, ("mlp", "embed"), self.dtype, init, name="wo"
        )(self.drop(hidden))
        return y, hidden


class EncoderLayer(Block):
    """The body of the encoder's scan."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        bias: Array,
        positions: Array,
        text: Array,
        probe: Array,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Applies the layer.

        Args:
          x: [B, T, D].
          bias: [B, 1, 1, T], padding.
          positions: [1, H, T, T].
          text: [B, T] as `layers.mean_weights` makes it, or [B, S, T].
          probe: scalar, the position whose neurons are returned, or one-hot
            [B, S, T].

        Returns:
          [B, T, D]; [B, F] feed-forward activations at `probe`, and [B, D] the
          output averaged over the text; [B, S, ...] of S texts in a row.
        """
        c = self.config
        y = self.norm("pre_attention_layer_norm")(x)
        attention = Attention(c, self.train, name="attention")
        key, value = attention.keys_values(y)
        x = x + self.drop(attention(y, key, value, bias, positions))
        y = self.norm("pre_mlp_layer_norm")(x)
        y, hidden = Mlp(c, self.train, name="mlp")(y)
        x = x + self.drop(y)
        mean = layers.weighted_mean(x, text)
        return x, (layers.at_position(hidden, probe), mean)


class DecoderLayer(Block):
    """The body of the decoder's scan.

    Attributes:
      cached: whether it writes one position into a cache (decoding), or sees
        all positions at once (training).
    """

    cached: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        past: Array,
        memory: Array,
        bias: Array,
        memory_bias: Array,
        index: Array,
    ) -> tuple[Array, Any]:
        """Applies the layer.

        Args:
          x: [R, U, D], R rows of decoder inputs; U = 1 when cached.
          past: [2, 1, P, H, K], this layer's key and value prompt, P may be 0;
            when cached [2, R, S, H, K], prompt and earlier positions.
          memory: [B, T, D], the encoder's output, one row for R / B of x's;
            when cached [2, B, T, H, K], its keys and values.
          bias: [1, H, U, P + U], positions and causality; when cached
            [1, H, 1, S].
          memory_bias: [B, 1, 1, T], padding.
          index: scalar, where the cache is written.

        Returns:
          [R, U, D]; and when cached [2, R, 1, H, K], what was written.
        """
        c = self.config
        y = self.norm("pre_self_attention_layer_norm")(x)
        attention = Attention(c, self.train, name="self_attention")
        new = jnp.stack(attention.keys_values(y))
        if self.cached:
            seen = jax.lax.dynamic_update_slice_in_dim(past, new, index, axis=2)
        else:
            past = jnp.broadcast_to(
                past.astype(new.dtype), (2, x.shape[0], *past.shape[2:])
            )
            seen = jnp.concatenate([past, new], axis=2)
        x = x + self.drop(attention(y, seen[0], seen[1], bias))

        y = self.norm("pre_cross_attention_layer_norm")(x)
        cross = Attention(c, self.train, name="encoder_decoder_attention")
        if self.cached:
            y = cross(y, memory[0], memory[1], memory_bias)
        elif cpu.absorbs(x.shape[0] * x.shape[1], len(memory), c.head_dim):
            y = cross.absorbed(y, memory, memory_bias)
        else:
            y = cross(y, *cross.keys_values(memory), memory_bias)
        x = x + self.drop(y)

        y = self.norm("pre_mlp_layer_norm")(x)
        y, _ = Mlp(c, self.train, name="mlp")(y)
        return x + self.drop(y), new if self.cached else None
