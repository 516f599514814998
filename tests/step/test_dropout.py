"""Where dropout falls: on the same places as in torch's modules in training.

Both draw in their own way, so both get one pattern in place of their draws,
the same along the last axis; then logits agree, or a place is missing.
"""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_bert
import torch_t5
from transformers import (
    BertForSequenceClassification,
    BertModel,
    DynamicCache,
)

from panda_jax.interop import hf
from panda_jax.models import bert, layers, t5
from panda_jax.prompts import Prompt

RATE, ATTENTION_RATE = 0.2, 0.35
P, T, CLASSES = 5, 7, 3
TOKENS = np.array([[2, 7, 9, 3, 40, 8, 1], [5, 6, 4, 30, 0, 0, 0]], np.int32)
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0]], np.int32)


def pattern(length: int, rate: float) -> np.ndarray:
    """What stays is divided by the share that is to stay, which tells rates
    apart."""
    kept = np.arange(length) % 4 != 1
    return (kept / (1 - rate)).astype(np.float32)


@pytest.fixture
def patterned(monkeypatch):
    """Both libraries drop by the pattern."""
    ours, theirs = [], []

    def drop(key, rate, x, *, shared=None):
        del shared
        if key is None:
            return x
        ours.append(rate)
        return x * pattern(x.shape[-1], rate)

    def torch_drop(x, p=0.5, training=True, inplace=False):
        del inplace
        if not training:
            return x
        theirs.append(p)
        return x * torch.tensor(pattern(x.shape[-1], p))

    monkeypatch.setattr(layers, "dropout", drop)
    monkeypatch.setattr(torch.nn.functional, "dropout", torch_drop)
    return ours, theirs


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Our parameters, sizes and head, and the same in torch, in training."""
    torch.manual_seed(0)
    config = torch_bert.config(
        num_labels=CLASSES,
        hidden_dropout_prob=RATE,
        attention_probs_dropout_prob=ATTENTION_RATE,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config).train()
    folder = tmp_path_factory.mktemp("bert")
    model.bert.save_pretrained(folder)
    params, config = hf.load_bert(folder)
    head = {
        "kernel": model.classifier.weight.detach().numpy().T,
        "bias": model.classifier.bias.detach().numpy(),
    }
    return params, config, head, model


def torch_bert_outputs(model: BertModel, vectors: torch.Tensor) -> Any:
    """Behind a prompt; a deep one is dropped as in the released code."""
    tokens, segments = torch.tensor(TOKENS), torch.tensor(SEGMENTS)
    mask = torch.nn.functional.pad((tokens != 0).long(), (P, 0), value=1)
    if vectors.ndim == 2:
        words = model.embeddings.word_embeddings(tokens)
        given = vectors[None].expand(len(tokens), -1, -1)
        return model(
            inputs_embeds=torch.cat([given, words], 1),
            token_type_ids=torch.nn.functional.pad(segments, (P, 0)),
            attention_mask=mask,
        )
    cache = DynamicCache()
    for layer, pair in enumerate(vectors):
        each = pair[:, None].expand(-1, len(tokens), -1, -1, -1)
        key, value = torch.nn.functional.dropout(each, RATE).swapaxes(2, 3)
        cache.update(key, value, layer)
    accepted = inspect.signature(BertModel.forward).parameters
    name = "cache" if "cache" in accepted else "past_key_values"
    return model(
        input_ids=tokens,
        token_type_ids=segments,
        attention_mask=mask,
        position_ids=torch.arange(T)[None] + P,
        use_cache=True,
        **{name: cache},
    )


@pytest.mark.parametrize(
    ("kind", "per_token"), [("deep", False), ("shallow", True)]
)
def test_an_encoder_drops_where_torch_does(
    classifier, patterned, rng, kind, per_token
):
    params, config, head, model = classifier
    assert (config.dropout, config.attention_dropout) == (RATE, ATTENTION_RATE)
    shape = {
        "deep": (config.layers, 2, P, config.heads, config.head_dim),
        "shallow": (P, config.width),
    }[kind]
    vectors = rng.normal(size=shape).astype(np.float32)

    def logits(key):
        prompt = Prompt(vectors, head)
        return bert.apply(
            params,
            config,
            TOKENS,
            SEGMENTS,
            prompt,
            per_token=per_token,
            key=key,
        )[0]

    found = np.asarray(jax.jit(logits)(jax.random.key(0)))
    with torch.no_grad():
        outputs = torch_bert_outputs(model.bert, torch.tensor(vectors))
        read = outputs.pooler_output
        if per_token:
            read = outputs.last_hidden_state[:, -T:]
        theirs = model.classifier(model.dropout(read)).numpy()
    assert set(patterned[0]) == set(patterned[1]) == {RATE, ATTENTION_RATE}
    real = TOKENS != 0 if per_token else slice(None)
    np.testing.assert_allclose(found[real], theirs[real], atol=2e-5)
    assert np.ptp(theirs[real], axis=0).max() > 0.1


@pytest.mark.parametrize(("family", "targets"), [("1.0", 4), ("1.1", 30)])
def test_a_t5_drops_where_torch_does(patterned, rng, family, targets):
    """Few targets read the encoder's output in another order than many."""
    config = dataclasses.replace(torch_t5.FAMILIES[family], dropout=RATE)
    model = torch_t5.torch_model(torch_t5.FAMILIES[family], seed=0)
    params = torch_t5.params_of(model, config)
    model.set_attn_implementation("eager")
    model.train()
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, RATE)
    inputs = torch_t5.padded(rng, 2, 9, config.vocab_size)
    answer = torch_t5.padded(rng, 2, targets, config.vocab_size)
    vectors = torch_t5.shallow_vectors(config)

    def logits(key):
        prompt = Prompt(vectors, {})
        return t5.apply(params, config, inputs, answer, prompt, key=key)[0]

    found = np.asarray(jax.jit(logits)(jax.random.key(0)))
    with torch.no_grad():
        theirs = torch_t5.torch_logits(
            model, inputs, answer, torch.tensor(vectors)
        ).numpy()
    assert set(patterned[0]) == set(patterned[1]) == {RATE}
    np.testing.assert_allclose(found, theirs, atol=2e-5)


