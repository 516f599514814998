import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import made_up_data
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panda_jax.tasks import offline, specs

from panda_jax.data import loading, token_cache
from panda_jax.data.examples import Examples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError

TOKENIZER = Tokenizer.builtin()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PANDA_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def made_up(tmp_path, cache) -> pathlib.Path:
    return made_up_data.write(tmp_path / "data")


def _load(task="toy_review", split="validation", **kwargs):
    return loading.load_examples(task, split, tokenizer=TOKENIZER, **kwargs)


def _no_fill(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the cache was not read")

    monkeypatch.setattr(token_cache, "_fill", refuse)


@pytest.mark.parametrize("task", ["toy_review", "toy_paraphrase"])
def test_examples_are_the_tasks_rows(task, cache):
    loaded = _load(task)
    rows = offline.rows(task, "validation")
    assert len(loaded) == 256
    assert loaded.tokens.dtype == loaded.segments.dtype == np.int32
    assert loaded.labels.tolist() == [row["label"] for row in rows]
    longest = 0
    for i, row in enumerate(rows):
        a, *b = TOKENIZER.encode([v for k, v in row.items() if k != "label"])
        tokens, segments = TOKENIZER.pair(a, b[0] if b else None, 128)
        longest = max(longest, len(tokens))
        padding = [0] * (loaded.tokens.shape[1] - len(tokens))
        assert loaded.tokens[i].tolist() == tokens + padding
        assert loaded.segments[i].tolist() == segments + padding
    assert loaded.tokens.shape[1] == -(-longest // 8) * 8


def test_files_of_every_kind_become_examples(made_up):
    for task in ("cb", "rte", "mrpc", "cola", "sst2", "stsb"):
        loaded = _load(task, "train", data_dir=made_up)
        assert len(loaded) == 5
        decoded = TOKENIZER.decode(loaded.tokens[1])
        pair = specs.get(task).text_b is not None
        assert decoded.startswith('[CLS] he said " it rains " and left.')
        assert decoded.count("[SEP]") == 1 + pair
        assert loaded.segments.max() == pair
    assert loaded.labels.dtype == np.float32
    assert loaded.labels.tolist() == [5.0, 3.75, 2.5, 1.25, 0.0]


def test_max_length_cuts_and_t_is_not_in_the_fingerprint(cache):
    full = _load("toy_paraphrase")
    cut = _load("toy_paraphrase", max_length=12)
    assert cut.tokens.shape == (256, 12)
    assert (cut.tokens != 0).sum(1).max() == 12
    assert full.fingerprint != cut.fingerprint
    wider = dataclasses.replace(
        full,
        tokens=np.pad(full.tokens, ((0, 0), (0, 9))),
        segments=np.pad(full.segments, ((0, 0), (0, 9))),
    )
    assert wider.fingerprint == full.fingerprint
    for name in ("tokens", "segments", "labels", "question"):
        changed = getattr(full, name).copy()
        changed[(7, 1) if changed.ndim == 2 else 7] += 1
        other = dataclasses.replace(full, **{name: changed})
        assert other.fingerprint != full.fingerprint, name
    other = dataclasses.replace(full, references=b"[]")
    assert other.fingerprint != full.fingerprint


def test_limit_is_stratified_nested_and_fixed(cache):
    full = _load("toy_tense", "train")
    some = _load("toy_tense", "train", limit=64)
    more = _load("toy_tense", "train", limit=200)
    counts = np.bincount(some.labels)
    assert counts.sum() == 64
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(some.tokens, more.tokens[:64])
    assert some.fingerprint != more.fingerprint
    rows = {row.tobytes() for row in full.tokens}
    assert all(row.tobytes() in rows for row in more.tokens)
    assert some.tokens.shape[1] == full.tokens.shape[1]
    assert _load("toy_tense", "train", limit=64).fingerprint == some.fingerprint
    assert len(_load("toy_tense", limit=9999)) == 256
    with pytest.raises(UserError, match="limit is 0"):
        _load(limit=0)


def test_limits_keep_questions_whole(made_up):
    full = _load("multirc", "train", data_dir=made_up)
    groups = [x["question_id"] for x in full.parsed_references]
    sizes = {name: groups.count(name) for name in groups}
    assert sorted(sizes.values()) == [2, 3]
    for limit, counts in ((1, (2, 3)), (2, (2,)), (4, (2, 3)), (5, (5,))):
        some = _load("multirc", "train", data_dir=made_up, limit=limit)
        kept = [x["question_id"] for x in some.parsed_references]
        assert all(kept.count(name) == sizes[name] for name in kept)
        assert len(some) in counts, limit
    squad = _load("squad", "train", data_dir=made_up, max_length=64)
    some = _load("squad", "train", data_dir=made_up, max_length=64, limit=2)
    assert some.questions == 2 < len(some) < len(squad)
    assert some.question.tolist() == sorted(some.question.tolist())
    assert some.char_starts.shape == some.tokens.shape
    copa = _load("copa", "train", data_dir=made_up, limit=2)
    assert (len(copa), copa.tokens.shape[0]) == (2, 4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 97),
    st.integers(1, 40),
    st.integers(-3, 2**65),
    st.integers(0, 9),
)
def test_batches_are_permutations(examples, batch_size, seed, epoch):
    def order(seed, epoch):
        return loading.batch_indices(
            examples, batch_size, seed=seed, epoch=epoch
        )

    batches = order(seed, epoch)
    assert batches.dtype == np.int32
    assert batches.shape == (max(1, examples // batch_size), batch_size)
    assert batches.min() >= 0
    assert batches.max() < examples
    counts = np.bincount(batches.ravel(), minlength=examples)
    if examples >= batch_size:
        assert counts.max() == 1
    else:
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(batches, order(seed, epoch))


def test_seed_and_epoch_change_the_order():
    orders = {
        loading.batch_indices(64, 8, seed=seed, epoch=epoch).tobytes()
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 9
    with pytest.raises(UserError, match="0 examples"):
        loading.batch_indices(0, 8, seed=0, epoch=0)


# --- the token cache ---------------------------------------------------------


def test_the_second_load_reads_the_cache(cache, monkeypatch):
    first = _load()
    _no_fill(monkeypatch)
    second = _load()
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.tokens, first.tokens)
    np.testing.assert_array_equal(second.labels, first.labels)


def test_a_changed_file_is_never_read_stale(made_up):
    assert _load("cb", data_dir=made_up).labels.tolist() == [0, 1, 2]
    path = made_up / "super_glue/CB/val.jsonl"
    before = path.stat()
    text = path.read_text().replace('"contradiction"', '"entailment"   ')
    path.write_text(text)
    # Neither size nor times give the change away: only the contents do.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert _load("cb", data_dir=made_up).labels.tolist() == [0, 0, 2]


def test_a_changed_vocabulary_is_never_read_stale(made_up, tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "cat",
        "a",
        "is",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    one = Tokenizer.from_folder(tmp_path)
    words[5], words[6] = words[6], words[5]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    two = Tokenizer.from_folder(tmp_path)
    first, second = (
        loading.load_examples("cb", "train", tokenizer=t, data_dir=made_up)
        for t in (one, two)
    )
    assert first.tokens[0, :3].tolist() == [2, 5, 6]
    assert second.tokens[0, :3].tolist() == [2, 6, 5]


def test_a_file_that_changes_while_it_is_read_is_not_cached(
    made_up, cache, monkeypatch
):
    fill = token_cache._fill

    def meddle(*args, **kwargs):
        arrays = fill(*args, **kwargs)
        path = made_up / "super_glue/CB/train.jsonl"
        path.write_text(path.read_text() + "\n")
        return arrays

    monkeypatch.setattr(token_cache, "_fill", meddle)
    _load("cb", "train", data_dir=made_up)
    assert not list(cache.glob("cb-train-*"))


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "empty", "text", "pickle", "other arrays"]
)
def test_a_damaged_cache_file_is_made_again(damage, cache, monkeypatch):
    tokens = np.arange(1, 2001, dtype=np.int32).reshape(250, 8)
    made = Examples(
        kind="classification",
        tokens=tokens,
        segments=np.zeros_like(tokens),
        labels=np.zeros(250, np.int32),
        question=np.arange(250, dtype=np.int32),
        references=b"[" + b",".join([b'{"label": 0}'] * 250) + b"]",
        cut=np.zeros(250, bool),
    )
    monkeypatch.setattr(token_cache, "_fill", lambda *args, **kw: made)
    first = _load()
    (path,) = cache.glob("toy_review-*.npz")
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        whole[len(whole) // 2] ^= 0xFF
        path.write_bytes(whole)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a zip file")
    elif damage == "pickle":
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **{**arrays, "tokens": np.array([{}], object)})
    else:
        np.savez(path, tokens=tokens, labels=tokens)
    with pytest.warns(RuntimeWarning, match="is damaged"):
        again = _load()
    assert again.fingerprint == first.fingerprint
    assert _load().fingerprint == first.fingerprint


def test_a_folder_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="PANDA_CACHE_DIR"):
        loaded = _load(cache_dir=tmp_path / "file" / "cache")
    assert len(loaded) == 256


def test_what_killed_fills_left_goes_after_a_day(cache):
    cache.mkdir()
    old, young, other = (
        cache / name
        for name in (".cb-1.npz.abc.npz", ".cb-2.npz.abc.npz", ".notes.npz")
    )
    for path in (old, young, other):
        path.write_text("x")
    for path in (old, other):
        os.utime(path, (0, 0))
    _load()
    assert not old.exists()
    assert young.exists()
    assert other.exists()


def test_a_malformed_row_reaches_the_user_as_it_is(made_up, cache):
    path = made_up / "glue/SST-2/dev.tsv"
    path.write_text("sentence\tlabel\nfine\t1\nbroken\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 3, field"):
        _load("sst2", data_dir=made_up)
    assert not list(cache.glob("*")) or not list(cache.glob("sst2*"))


LOAD = """
import sys, json
from panda_jax.data import loading
from panda_jax.data.tokenizer import Tokenizer
loaded = loading.load_examples(
    "toy_topic", "train", tokenizer=Tokenizer.builtin(), limit=64
)
heavy = ("tensorflow", "seqio", "tensorflow_datasets", "transformers", "torch")
print(json.dumps([loaded.fingerprint, [m for m in heavy if m in sys.modules]]))
"""


def test_two_processes_fill_at_once_and_a_third_loads_no_tensorflow(cache):
    def start():
        return subprocess.Popen(
            [sys.executable, "-c", LOAD],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    outputs = [process.communicate() for process in [start(), start()]]
    prints = set()
    for out, err in outputs:
        assert err == "", "filling the cache must be silent"
        fingerprint, heavy = json.loads(out)
        assert {"tensorflow", "seqio"} <= set(heavy)
        prints.add(fingerprint)
    third, heavy = json.loads(start().communicate()[0])
    assert prints == {third}
    assert heavy == []
    assert len(list(cache.iterdir())) == 1


KILLED = """
import os, signal
import numpy as np
def half(file, **arrays):
    file.write(b"PK" + bytes(1000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
np.savez = half
"""


def test_a_killed_fill_leaves_nothing_that_is_read(cache):
    killed = subprocess.run([sys.executable, "-c", KILLED + LOAD])
    assert killed.returncode == -9
    (left,) = cache.iterdir()
    assert left.read_bytes().startswith(b"PK")
    loaded = _load("toy_topic", "train", limit=64)
    assert len(loaded) == 64
    (whole,) = cache.glob("toy_topic-*.npz")
    assert whole != left
    assert _load("toy_topic", "train", limit=64).fingerprint == (
        loaded.fingerprint
    )


@pytest.mark.parametrize(
    "task", ["copa", "record", "multirc", "squad", "conll04", "conll05", "stsb"]
)
def test_every_kind_comes_back_from_the_cache_as_it_was(
    task, made_up, monkeypatch
):
    def load():
        return _load(task, "train", data_dir=made_up, max_length=48)

    first = load()
    monkeypatch.setattr(token_cache, "_fill", None)
    second = load()
    for name, array in first.row_arrays().items():
        again = second.row_arrays()[name]
        assert again.dtype == array.dtype, name
        np.testing.assert_array_equal(again, array)
    assert second.references == first.references
    assert second.fingerprint == first.fingerprint
    assert first.tokens.shape[1] <= 48


def test_text_examples_are_cached_by_vocabulary_and_length(
    made_up, cache, monkeypatch
):
    bytes_ = TextTokenizer.of_bytes()

    def load(**kwargs):
        return loading.load_text_examples(
            "cb", "train", tokenizer=bytes_, data_dir=made_up, **kwargs
        )

    first = load()
    short = load(input_length=16)
    assert short.inputs.shape == (5, 16)
    assert (short.inputs[:, -1] == bytes_.eos_id).all()
    monkeypatch.setattr(token_cache, "_fill_text", None)
    again = load()
    np.testing.assert_array_equal(again.inputs, first.inputs)
    np.testing.assert_array_equal(again.targets, first.targets)
    assert again.references == first.references
    assert len(list(cache.glob("cb_text-train-*.npz"))) == 2
    for name in ("input_length", "target_length"):
        with pytest.raises(UserError, match=f"{name} is 1"):
            load(**{name: 1})
