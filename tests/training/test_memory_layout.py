"""What is written or hashed is what an array reads, however it lies in memory.

A file that keeps memory as it lies says something else of a view.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file as torch_load

from panda_jax import prompts
from panda_jax.data import examples, token_cache
from panda_jax.interop import hf, npy, tensors
from panda_jax.io import arrays
from panda_jax.models import trees
from panda_jax.step import steps
from panda_jax.store import prompt_folders
from panda_jax.training.checkpoints import Checkpoints
from panda_jax.transfer import probing, target_features
from panda_jax.transfer.vector_cache import VectorCache

PLAIN = np.arange(24, dtype=np.float32).reshape(4, 6)


def transposed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T).T


def strided(array: np.ndarray) -> np.ndarray:
    """Every second of what lies there."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def backward(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[::-1])[::-1]


def one_of_many(array: np.ndarray) -> np.ndarray:
    """A row that serves all: a stride of 0 along the first axis."""
    return np.broadcast_to(array[:1], array.shape)


def big_endian(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder(">"))


LAYOUTS = [
    np.asfortranarray,
    transposed,
    strided,
    backward,
    one_of_many,
    big_endian,
]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request):
    found = request.param(PLAIN)
    assert not found.flags.c_contiguous or not found.dtype.isnative
    return request.param


def test_tensor_files(tmp_path, layout):
    given = {
        "a": layout(PLAIN),
        "half": layout(PLAIN.astype(np.float16)),
        "whole": layout(PLAIN.astype(np.int64)),
        "number": np.array(2.5, np.float32),
        "none": layout(PLAIN)[:0],
    }
    tensors.save(tmp_path / "f.safetensors", given)
    for reader in (torch_load, safetensors.numpy.load_file):
        found = reader(tmp_path / "f.safetensors")
        assert found.keys() == given.keys()
        for name, array in given.items():
            got = np.asarray(found[name])
            assert got.shape == array.shape
            assert got.dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(got, array)


def test_tensor_files_of_bfloat16_and_of_device_arrays(tmp_path):
    half = PLAIN.astype(ml_dtypes.bfloat16)
    given = {"a": half.T, "b": jnp.asarray(PLAIN).T, "c": strided(half)}
    tensors.save(tmp_path / "f.safetensors", given)
    found = torch_load(tmp_path / "f.safetensors")
    assert found["a"].dtype == found["c"].dtype == torch.bfloat16
    np.testing.assert_array_equal(found["a"].float(), PLAIN.T)
    np.testing.assert_array_equal(found["b"], PLAIN.T)
    np.testing.assert_array_equal(found["c"].float(), PLAIN)


def test_a_backbone_that_torch_reads(tiny, tmp_path):
    """From a tree of views, as transposing and slicing leave them."""
    lays = itertools.cycle((np.asfortranarray, strided, transposed))
    views = jax.tree.map(lambda x: next(lays)(np.asarray(x)), tiny.params)
    hf.save(tmp_path, views, tiny.config)
    held = torch_load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        held["encoder.layer.1.intermediate.dense.weight"].T,
        trees.flatten(tiny.params)["layers/wi/kernel"][1],
    )
    assert trees.content_hash(hf.load_bert(tmp_path)[0]) == tiny.fingerprint


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_prompt_folders(tmp_path, rng, layout, kind):
    shape = {"deep": (3, 2, 5, 4, 4), "shallow": (5, 16)}[kind]
    vectors = rng.normal(size=shape).astype(np.float32)
    head = {"kernel": rng.normal(size=(16, 3)), "bias": rng.normal(size=3)}
    plain = prompts.Prompt(
        np.array(layout(vectors), np.float32, order="C"),
        {k: np.array(layout(x), np.float32) for k, x in head.items()},
    )
    given = prompts.Prompt(
        layout(vectors), {k: layout(x) for k, x in head.items()}
    )
    info = prompt_folders.PromptInfo("cb", "b", "abc", kind, "prompt")
    prompt_folders.save_prompt(tmp_path / "p", given, info)
    found = prompt_folders.load_prompt(tmp_path / "p").prompt
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    assert prompt_folders.content_hash(given) == prompt_folders.content_hash(
        plain
    )


