"""The backbones layer by layer, on packed rows (`data.packing`).

A stage is a pure function of (parameters, what is differentiated, the rest),
compiled by itself: all layers of a stack are one program, whatever its depth,
and each layer's weights are arrays of their own, which nothing copies.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.models import bert, layers
from panda_jax.models.bert import BertConfig
from panda_jax.models.relative import RelativeBias
from panda_jax.models.t5_layers import DecoderLayer, EncoderLayer, T5Config
from panda_jax.models.t5_stacks import LogitsDense, SharedEmbed
from panda_jax.types import Array, ArrayLike, Params, PyTree


def by_layer(stacked: PyTree) -> list[PyTree]:
    """A stack's parameters, [L, ...] each, as one tree a layer.

    On a CPU these are views of the same memory.
    """
    host = jax.tree.map(np.asarray, stacked)
    depth = len(jax.tree.leaves(host)[0])
    return [
        jax.tree.map(lambda x, n=n: jax.device_put(x[n], may_alias=True), host)
        for n in range(depth)
    ]


def _key(words: Array | None) -> Array | None:
    """The PRNG key of its words, which pass through Python faster."""
    return None if words is None else jax.random.wrap_key_data(words)


def _dropout_rngs(words: Array | None) -> dict[str, Array]:
    key = _key(words)
    return {} if key is None else {"dropout": key}


def _same(queries: ArrayLike, keys: ArrayLike) -> Array:
    """[R, Q, S] whether a query's text is a key's."""
    return jnp.asarray(queries)[:, :, None] == jnp.asarray(keys)[:, None, :]


def _prompted(table: Array, vectors: Array, position: ArrayLike) -> Array:
    """[R, W, D] embeddings, a shallow prompt's vectors where it stands.

    By one-hot products: a gather's gradient is a scatter.
    """
    length = vectors.shape[0]
    at = jax.nn.one_hot(position, length, dtype=table.dtype)
    return jnp.where(
        (jnp.asarray(position) < length)[..., None],
        at @ vectors.astype(table.dtype),
        table,
    )


class Places(NamedTuple):
    """Where the positions of packed rows belong; see `data.packing.Packed`.

    Attributes:
      tokens, segments, text, position: [R, W].
      read: [R, S].
    """

    tokens: ArrayLike
    segments: ArrayLike
    text: ArrayLike
    position: ArrayLike
    read: ArrayLike


# BERT


def bert_embed(
    params: Params,
    traced: tuple[Array],
    places: Places,
    key: Array | None,
    *,
    config: BertConfig,
    length: int,
    shallow: bool,
) -> Array:
    """[R, W, D], what the first layer reads.

    Args:
      params: those of the embeddings.
      traced: a shallow prompt's vectors [P, D]; of no length for a deep one.
      places: of the rows.
      key: words of the dropout's key, or None.
      config: static.
      length: P, static.
      shallow: static.
    """
    c = config
    dtype = jnp.dtype(c.dtype)

    def embed(name: str, entries: int, axis: str, ids: ArrayLike) -> Array:
        module = layers.Embed(entries, c.width, axis, dtype)
        return jnp.asarray(module.apply({"params": params[name]}, ids))

    x = embed("token", c.vocab_size, "vocab", places.tokens)
    position = places.position
    if shallow:
        x = _prompted(x, traced[0], position)
    else:
        position = position + length
    x = x + embed("position", c.positions, "positions", position)
    x = x + embed("segment", c.types, "types", places.segments)
    norm = layers.LayerNorm(c.epsilon, dtype)
    x = jnp.asarray(norm.apply({"params": params["embedding_norm"]}, x))
    return layers.dropout(_key(key), c.dropout, x)


def _slots(places: Places) -> Array:
    """[R, S] the numbers of a row's texts: its slots in turn."""
    return jnp.broadcast_to(jnp.arange(places.read.shape[1]), places.read.shape)


def _bert_layer(
    params: Params,
    traced: tuple[Array, Array],
    places: Places,
    key: Array | None,
    *,
    config: BertConfig,
    read: bool = False,
    probed: tuple[Array, Array] | None = None,
) -> Any:
    prefix, x = traced
    hot, queries = None, places.text
    if read:
        hot = jax.nn.one_hot(places.read, x.shape[1], dtype=x.dtype)
        queries = _slots(places)
    own = jnp.where(_same(queries, places.text), 0.0, layers.MASKED)
    prompted = ((0, 0), (0, 0), (prefix.shape[1], 0))
    bias = jnp.pad(own, prompted)[:, None]
    layer = bert.Layer(config, key is not None)
    none = jnp.zeros(queries.shape, jnp.float32), jnp.asarray(0)
    output: Any = layer.apply(
        {"params": params},
        x,
        prefix,
        bias,
        *(probed or none),
        hot,
        rngs=_dropout_rngs(key),
    )
    return output[0] if probed is None else output


