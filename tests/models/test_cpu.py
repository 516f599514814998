"""One switch for what pays on a CPU alone; the numbers are the same."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_t5

from panda_jax.models import bert, cpu, t5
from panda_jax.prompts import Prompt


@pytest.fixture
def off(monkeypatch):
    monkeypatch.setenv("PANDA_CPU_TRICKS", "0")


def test_dropout_s_bits_are_jax_s_own_when_off(off):
    key = jax.random.key(3)
    program = str(jax.make_jaxpr(lambda key: cpu.random_bits(key, (4,)))(key))
    assert "random_bits" in program
    expected = jax.random.bits(key, (4,), np.uint16)
    np.testing.assert_array_equal(cpu.random_bits(key, (4,)), expected)


def test_layers_are_compiled_one_by_one_unless_off(monkeypatch):
    small = bert.BertConfig(width=8, layers=2, heads=2, ffn=8)
    deep = dataclasses.replace(small, layers=cpu.MOST_UNROLLED + 1)
    lean = dataclasses.replace(small, remat=True)
    assert cpu.unrolled(small).unroll
    assert not cpu.unrolled(deep).unroll
    assert not cpu.unrolled(lean).unroll
    monkeypatch.setenv("PANDA_CPU_TRICKS", "0")
    assert not cpu.unrolled(small).unroll


def test_absorbed_cross_attention_is_the_same_and_no_key_of_the_memory(
    rng, monkeypatch
):
    config = small_t5.CONFIG
    params = nn.meta.unbox(t5.init(jax.random.key(0), config))
    prompt = Prompt(jnp.zeros((0, config.width)), {})
    x = rng.integers(3, 90, (2, 40)).astype(np.int32)
    y = rng.integers(3, 90, (2, 3)).astype(np.int32)

    def logits():
        return t5.apply(params, config, x, y, prompt)[0]

    found, programs = {}, {}
    for switch in ("1", "0"):
        monkeypatch.setenv("PANDA_CPU_TRICKS", switch)
        jax.clear_caches()
        programs[switch] = str(jax.make_jaxpr(logits)())
        found[switch] = np.asarray(logits())
    np.testing.assert_allclose(found["1"], found["0"], rtol=1e-4, atol=1e-4)
    assert programs["1"] != programs["0"]