def test_npy_files(tmp_path, layout):
    npy.write(tmp_path / "p.npy", layout(PLAIN))
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), layout(PLAIN))
    np.testing.assert_array_equal(npy.read(tmp_path / "p.npy"), layout(PLAIN))


def test_the_cache_of_vectors(tmp_path, monkeypatch, layout):
    monkeypatch.setenv("PANDA_CACHE_DIR", str(tmp_path))
    cache = VectorCache()
    for name, array in {"a": layout(PLAIN), "b": np.array(2.5)}.items():
        cache.put(cache.key([name]), array)
        found = cache.get(cache.key([name]))
        assert found.shape == array.shape
        np.testing.assert_array_equal(found, array)


def test_hashes_are_of_what_is_read(layout):
    """Also of types that have no buffer, and of arrays without axes."""
    for dtype in (np.float32, np.int32, ml_dtypes.bfloat16):
        array = layout(PLAIN.astype(dtype))
        same = np.array(array, dtype, order="C")
        assert trees.content_hash({"a": array}) == trees.content_hash(
            {"a": same}
        )
    other = trees.content_hash({"a": PLAIN + 1})
    assert trees.content_hash({"a": PLAIN}) != other
    assert trees.content_hash({"a": PLAIN[0, 1]}) == trees.content_hash(
        {"a": jnp.ones((), jnp.float32)}
    )


def test_the_cache_of_tokens(tmp_path, layout):
    token_cache._write(tmp_path / "t.npz", {"tokens": layout(PLAIN)})
    for found in (np.load, arrays.read_npz):
        got = found(tmp_path / "t.npz")["tokens"]
        np.testing.assert_array_equal(got, layout(PLAIN))


@pytest.mark.parametrize("lay", [x for x in LAYOUTS if x is not big_endian])
def test_rows_are_named_by_what_they_say(lay):
    """Data, probes and labels: their hashes stand in results and caches."""

    def names(turn):
        tokens = turn(PLAIN.astype(np.int32) + 1)
        tags = turn(PLAIN.astype(np.int32) % 5)
        question = np.arange(4, dtype=np.int32)
        rows = examples.Examples(
            "tags", tokens, 0 * tokens, tags, question, b"[]"
        )
        text = examples.TextExamples(tokens, tags + 1, b"[]")
        yield rows.fingerprint
        yield text.fingerprint
        probed = probing.rows_of(tokens, 0 * tokens)
        yield probed.name
        yield target_features.Labelled(probed, tags, 5, words=tokens).name

    here, there = list(names(lay)), list(names(lambda x: np.array(lay(x))))
    assert here == there
    assert here != list(names(lambda x: lay(x)[:, ::-1]))


def test_checkpoints(tmp_path, layout):
    def states(array: np.ndarray) -> steps.TrainState:
        prompt = prompts.Prompt(array[:, :, None], {"bias": array}, "shallow")
        moments = {"mu": array, "nu": array[:, ::2]}
        number = np.full(4, 8, np.int32)
        return steps.TrainState(
            number, steps.Trainable(prompt), moments, number
        )

    folder = _folder(tmp_path / "checkpoints")
    like = states(np.zeros(PLAIN.shape, layout(PLAIN).dtype))
    with_views = Checkpoints(folder)
    with_views.save(states(layout(PLAIN)), {"runs": list("abcd")})
    with_views.close()
    reader = Checkpoints(folder)
    found, _ = reader.restore(like)
    reader.close()
    jax.tree.map(
        np.testing.assert_array_equal, found, states(np.array(layout(PLAIN)))
    )


def _folder(path: pathlib.Path) -> pathlib.Path:
    path.mkdir()
    return path
