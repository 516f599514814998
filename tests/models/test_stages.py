"""Packed rows, layer by layer, are what padded batches are, forward and back.

`bert.apply` and `t5.apply` of padded batches are the reference, held to torch's
elsewhere.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from panda_jax.data import packing
from panda_jax.models import bert, stages, t5
from panda_jax.models.bert import BertConfig
from panda_jax.models.stages import Places, T5Places
from panda_jax.models.t5 import T5Config
from panda_jax.prompts import Prompt
from panda_jax.step import layerwise

P, CLASSES, TEXTS = 4, 5, 9
BERT = BertConfig(
    vocab_size=90, width=32, layers=3, heads=4, ffn=64, positions=64
)
T5 = T5Config(
    vocab_size=90,
    width=32,
    layers=2,
    decoder_layers=3,
    heads=4,
    head_dim=8,
    ffn=64,
)
GATED = dataclasses.replace(T5, gated=True, tied=False, activation="gelu_new")
# What is asked of fp32.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def texts(seed=0):
    """Token ids [B, T] of 3 to 24 a text, and their lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 25, TEXTS)
    tokens = rng.integers(1, 90, (TEXTS, lengths.max())).astype(np.int32)
    tokens *= np.arange(tokens.shape[1]) < lengths[:, None]
    return tokens, lengths


def weights(config):
    """Some that are larger than a fresh model's, biases too."""
    module = t5 if isinstance(config, T5Config) else bert
    params = nn.meta.unbox(module.init(jax.random.key(0), config))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        x + 0.2 * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def prompt_of(config, kind):
    rng = np.random.default_rng(5)
    shape = (P, config.width)
    if kind == "deep":
        depth = getattr(config, "decoder_layers", config.layers)
        shape = (depth, 2, P, config.heads, config.head_dim)
    return rng.normal(size=shape).astype(np.float32)


def packed_of(config, kind, tokens, lengths, segments=None):
    """The parts, and each one's places."""
    prompt = P if kind == "shallow" else 0
    offset = layerwise.read_offset(config, deep=kind == "deep", length=P)
    parts = packing.packer(lengths + prompt, TEXTS).parts(
        (lengths + prompt).tolist()
    )
    assert max(len(part.slots) for part in parts) > 2, "nothing is packed"
    cut = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    types = None
    if segments is not None:
        types = [row[:n] for row, n in zip(segments, lengths, strict=True)]
    return prompt, [
        (
            part,
            Places(
                *packing.packed(part, cut, types, prompt=prompt, offset=offset)
            ),
        )
        for part in parts
    ]


@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("pooler", [True, False])
def test_bert_on_packed_rows(kind, per_token, pooler):
    config = dataclasses.replace(BERT, pooler=pooler)
    params, vectors = weights(config), prompt_of(config, kind)
    tokens, lengths = texts()
    segments = (np.arange(tokens.shape[1]) > 5).astype(np.int32)
    segments = segments * (tokens != 0)
    head = {
        "kernel": np.eye(config.width, CLASSES, dtype=np.float32),
        "bias": np.zeros(CLASSES, np.float32),
    }
    counted = np.cos(np.arange(CLASSES))

    @jax.jit
    def padded(vectors):
        logits, _ = bert.apply(
            params,
            config,
            tokens,
            segments,
            Prompt(vectors, head),
            per_token=per_token,
        )
        each = jnp.sin(logits) @ counted
        if per_token:
            each = jnp.where(tokens != 0, each, 0)
        return each.sum(), logits

    (_, logits), gradient = jax.value_and_grad(padded, has_aux=True)(vectors)
    backbone = layerwise.backbone(
        params, config, deep=kind == "deep", length=P, per_token=per_token
    )
    total = np.zeros_like(vectors)
    prompt, parts = packed_of(config, kind, tokens, lengths, segments)
    for part, places in parts:
        read, tape = backbone.taped(vectors, places, None)
        np.testing.assert_allclose(
            backbone.forward(vectors, places, None), read, **CLOSE
        )
        cotangent = np.zeros(read.shape, np.float32)
        said = bert.head_logits(read, head, config, key=None)
        for slot in part.slots:
            begin = slot.start + prompt
            at = np.s_[slot.row, slot.number]
            wanted = logits[slot.text]
            if per_token:
                length = lengths[slot.text]
                at = np.s_[slot.row, begin : begin + length]
                wanted = wanted[:length]
            np.testing.assert_allclose(said[at], wanted, **CLOSE)
            slope = np.cos(said[at]) * counted
            cotangent[at] = slope @ head["kernel"].T
        total += backbone.backward(tape, cotangent)
    largest = np.abs(gradient).max()
    np.testing.assert_allclose(total / largest, gradient / largest, **CLOSE)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("config", [T5, GATED], ids=["tied", "gated"])
