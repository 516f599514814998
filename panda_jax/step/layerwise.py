"""A backbone run forward and back layer by layer, each layer a program.

`models.stages` has the layers; here they are put in order, what the way back
needs is kept between them, and gradients come together.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.models import Config, bert, stages
from panda_jax.models.bert import BertConfig
from panda_jax.models.stages import Places, T5Places, program, stage
from panda_jax.models.t5 import T5Config
from panda_jax.types import Array, ArrayLike, Params

# Of a way back: a stage with its arguments and what it kept.
_Kept = tuple[stages.Stage, tuple[Any, ...], stages.Residual]
# Read-outs of every layer, in the order in which a layer tells them.
_EVERY_LAYER = ("neurons", "layers")
# Dropout's keys as words, one a stage.
Words = np.ndarray


class Backbone(abc.ABC):
    """The weights of a backbone, and what a prompt's kind makes of them.

    Attributes:
      keys: how many dropout keys a forward pass takes.
    """

    keys: int

    @abc.abstractmethod
    def forward(
        self, vectors: np.ndarray, places: Any, words: Words | None
    ) -> Array:
        """What the prompt's head reads, or logits; nothing is kept."""

    @abc.abstractmethod
    def taped(
        self, vectors: np.ndarray, places: Any, words: Words | None
    ) -> tuple[Array, Any]:
        """`forward`, and what `backward` needs."""

    @abc.abstractmethod
    def backward(self, tape: Any, cotangent: ArrayLike) -> np.ndarray:
        """The gradient of the prompt's vectors."""

    @abc.abstractmethod
    def probed(
        self, vectors: np.ndarray, places: Places, read: str
    ) -> np.ndarray:
        """A read-out of each text, without dropout; see `steps.probe`.

        Args:
          vectors: the prompt's.
          places: of encoder rows; texts are read at their first own position.
          read: `pooled` (BERT's alone), `first`, `mean`, `layers`,
            `neurons`, or `hidden`.

        Returns:
          [R, S, D], [R, S, L, D] or [R, S, L, F] fp32; `hidden` [R, W, D].
        """


def _run(
    found: stages.Stage, tape: list[_Kept] | None, *arguments: Any
) -> Array:
    """A stage's output; what its way back needs is put on the tape."""
    if tape is None:
        return found.plain(*arguments)
    output, residual = found.forward(*arguments)
    tape.append((found, arguments, residual))
    return output


def _back(kept: _Kept, cotangent: Any, *wrt: int) -> tuple[Array, ...]:
    found, arguments, residual = kept
    return found.back(
        *arguments, residual=residual, cotangent=cotangent, wrt=wrt
    )