def bert_layer(
    params: Params,
    traced: tuple[Array, Array],
    places: Places,
    key: Array | None,
    *,
    config: BertConfig,
) -> Array:
    """A layer: [R, W, D] of its prefix [2, P, H, K] and its input."""
    return _bert_layer(params, traced, places, key, config=config)


def bert_last(
    params: Params,
    traced: tuple[Array, Array],
    places: Places,
    key: Array | None,
    *,
    config: BertConfig,
) -> Array:
    """The last layer and the pooler where texts are read: [R, S, D].

    Args:
      params: `layer`, and `pooler` where there is one.
      traced: as of `bert_layer`.
      places: of the rows.
      key: words of the dropout's key, or None.
      config: static.
    """
    x = _bert_layer(
        params["layer"], traced, places, key, config=config, read=True
    )
    if not config.pooler:
        return x
    pooler = layers.Dense(
        config.width, ("embed", "pooled"), jnp.dtype(config.dtype)
    )
    return jnp.tanh(jnp.asarray(pooler.apply({"params": params["pooler"]}, x)))


# What is read of texts, for scores


def text_weights(places: Places, prompt: int) -> Array:
    """[R, S, W] fp32 what averages over each text, without its prompt."""
    own = _same(_slots(places), places.text)
    own = own & (places.position >= prompt)[:, None]
    real = own.astype(jnp.float32)
    return real / jnp.maximum(real.sum(-1, keepdims=True), 1)


def _probed(places: Places, prompt: int) -> tuple[Array, Array]:
    """What layers need to tell of each text: its mean, its first position."""
    hot = jax.nn.one_hot(places.read, places.tokens.shape[1])
    return text_weights(places, prompt), hot


def bert_probed(
    params: Params,
    traced: tuple[Array, Array],
    places: Places,
    *,
    config: BertConfig,
    prompt: int,
) -> tuple[Array, tuple[Array, Array]]:
    """`bert_layer`, and what it tells of texts.

    Args:
      params: the layer's.
      traced: as of `bert_layer`.
      places: of the rows; texts are read at their first own position.
      config: static.
      prompt: positions that each text carries, static.

    Returns:
      [R, W, D]; neurons [R, S, F] and means [R, S, D].
    """
    probed = _probed(places, prompt)
    return _bert_layer(
        params, traced, places, None, config=config, probed=probed
    )


def bert_readout(
    params: Params,
    x: Array,
    places: Places,
    *,
    config: BertConfig,
    prompt: int,
    read: str,
) -> Array:
    """`pooled`, `first` or `mean` [R, S, D] fp32 of the last layer's output.

    Args:
      params: of the pooler, where `pooled` is read and there is one.
      x: [R, W, D].
      places: as of `bert_probed`.
      config: static.
      prompt: likewise.
      read: which, static.
    """
    x = x.astype(jnp.float32)
    if read == "mean":
        return layers.weighted_mean(x, text_weights(places, prompt))
    at = places.read
    if read == "pooled" and config.pooler:
        at = at - prompt
    x = jax.nn.one_hot(at, x.shape[1]) @ x
    if read == "first" or not config.pooler:
        return x
    pooler = layers.Dense(
        config.width, ("embed", "pooled"), jnp.dtype(config.dtype)
    )
    found: Any = pooler.apply({"params": params}, x.astype(config.dtype))
    return jnp.tanh(found).astype(jnp.float32)


def t5_probed(
    params: Params,
    traced: tuple[Array],
    bias: Array,
    places: Places,
    *,
    config: T5Config,
    prompt: int,
) -> tuple[Array, tuple[Array, Array]]:
    """`t5_encoder_layer`, and what it tells of texts; as `bert_probed`."""
    (x,) = traced
    weights, hot = _probed(places, prompt)
    layer = EncoderLayer(config, False)
    output: Any = layer.apply(
        {"params": params}, x, bias, jnp.zeros((1, 1, 1, 1)), weights, hot
    )
    return output


def t5_readout(x: Array, places: Places, *, prompt: int, read: str) -> Array:
    """`first` or `mean` [R, S, D] fp32 of the encoder's output."""
    x = x.astype(jnp.float32)
    if read == "mean":
        return layers.weighted_mean(x, text_weights(places, prompt))
    return jax.nn.one_hot(places.read, x.shape[1]) @ x


# T5