def test_t5_on_packed_rows(kind, config):
    params, vectors = weights(config), prompt_of(config, kind)
    tokens, lengths = texts()
    rng = np.random.default_rng(3)
    written = rng.integers(1, 6, TEXTS)
    labels = rng.integers(1, 90, (TEXTS, written.max())).astype(np.int32)
    labels *= np.arange(labels.shape[1]) < written[:, None]
    # Of logits far from 0 the sine is no measure.
    size = 0.05

    @jax.jit
    def padded(vectors):
        logits, _ = t5.apply(
            params, config, tokens, labels, Prompt(vectors, {})
        )
        each = jnp.sin(size * logits).sum(-1)
        return jnp.where(labels != 0, each, 0).sum(), logits

    (_, logits), gradient = jax.value_and_grad(padded, has_aux=True)(vectors)
    backbone = layerwise.backbone(params, config, deep=kind == "deep", length=P)
    total = np.zeros_like(vectors)
    _, parts = packed_of(config, kind, tokens, lengths)
    cut = [row[:n] for row, n in zip(labels, written, strict=True)]
    scale = np.abs(logits).max()
    for part, inputs in parts:
        said = packing.targets(part, cut)
        places = T5Places(inputs, said.tokens, said.text, said.position)
        read, tape = backbone.taped(vectors, places, None)
        real = said.labels != 0
        slope = size * np.cos(size * np.asarray(read))
        total += backbone.backward(tape, slope * real[..., None])
        ends = [0] * part.rows
        for slot in part.slots:
            begin = ends[slot.row]
            end = ends[slot.row] = begin + written[slot.text]
            np.testing.assert_allclose(
                read[slot.row, begin:end] / scale,
                logits[slot.text, : written[slot.text]] / scale,
                **CLOSE,
            )
    largest = np.abs(gradient).max()
    np.testing.assert_allclose(total / largest, gradient / largest, **CLOSE)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("config", [BERT, T5], ids=["bert", "t5"])
def test_no_text_sees_another(kind, config):
    """One text's ids change, and nothing of the others moves, to the bit."""
    params, vectors = weights(config), prompt_of(config, kind)
    tokens, lengths = texts()
    backbone = layerwise.backbone(params, config, deep=kind == "deep", length=P)
    labels = [np.array([7, 8, 1], np.int32)] * TEXTS
    changed = int(np.argmin(lengths))
    other = tokens.copy()
    other[changed, : lengths[changed]] = (
        89 - tokens[changed, : lengths[changed]]
    )

    def reads(tokens):
        found = {}
        _, parts = packed_of(config, kind, tokens, lengths)
        for part, places in parts:
            if isinstance(config, T5Config):
                said = packing.targets(part, labels)
                places = T5Places(places, said.tokens, said.text, said.position)
            read = np.asarray(backbone.forward(vectors, places, None))
            for slot in part.slots:
                at = slot.number
                if isinstance(config, T5Config):
                    at = slice(3 * at, 3 * at + 3)
                found[slot.text] = read[slot.row, at]
        return found

    before, after = reads(tokens), reads(other)
    assert (before[changed] != after[changed]).any()
    for text in set(before) - {changed}:
        np.testing.assert_array_equal(before[text], after[text])


def test_layers_parameters_are_views_of_the_stack_s():
    stacked = {"kernel": jnp.ones((3, 16, 64)), "bias": jnp.zeros((3, 64))}
    found = stages.by_layer(stacked)
    assert [x["kernel"].shape for x in found] == [(16, 64)] * 3
    base = np.asarray(stacked["kernel"])
    for number, params in enumerate(found):
        own = np.asarray(params["kernel"])
        assert np.shares_memory(own, base[number])


def test_what_a_way_back_needs_are_not_the_weights():
    config = BERT
    backbone = layerwise.backbone(weights(config), config, deep=True, length=P)
    tokens, lengths = texts()
    _, parts = packed_of(config, "deep", tokens, lengths)
    _, tape = backbone.taped(prompt_of(config, "deep"), parts[0][1], None)
    assert len(tape) == config.layers
    for _, arguments, residual in tape:
        kernels = {x.shape for x in jax.tree.leaves(arguments[0])}
        kernels = {shape for shape in kernels if len(shape) == 2}
        assert not kernels & {x.shape for x in residual.arrays}


def test_dropout_is_drawn_by_its_keys_alone():
    config = dataclasses.replace(BERT, dropout=0.5, attention_dropout=0.5)
    backbone = layerwise.backbone(weights(config), config, deep=True, length=P)
    tokens, lengths = texts()
    vectors = prompt_of(config, "deep")
    _, parts = packed_of(config, "deep", tokens, lengths)

    def read(seed):
        keys = jax.random.split(jax.random.key(seed), backbone.keys)
        words = np.asarray(jax.random.key_data(keys))
        return np.asarray(backbone.forward(vectors, parts[0][1], words))

    np.testing.assert_array_equal(read(0), read(0))
    assert (read(0) != read(1)).all(-1).any()


def test_the_share_that_dropout_leaves():
    """Embeddings of ones, through dropout alone: the rate, and no pattern."""
    rate = 0.25
    config = dataclasses.replace(T5, dropout=rate, width=64)
    params = {"embedding": jnp.ones((90, 64))}
    tokens = np.ones((400, 4), np.int32)
    zeros = np.zeros_like(tokens)
    places = T5Places(
        Places(tokens, zeros, zeros, zeros, zeros), tokens, zeros, zeros
    )
    found = []
    for seed in range(2):
        words = jax.random.key_data(jax.random.key(seed))
        x = stages.t5_targets(params, places, words, config=config)
        # One draw for all positions of a row, as in T5X.
        np.testing.assert_array_equal(x[:, 0], x[:, 3])
        found.append(np.asarray(x[:, 0] != 0))
    for kept in found:
        # 25,600 draws: six standard deviations.
        assert abs(kept.mean() - (1 - rate)) < 6 * 0.433 / 160
    both = (found[0] & found[1]).mean()
    assert abs(both - (1 - rate) ** 2) < 6 * 0.5 / 160
    rows = found[0]
    assert abs((rows[1:] & rows[:-1]).mean() - (1 - rate) ** 2) < 6 * 0.5 / 160