class Bert(Backbone):
    """BERT, read by a pooler (or at `[CLS]`) or at every position.

    Args:
      params: the backbone's.
      config: its sizes.
      deep: the prompt's kind.
      length: P.
      per_token: whether every position of the last layer is read.
    """

    def __init__(
        self,
        params: Params,
        config: BertConfig,
        *,
        deep: bool,
        length: int,
        per_token: bool,
    ) -> None:
        c = config
        self.deep, self.length, self.config = deep, length, c
        self.keys = c.layers + 1
        self.layers = stages.by_layer(params["layers"])
        names = ("token", "position", "segment", "embedding_norm")
        self.embeddings = {name: params[name] for name in names}
        self.embed = stage(
            stages.bert_embed, config=c, length=length, shallow=not deep
        )
        self.layer = stage(stages.bert_layer, config=c)
        self.pooler = params.get("pooler")
        self.last = self.layer
        self.last_params = self.layers[-1]
        if not per_token:
            self.last = stage(stages.bert_last, config=c)
            self.last_params = {"layer": self.layers[-1]}
            if c.pooler:
                self.last_params["pooler"] = params["pooler"]

    def _prefixes(self, vectors: np.ndarray) -> np.ndarray:
        """[L, 2, P, H, K], without positions for a shallow prompt."""
        c = self.config
        if self.deep:
            return vectors
        return np.zeros((c.layers, 2, 0, c.heads, c.head_dim), np.float32)

    def _through(
        self,
        vectors: np.ndarray,
        places: Places,
        words: Words | None,
        tape: list[_Kept] | None,
    ) -> Array:
        keys = [None] * self.keys if words is None else words
        none = np.zeros((0, self.config.width), np.float32)
        shallow = none if self.deep else vectors
        # Of frozen embeddings alone nothing needs a gradient.
        first = None if self.deep else tape
        x = _run(
            self.embed, first, self.embeddings, (shallow,), places, keys[0]
        )
        prefixes = self._prefixes(vectors)
        for number, params in enumerate(self.layers):
            found = self.layer
            if number == len(self.layers) - 1:
                found, params = self.last, self.last_params
            x = _run(
                found,
                tape,
                params,
                (prefixes[number], x),
                places,
                keys[number + 1],
            )
        return x

    def forward(
        self, vectors: np.ndarray, places: Places, words: Words | None
    ) -> Array:
        return self._through(vectors, places, words, None)

    def taped(
        self, vectors: np.ndarray, places: Places, words: Words | None
    ) -> tuple[Array, list[_Kept]]:
        tape: list[_Kept] = []
        return self._through(vectors, places, words, tape), tape

    def backward(self, tape: list[_Kept], cotangent: ArrayLike) -> np.ndarray:
        gradient: Any = cotangent
        if not self.deep:
            for _ in self.layers:
                (gradient,) = _back(tape.pop(), gradient, 1)
            (gradient,) = _back(tape.pop(), gradient, 0)
            return np.asarray(gradient)
        found = []
        while len(tape) > 1:
            prefix, gradient = _back(tape.pop(), gradient, 0, 1)
            found.append(prefix)
        found += _back(tape.pop(), gradient, 0)
        return np.stack([np.asarray(x) for x in reversed(found)])

    def probed(
        self, vectors: np.ndarray, places: Places, read: str
    ) -> np.ndarray:
        c, prompt = self.config, 0 if self.deep else self.length
        none = np.zeros((0, c.width), np.float32)
        x = self.embed.plain(
            self.embeddings, (none if self.deep else vectors,), places, None
        )
        every = program(stages.bert_probed, config=c, prompt=prompt)
        told = []
        for params, prefix in zip(
            self.layers, self._prefixes(vectors), strict=True
        ):
            if read in _EVERY_LAYER:
                x, found = every(params, (prefix, x), places)
                told.append(found[_EVERY_LAYER.index(read)])
            else:
                x = self.layer.plain(params, (prefix, x), places, None)
        if told:
            return _stacked(told)
        if read == "hidden":
            return np.asarray(x, np.float32)
        last = program(stages.bert_readout, config=c, prompt=prompt, read=read)
        return np.asarray(last(self.pooler, x, places))