class T5Places(NamedTuple):
    """`Places` of inputs and of targets; see `data.packing.Targets`.

    Attributes:
      inputs: [R, W].
      tokens, text, position: [R, U].
    """

    inputs: Places
    tokens: ArrayLike
    text: ArrayLike
    position: ArrayLike


def _distances(queries: ArrayLike, keys: ArrayLike) -> Array:
    """[R, Q, S] key position - query position, none beyond the rows' width."""
    return jnp.asarray(keys)[:, None, :] - jnp.asarray(queries)[:, :, None]


def t5_biases(
    params: Params, places: T5Places, *, config: T5Config, deep: int
) -> tuple[Array, Array]:
    """The attention biases of the encoder's and of the decoder's layers.

    Args:
      params: `encoder` and `decoder`: the tables of relative positions.
      places: of the rows.
      config: static.
      deep: P of a deep prompt, static.

    Returns:
      [R, H, W, W] and [R, H, U, P + U] fp32, the latter empty for U = 0.
    """
    c = config
    inputs = places.inputs

    def relative(name: str, two_way: bool, first: int, at: Array) -> Array:
        module = RelativeBias(c.heads, c.buckets, c.max_distance, two_way)
        table: Any = module.apply(
            {"params": params[name]}, *at.shape[1:], first=first, distances=at
        )
        return table

    at = _distances(inputs.position, inputs.position)
    same = _same(inputs.text, inputs.text)
    encoder = relative("encoder", True, 0, jnp.where(same, at, 0))
    encoder += jnp.where(same, 0.0, layers.MASKED)[:, None]
    if not places.tokens.shape[1]:
        return encoder, encoder[:, :, :0]
    rows, width = places.text.shape
    prompt = jnp.broadcast_to(jnp.arange(deep), (rows, deep))
    keys = jnp.concatenate([prompt, deep + places.position], axis=1)
    at = _distances(deep + places.position, keys)
    seen = _same(places.text, places.text) & (at[:, :, deep:] <= 0)
    seen = jnp.pad(seen, ((0, 0), (0, 0), (deep, 0)), constant_values=True)
    decoder = relative("decoder", False, deep, jnp.where(seen, at, 0))
    decoder += jnp.where(seen, 0.0, layers.MASKED)[:, None]
    return encoder, decoder


def _t5_drop(x: Array, key: Array | None, c: T5Config) -> Array:
    return layers.dropout(_key(key), c.dropout, x, shared=1)


def _t5_table(params: Params, ids: ArrayLike, c: T5Config) -> Array:
    module = SharedEmbed(c.vocab_size, c.width, jnp.dtype(c.dtype))
    return jnp.asarray(module.apply({"params": params}, ids))


def t5_embed(
    params: Params,
    traced: tuple[Array],
    places: T5Places,
    key: Array | None,
    *,
    config: T5Config,
) -> Array:
    """[R, W, D], what the encoder reads; `traced`: [P, D], P may be 0."""
    x = _t5_table(params, places.inputs.tokens, config)
    if traced[0].shape[0]:
        x = _prompted(x, traced[0], places.inputs.position)
    return _t5_drop(x, key, config)


def t5_encoder_layer(
    params: Params,
    traced: tuple[Array],
    bias: Array,
    key: Array | None,
    *,
    config: T5Config,
) -> Array:
    """A layer of the encoder: [R, W, D] of its input."""
    (x,) = traced
    layer = EncoderLayer(config, key is not None)
    output: Any = layer.apply(
        {"params": params},
        x,
        bias,
        jnp.zeros((1, 1, 1, 1)),
        jnp.zeros(x.shape[:2], jnp.float32),
        jnp.asarray(0),
        rngs=_dropout_rngs(key),
    )
    return output[0]


def _t5_norm(params: Params, x: Array, c: T5Config) -> Array:
    norm = layers.RMSNorm(c.epsilon, jnp.dtype(c.dtype))
    return jnp.asarray(norm.apply({"params": params}, x))


def t5_encoded(
    params: Params,
    traced: tuple[Array],
    key: Array | None,
    *,
    config: T5Config,
) -> Array:
    """The encoder's last norm, and the draws that each position has alone."""
    x = _t5_norm(params, traced[0], config)
    return layers.dropout(_key(key), config.dropout, x)


def t5_targets(
    params: Params, places: T5Places, key: Array | None, *, config: T5Config
) -> Array:
    """[R, U, D], what the decoder reads of the targets."""
    return _t5_drop(_t5_table(params, places.tokens, config), key, config)


