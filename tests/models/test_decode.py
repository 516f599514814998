"""Greedy decoding and ranking of labels against torch's own."""

import functools

import numpy as np
import pytest
import torch
import torch_t5
from torch_t5 import deep_vectors, no_prompt, shallow_vectors, torch_logits

from panda_jax import UserError
from panda_jax.models import decode, t5
from panda_jax.prompts import Prompt

ROWS, T, STEPS = 50, 12, 9


@functools.cache
def pair(name: str):
    """Ours and torch's, with an end of sequence that wins now and then."""
    config = torch_t5.FAMILIES[name]
    model = torch_t5.torch_model(config, seed=3)
    with torch.no_grad():
        if config.tied:
            # A token repeats itself unless the layers say more than it does;
            # 37 is then one that is written often.
            for block in model.decoder.block:
                block.layer[1].EncDecAttention.o.weight *= 6
                block.layer[2].DenseReluDense.wo.weight *= 6
            table = model.shared.weight
            table[[decode.EOS, 37]] = table[[37, decode.EOS]].clone()
        else:
            model.lm_head.weight[decode.EOS] *= 2.5
    return torch_t5.params_of(model, config), config, model


@pytest.fixture(params=list(torch_t5.FAMILIES))
def family(request):
    return pair(request.param)


def generated(model, inputs: np.ndarray, vectors) -> np.ndarray:
    """`generate`'s tokens [B, STEPS] after the start token, 0-padded."""
    ids = torch.tensor(inputs).long()
    mask = (ids != 0).long()
    arguments = {"input_ids": ids}
    if len(vectors):
        prompt = torch.tensor(vectors)[None].expand(len(ids), -1, -1)
        words = torch.cat([prompt, model.shared(ids)], 1)
        mask = torch.nn.functional.pad(mask, (len(vectors), 0), value=1)
        arguments = {"inputs_embeds": words}
    tokens = model.generate(
        **arguments,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        num_beams=1,
        eos_token_id=decode.EOS,
        pad_token_id=0,
        # Its cache has the encoder's number of layers (transformers 5.23).
        use_cache=False,
    )[:, 1:].numpy()
    return np.pad(tokens, ((0, 0), (0, STEPS - tokens.shape[1])))


@pytest.mark.parametrize("make", [None, shallow_vectors])
def test_greedy_equals_generate(family, rng, make):
    params, config, model = family
    x = torch_t5.padded(rng, ROWS, T, config.vocab_size)
    prompt = Prompt(make(config), {}) if make else no_prompt(config)
    theirs = generated(model, x, prompt.vectors)
    ours = decode.greedy(params, config, x, prompt, steps=STEPS)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, theirs)
    # Some rows end, at various lengths, some do not, and they differ.
    ended = (theirs == decode.EOS).any(1)
    assert 0.1 < ended.mean() < 0.9
    lengths = (theirs == decode.EOS).argmax(1)[ended]
    assert len(np.unique(lengths)) > 2
    assert len(np.unique(theirs, axis=0)) > 10


def test_greedy_with_a_deep_prompt_equals_torch_without_a_cache(family, rng):
    """Torch reads prefix and answer anew for each token."""
    params, config, model = family
    x = torch_t5.padded(rng, ROWS, T, config.vocab_size)
    vectors = deep_vectors(config)
    tokens = np.zeros((ROWS, STEPS), np.int32)
    done = np.zeros(ROWS, bool)
    for step in range(STEPS):
        with torch.no_grad():
            logits = torch_logits(
                model, x, tokens[:, : step + 1], torch.tensor(vectors)
            )
        best = logits[:, step].argmax(-1).numpy()
        tokens[:, step] = np.where(done, 0, best)
        done |= tokens[:, step] == decode.EOS
    prompt = Prompt(vectors, {})
    ours = decode.greedy(params, config, x, prompt, steps=STEPS)
    np.testing.assert_array_equal(ours, tokens)
    assert 0.1 < done.mean() < 0.9


@pytest.mark.parametrize("make", [no_prompt, shallow_vectors, deep_vectors])
def test_rank_equals_each_label_alone_in_torch(family, rng, make):
    params, config, model = family
    x = torch_t5.padded(rng, 5, T, config.vocab_size)
    labels = np.array([[7, 1, 0, 0], [9, 8, 5, 1], [30, 0, 0, 0]], np.int32)
    made = make(config)
    prompt = made if isinstance(made, Prompt) else Prompt(made, {})
    ours = decode.rank(params, x, prompt, labels, config=config)
    assert ours.shape == (5, 3)
    assert (ours < 0).all()
    for c, label in enumerate(labels):
        words = np.trim_zeros(label)
        with torch.no_grad():
            logits = torch_logits(
                model,
                x,
                np.tile(words, (5, 1)),
                torch.tensor(prompt.vectors) if prompt.length else None,
            )
        each = logits.log_softmax(-1)[:, range(len(words)), words]
        np.testing.assert_allclose(ours[:, c], each.sum(-1), atol=2e-5)


def test_rank_encodes_once(rng, monkeypatch):
    """Counted while it is traced, for shapes that no other test has."""
    params, config, _ = pair("1.1")
    shapes = []
    encode = t5.encode

    def counted(params, config, inputs, prompt, **settings):
        shapes.append(inputs.shape)
        return encode(params, config, inputs, prompt, **settings)

    monkeypatch.setattr(t5, "encode", counted)
    x = torch_t5.padded(rng, 2, T, config.vocab_size)
    labels = np.array([[7, 1], [9, 1], [30, 1]], np.int32)
    decode.rank(params, x, no_prompt(config), labels, config=config)
    assert shapes == [(2, T)]


def test_bad_steps_are_refused(rng):
    params, config, _ = pair("1.0")
    x = torch_t5.padded(rng, 2, T, config.vocab_size)
    with pytest.raises(UserError, match="for 0 steps, expected 1 or more"):
        decode.greedy(params, config, x, no_prompt(config), steps=0)