class T5(Backbone):
    """T5's encoder and decoder, to the logits.

    Args:
      params: the backbone's.
      config: its sizes.
      deep: the prompt's kind; a deep one is the decoder's alone.
      length: P.
    """

    def __init__(
        self, params: Params, config: T5Config, *, deep: bool, length: int
    ) -> None:
        c = config
        self.deep, self.length, self.config = deep, length, c
        self.keys = c.layers + c.decoder_layers + 4
        encoder, decoder = params["encoder"], params["decoder"]
        self.table = params["token_embedder"]
        self.relative = {
            "encoder": encoder["relpos_bias"],
            "decoder": decoder["relpos_bias"],
        }
        self.encoder = stages.by_layer(encoder["layers"])
        self.decoder = stages.by_layer(decoder["layers"])
        self.encoder_norm = encoder["encoder_norm"]
        self.head = {"norm": decoder["decoder_norm"]}
        if c.tied:
            self.head["embedding"] = self.table
        else:
            self.head["logits"] = decoder["logits_dense"]
        self.biases = program(
            stages.t5_biases, config=c, deep=length if deep else 0
        )
        self.embed = stage(stages.t5_embed, config=c)
        self.targets = stage(stages.t5_targets, config=c)
        self.encoder_layer = stage(stages.t5_encoder_layer, config=c)
        self.decoder_layer = stage(stages.t5_decoder_layer, config=c)
        self.encoded = stage(stages.t5_encoded, config=c)
        self.logits = stage(stages.t5_logits, config=c)

    def _through(
        self,
        vectors: np.ndarray,
        places: T5Places,
        words: Words | None,
        tape: list[_Kept] | None,
    ) -> Array:
        c = self.config
        keys = iter([None] * self.keys if words is None else words)
        # A deep prompt stands before the decoder: the encoder needs no way
        # back.
        first = None if self.deep else tape
        shallow, past = (
            vectors,
            np.zeros(
                (c.decoder_layers, 2, 1, 0, c.heads, c.head_dim), np.float32
            ),
        )
        if self.deep:
            shallow = np.zeros((0, c.width), np.float32)
            past = vectors[:, :, None]
        encoder_bias, decoder_bias = self.biases(self.relative, places)
        x = _run(self.embed, first, self.table, (shallow,), places, next(keys))
        for params in self.encoder:
            x = _run(
                self.encoder_layer,
                first,
                params,
                (x,),
                encoder_bias,
                next(keys),
            )
        memory = _run(self.encoded, first, self.encoder_norm, (x,), next(keys))
        x = self.targets.plain(self.table, places, next(keys))
        for params, own in zip(self.decoder, past, strict=True):
            x = _run(
                self.decoder_layer,
                tape,
                params,
                (own, x, memory),
                (decoder_bias, places),
                next(keys),
            )
        return _run(self.logits, tape, self.head, (x,), next(keys))

    def forward(
        self, vectors: np.ndarray, places: T5Places, words: Words | None
    ) -> Array:
        return self._through(vectors, places, words, None)

    def taped(
        self, vectors: np.ndarray, places: T5Places, words: Words | None
    ) -> tuple[Array, list[_Kept]]:
        tape: list[_Kept] = []
        return self._through(vectors, places, words, tape), tape

    def backward(self, tape: list[_Kept], cotangent: ArrayLike) -> np.ndarray:
        (gradient,) = _back(tape.pop(), cotangent, 0)
        if self.deep:
            found = []
            while len(tape) > 1:
                own, gradient = _back(tape.pop(), gradient, 0, 1)
                found.append(own)
            found += _back(tape.pop(), gradient, 0)
            return np.stack([np.asarray(x)[:, 0] for x in reversed(found)])
        memory: Any = 0
        for number in range(len(self.decoder)):
            # Nothing before the first layer of the decoder is trained.
            last = number == len(self.decoder) - 1
            wrt = (2,) if last else (1, 2)
            *before, here = _back(tape.pop(), gradient, *wrt)
            gradient = before[0] if before else None
            memory = here if number == 0 else memory + here
        gradient = memory
        while tape:
            (gradient,) = _back(tape.pop(), gradient, 0)
        return np.asarray(gradient)

    def probed(
        self, vectors: np.ndarray, places: Places, read: str
    ) -> np.ndarray:
        c, prompt = self.config, 0 if self.deep else self.length
        nothing = np.zeros((len(places.tokens), 0), np.int32)
        both = T5Places(places, nothing, nothing, nothing)
        bias, _ = self.biases(self.relative, both)
        none = np.zeros((0, c.width), np.float32)
        shallow = none if self.deep else vectors
        x = self.embed.plain(self.table, (shallow,), both, None)
        every = program(stages.t5_probed, config=c, prompt=prompt)
        told = []
        for params in self.encoder:
            if read in _EVERY_LAYER:
                x, found = every(params, (x,), bias, places)
                told.append(found[_EVERY_LAYER.index(read)])
            else:
                x = self.encoder_layer.plain(params, (x,), bias, None)
        if told:
            return _stacked(told)
        x = self.encoded.plain(self.encoder_norm, (x,), None)
        if read == "hidden":
            return np.asarray(x, np.float32)
        last = program(stages.t5_readout, prompt=prompt, read=read)
        return np.asarray(last(x, places))


def _stacked(told: list[Array]) -> np.ndarray:
    """Layers' [R, S, D] as [R, S, L, D] fp32."""
    return np.stack([np.asarray(x, np.float32) for x in told], axis=2)


def backbone(
    params: Params,
    config: Config,
    *,
    deep: bool,
    length: int,
    per_token: bool = False,
) -> Backbone:
    """The backbone of a family; arguments as of `Bert`."""
    if isinstance(config, T5Config):
        return T5(params, config, deep=deep, length=length)
    return Bert(params, config, deep=deep, length=length, per_token=per_token)


def read_offset(config: Config, *, deep: bool, length: int) -> int:
    """From a text's first position, a prompt's counted, to where it is read.

    BERT's pooler reads position 0, a shallow prompt's first; without a pooler
    `[CLS]` is read, which stands after it.
    """
    if isinstance(config, T5Config) or config.pooler or deep:
        return 0
    return length


def head_logits(
    read: Array, head: Params, config: Config, words: ArrayLike | None
) -> Array:
    """[..., C] of what `Backbone.forward` gives; T5's are logits already."""
    if isinstance(config, T5Config):
        return read
    key = None
    if words is not None:
        key = jax.random.wrap_key_data(jnp.asarray(words))
    return bert.head_logits(read, head, config, key=key)


__all__ = ["Backbone", "Bert", "T5", "backbone", "head_logits", "read_offset"]