def test_each_example_drops_of_its_own_copy_of_the_prefix(rng):
    """What all B drop has no gradient: a share of rate^B of all numbers.

    By layer, for keys and for values.
    """
    rate, batch = 0.3, 2
    config = bert.BertConfig(
        vocab_size=50,
        width=32,
        layers=2,
        heads=2,
        ffn=32,
        positions=128,
        dropout=rate,
        attention_dropout=0.0,
    )
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) / 4,
        jax.eval_shape(lambda key: bert.init(key, config), jax.random.key(0)),
    )
    params = jax.tree.map(
        lambda box: box.value, params, is_leaf=lambda x: hasattr(x, "value")
    )
    vectors = rng.normal(size=(2, 2, 60, 2, 16)).astype(np.float32)
    tokens = np.broadcast_to(TOKENS[:1], (batch, T))

    @jax.jit
    @jax.grad
    def gradient(vectors):
        _, aux = bert.apply(
            params,
            config,
            tokens,
            0 * tokens,
            Prompt(vectors, {}),
            key=jax.random.key(1),
        )
        return jnp.square(aux["hidden"] - 0.5).sum()

    dropped = np.asarray(gradient(vectors)) == 0
    shares = dropped.mean((2, 3, 4))
    spread = np.sqrt(rate**batch / dropped[0, 0].size)
    np.testing.assert_allclose(shares, rate**batch, atol=4 * spread)
    # No two layers, nor keys and values, draw the same.
    for one, other in ((dropped[0], dropped[1]), dropped.swapaxes(0, 1)):
        np.testing.assert_allclose(
            (one & other).mean(), rate ** (2 * batch), atol=4 * spread
        )