def t5_decoder_layer(
    params: Params,
    traced: tuple[Array, Array, Array],
    rest: tuple[Array, T5Places],
    key: Array | None,
    *,
    config: T5Config,
) -> Array:
    """A layer of the decoder: [R, U, D].

    Args:
      params: its own.
      traced: its deep prompt [2, 1, P, H, K], P may be 0; its input; the
        encoder's output [R, W, D].
      rest: the self-attention's bias, and the places.
      key: words of the dropout's key, or None.
      config: static.
    """
    past, x, memory = traced
    bias, places = rest
    seen = _same(places.text, places.inputs.text)
    layer = DecoderLayer(config, key is not None, False)
    output: Any = layer.apply(
        {"params": params},
        x,
        past,
        memory,
        bias,
        jnp.where(seen, 0.0, layers.MASKED)[:, None],
        jnp.asarray(0),
        rngs=_dropout_rngs(key),
    )
    return output[0]


def t5_logits(
    params: Params,
    traced: tuple[Array],
    key: Array | None,
    *,
    config: T5Config,
) -> Array:
    """[R, U, V] fp32.

    Args:
      params: `norm`, and `embedding` where it is tied, else `logits`.
      traced: the last layer's output.
      key: words of the dropout's key, or None.
      config: static.
    """
    c = config
    x = _t5_drop(_t5_norm(params["norm"], traced[0], c), key, c)
    if not c.tied:
        dense = LogitsDense(c.vocab_size)
        return jnp.asarray(dense.apply({"params": params["logits"]}, x))
    table = SharedEmbed(c.vocab_size, c.width, jnp.dtype(c.dtype))
    found: Any = table.apply(
        {"params": params["embedding"]}, x, method="logits"
    )
    return found * c.width**-0.5


# Programs of a stage


@dataclasses.dataclass(frozen=True, eq=False)
class _Origin:
    """How a stage's way back is put together again; equal to itself alone."""

    tree: Any
    given: tuple[int | None, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Residual:
    """What a stage's way back needs beside its arguments."""

    arrays: tuple[Array, ...]
    origin: _Origin = dataclasses.field(metadata={"static": True})


class Stage:
    """A function's programs: forward, forward to be gone back from, and back.

    Args:
      function: of (params, traced, ...) with `traced` a tuple of arrays; what
        it is closed over is static.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.plain = jax.jit(function)
        self.forward = jax.jit(self._named(self._forward, "forward"))
        self._back = jax.jit(
            self._named(self._backward, "back"), static_argnames="wrt"
        )

    def _named(self, method: Any, suffix: str) -> Any:
        """A method under the name that compilers' and profilers' output has."""

        @functools.wraps(method)
        def program(*args: Any, **options: Any) -> Any:
            return method(*args, **options)

        inner = getattr(self.function, "func", self.function)
        program.__name__ = f"{inner.__name__}_{suffix}"
        return program

    def _forward(
        self, params: PyTree, traced: tuple[Array, ...], *rest: PyTree
    ) -> tuple[Array, Residual]:
        """The output, and what `backward` needs."""
        output, back = jax.vjp(
            lambda traced: self.function(params, traced, *rest), traced
        )
        arrays, tree = jax.tree.flatten(back)
        # What is given is not handed back: that would be a copy.
        arguments = jax.tree.leaves((params, traced, rest))
        given = {id(x): n for n, x in enumerate(arguments)}
        places = tuple(given.get(id(x)) for x in arrays)
        kept = tuple(
            x for x, n in zip(arrays, places, strict=True) if n is None
        )
        return output, Residual(kept, _Origin(tree, places))

    def _backward(
        self,
        arguments: tuple[PyTree, ...],
        residual: Residual,
        cotangent: Array,
        *,
        wrt: tuple[int, ...],
    ) -> tuple[Array, ...]:
        given, kept = jax.tree.leaves(arguments), iter(residual.arrays)
        origin = residual.origin
        arrays = [next(kept) if n is None else given[n] for n in origin.given]
        back = jax.tree.unflatten(origin.tree, arrays)
        (gradients,) = back(cotangent)
        return tuple(gradients[n] for n in wrt)

    def back(
        self,
        params: PyTree,
        traced: tuple[Array, ...],
        *rest: PyTree,
        residual: Residual,
        cotangent: Array,
        wrt: tuple[int, ...],
    ) -> tuple[Array, ...]:
        """The gradients of `traced`, those numbered by `wrt`.

        Arguments that it does not read are no part of the program.
        """
        return self._back((params, traced, rest), residual, cotangent, wrt=wrt)


@functools.cache
def program(function: Any, **static: Any) -> Any:
    """A function compiled with these static arguments, once a process."""
    return jax.jit(functools.partial(function, **static))


@functools.cache
def stage(function: Any, **static: Any) -> Stage:
    """The stage of a function with these static arguments, once a process."""
    return Stage(functools.partial(function, **static))
