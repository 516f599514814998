"""The table of tasks, and each of them as SeqIO tasks in both views."""

import dataclasses
import json

import made_up_data
import numpy as np
import pytest
import stepping
from panda_jax.tasks import offline, sources, specs, views
from panda_jax.tasks.spec import ALL_SPLITS, SPLITS, TaskSpec

from panda_jax.data import loading, plain
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError

# fmt: off
TARGETS = [
    "cb", "copa", "rte", "wic", "wsc", "cola", "mrpc", "stsb", "conll04",
]
SOURCES = [
    *TARGETS, "boolq", "multirc", "record", "sst2", "qqp", "mnli", "qnli",
    "squad", "conll03", "conll05", "conll12", "ontonotes",
]
# fmt: on
LENGTH = 48
TOKENIZER = Tokenizer.builtin()
BYTES = TextTokenizer.of_bytes()
WORDS = Tokenizer.builtin()


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return str(made_up_data.write(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def registry():
    from panda_jax.tasks import registry

    return registry


# --- the table ---------------------------------------------------------------


def test_the_table_is_the_papers_and_consistent():
    table = [specs.get(name) for name in specs.names()]
    assert {spec.name for spec in table if spec.source} == set(SOURCES)
    assert {spec.name for spec in table if spec.target} == set(TARGETS)
    assert len(SOURCES) == 21
    assert {spec.name for spec in table if spec.offline} == set(
        offline.GENERATORS
    )
    for spec in table:
        assert sorted(spec.rows) == sorted(SPLITS)
        if spec.offline:
            assert spec.outputs == offline.GENERATORS[spec.name][1]
        else:
            assert {*SPLITS} <= {*spec.files} <= {*ALL_SPLITS}
    assert specs.get("conll04").tag_names[:3] == ("O", "B-Loc", "I-Loc")
    assert specs.get("conll03").outputs == 9
    assert specs.get("ontonotes").outputs == 37
    assert len(specs.MIXTURES["sources_text"]) == 21


def test_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="task 'mrcp'.*'mrpc'"):
        specs.get("mrcp")


def test_own_tasks_are_checked(monkeypatch):
    monkeypatch.setattr(specs, "_SPECS", dict(specs._SPECS))
    spec = TaskSpec(
        name="mine",
        description="",
        text_a="{word} in: {text}",
        labels=("no", "yes"),
        reader="jsonl",
    )
    assert specs.register(spec) == specs.register(dataclasses.replace(spec))
    assert spec.fields == ("word", "text")
    for change, message in (
        ({"text_a": "{text}"}, "registered already"),
        ({"name": "x", "labels": ("no",)}, "with 1 labels"),
        ({"name": "x", "kind": "regression"}, "regression task with 2"),
        ({"name": "x", "kind": "span"}, "span task with 2"),
        ({"name": "x", "kind": "choice"}, "choice task with the choices"),
        ({"name": "x", "choices": ("a", "b")}, "classification task with the"),
        ({"name": "x", "kind": "tags", "labels": ()}, "tags task with 0"),
        ({"name": "x", "metrics": ()}, "no metric"),
        ({"name": "x", "label_values": {"1": "si"}}, "'si'"),
    ):
        with pytest.raises(UserError, match=message):
            specs.register(dataclasses.replace(spec, **change))


def test_spec_fingerprint_follows_what_decides_the_rows():
    cb = specs.get("cb")
    same = dataclasses.replace(cb, description="other", target=False)
    assert same.fingerprint == cb.fingerprint
    other = dataclasses.replace(cb, text_b="{hypothesis}?")
    assert other.fingerprint != cb.fingerprint


# --- SeqIO -------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(registry):
    from panda_jax.tasks.vocabulary import WordPieceVocabulary

    return WordPieceVocabulary(Tokenizer.builtin())


def test_every_task_is_registered_once_in_both_views(registry):
    import importlib

    import seqio

    importlib.reload(registry)
    names = set(seqio.TaskRegistry.names())
    assert names >= {*specs.names(), *(f"{x}_text" for x in specs.names())}
    bound = registry.task("toy_topic", tokenizer=TOKENIZER)
    assert bound is registry.task("toy_topic", tokenizer=TOKENIZER)
    assert bound.name.startswith("toy_topic:")
    assert bound.num_input_examples("train") == 2000
    text = registry.text_task("toy_topic", tokenizer=BYTES)
    assert text is registry.text_task("toy_topic", tokenizer=BYTES)
    assert text.name.startswith("toy_topic_text:")
    cb = seqio.TaskRegistry.get("cb")
    assert cb.num_input_examples("validation") == 56


def test_a_registered_task_yields_packed_rows(registry, made_up, monkeypatch):
    import seqio
    from panda_jax.tasks import features

    monkeypatch.setenv("PANDA_DATA_DIR", made_up)
    task = seqio.TaskRegistry.get("mrpc")
    lengths = features.sequence_lengths(specs.get("mrpc"), 16)
    rows = list(task.get_dataset(lengths, "train", shuffle=False))
    assert len(rows) == 5
    tokenizer = registry.default_tokenizer()
    for i, row in enumerate(rows):
        a, b = tokenizer.encode(made_up_data.PAIRS[i])
        tokens, segments = tokenizer.pair(a, b, 16)
        assert row["inputs"].numpy().tolist() == tokens
        assert row["segment_ids"].numpy().tolist() == segments
        assert row["targets"].numpy() == 1 - i % 2


def test_the_converter_pads_and_renames(registry, made_up):
    import seqio
    from panda_jax.tasks import features

    spec = specs.get("stsb")
    name = registry.task("stsb", tokenizer=TOKENIZER, data_dir=made_up).name
    dataset = seqio.get_dataset(
        name,
        features.sequence_lengths(spec, 80),
        features.EncoderFeatureConverter(spec),
        dataset_split="validation",
        shuffle=False,
    )
    rows = list(dataset.as_numpy_iterator())
    assert [float(row["labels"]) for row in rows] == [5.0, 3.75, 2.5]
    for row, texts in zip(rows, made_up_data.PAIRS, strict=False):
        tokens, segments = TOKENIZER.pair(*TOKENIZER.encode(texts), 80)
        padding = [0] * (80 - len(tokens))
        assert row["encoder_input_tokens"].tolist() == tokens + padding
        assert row["encoder_segment_ids"].tolist() == segments + padding


def test_mixtures_draw_from_all_their_tasks(registry, made_up):
    import seqio

    mixture = seqio.MixtureRegistry.get("super_glue_text")
    assert len(mixture.tasks) == 8
    assert mixture.get_rate(seqio.TaskRegistry.get("cb_text")) == 250
    assert len(seqio.MixtureRegistry.get("sources_text").tasks) == 21
    mixed = registry.mixture(
        "some_text",
        ("cb", "conll04", "wsc"),
        tokenizer=BYTES,
        data_dir=made_up,
    )
    dataset = mixed.get_dataset(
        {"inputs": 64, "targets": 32}, "train", shuffle=False, seed=0
    )
    starts = [
        BYTES.decode(row["inputs"]).split()[0]
        for row in dataset.take(300).as_numpy_iterator()
    ]
    shares = {name: starts.count(name) / 300 for name in set(starts)}
    total = 250 + 922 + 554
    for name, rows in (("cb", 250), ("conll04", 922), ("wsc", 554)):
        assert shares[name] == pytest.approx(rows / total, abs=0.1)


def test_a_readers_error_passes_tensorflow_unchanged(registry, tmp_path):
    path = tmp_path / "super_glue/CB/train.jsonl"
    path.parent.mkdir(parents=True)
    good = b'{"premise": "a", "hypothesis": "b", "label": "neutral"}\n'
    path.write_bytes(good + b"{\n")
    task = registry.task("cb", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"train\.jsonl, line 2"):
        task.get_dataset({"inputs": 16}, "train", shuffle=False)


# --- all 21, from files, in both views ---------------------------------------


def _rows(name, split, made_up):
    return sources.find(specs.get(name), data_dir=made_up).rows(split)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_text_view_says_what_the_rows_say(name, split, made_up):
    loaded = loading.load_text_examples(
        name, split, tokenizer=BYTES, input_length=2048, data_dir=made_up
    )
    spec, rows = specs.get(name), _rows(name, split, made_up)
    assert len(loaded) == len(rows) == (5 if split == "train" else 3)
    for i, row in enumerate(rows):
        said, target = views.text_example(spec, row)
        assert BYTES.decode(loaded.inputs[i]) == said
        assert loaded.targets[i][loaded.targets[i] != 0][-1] == BYTES.eos_id
        assert target.startswith(BYTES.decode(loaded.targets[i]))
        assert loaded.parsed_references[i] == views.reference(spec, row)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("length", [12, 512])
def test_without_seqio_rows_make_the_same_arrays(name, length, made_up):
    """What own rows and `predict` go by, held to what all tasks go by."""
    spec, rows = specs.get(name), _rows(name, "train", made_up)
    ours = plain.examples(spec, rows, tokenizer=WORDS, max_length=length)
    theirs = loading.load_examples(
        name, "train", tokenizer=WORDS, max_length=length, data_dir=made_up
    )
    # Of training rows SeqIO's way leaves out some candidates.
    if not spec.train_choices:
        assert ours.fingerprint == theirs.fingerprint
        np.testing.assert_array_equal(ours.cut, theirs.cut)
    texts = plain.text_examples(
        spec, rows, tokenizer=BYTES, input_length=length, target_length=9
    )
    loaded = loading.load_text_examples(
        name,
        "train",
        tokenizer=BYTES,
        input_length=length,
        target_length=9,
        data_dir=made_up,
    )
    assert texts.fingerprint == loaded.fingerprint
    np.testing.assert_array_equal(texts.cut, loaded.cut)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_rows_that_are_cut_are_counted(cut):
    """A row of exactly the length is whole; one more piece is not."""
    spec = specs.get("toy_sentiment")
    (row,) = offline.rows("toy_sentiment", "train")[:1]
    (ids,) = WORDS.encode([row["sentence"]])
    found = plain.examples(
        spec, [row], tokenizer=WORDS, max_length=len(ids) + 2 - cut
    )
    assert found.cut_rows == bool(cut)
    said, answer = views.text_example(spec, row)
    for short in ("input_length", "target_length"):
        lengths = {
            "input_length": len(said.encode()) + 1,
            "target_length": len(answer.encode()) + 1,
        }
        lengths[short] -= cut
        found = plain.text_examples(spec, [row], tokenizer=BYTES, **lengths)
        assert found.cut_rows == bool(cut)
        assert found.inputs[0, -1] == found.targets[0, -1] == BYTES.eos_id


@pytest.mark.parametrize("name", SOURCES)
def test_right_texts_score_best_and_wrong_ones_less(name, registry, made_up):
    task = registry.text_task(name, tokenizer=BYTES, data_dir=made_up)
    lengths = {"inputs": 256, "targets": 62}
    examples = list(
        task.get_dataset(
            lengths, "validation", shuffle=False
        ).as_numpy_iterator()
    )

    def answers(texts, is_target):
        return [
            task.postprocess_fn(text, example=example, is_target=is_target)
            for text, example in zip(texts, examples, strict=True)
        ]

    said = [row["targets_pretokenized"].decode() for row in examples]
    targets = answers(said, True)
    for right, texts in ((True, said), (False, ["?"] * len(said))):
        found = {}
        for metric in task.metric_fns:
            found |= metric(targets, answers(texts, False))
        assert list(found) == list(specs.get(name).metrics)
        if right and name != "stsb":
            assert set(found.values()) == {1.0}, name
        elif right:  # texts say a fifth of a point
            assert found["pearson_spearman"] > 0.99
        else:
            assert max(found.values()) < 1.0


def _perfect(examples):
    """Outputs that say of every row what is right."""
    labels = examples.labels
    R, T = examples.tokens.shape
    if examples.kind == "classification":
        return 9.0 * np.eye(labels.max() + 2)[labels]
    if examples.kind in ("regression", "choice"):
        return labels[:, None].astype(np.float32)
    if examples.kind == "tags":
        return np.maximum(labels, 0)
    logits = np.zeros((R, T, 2))
    # A window without the answer points at [CLS], which no answer may take.
    for row, (first, last) in enumerate(labels):
        logits[row, first, 0] = logits[row, last, 1] = 9.0
    return logits


@pytest.mark.parametrize("name", SOURCES)
def test_right_outputs_score_best_through_seqio_and_ours(
    name, registry, made_up
):
    from panda_jax.tasks import features

    from panda_jax.data import answers

    spec = specs.get(name)
    length = 256
    loaded = loading.load_examples(
        name,
        "validation",
        tokenizer=TOKENIZER,
        max_length=length,
        data_dir=made_up,
    )
    outputs = _perfect(loaded)
    # Class 1 of a single class of labels: as many columns as classes.
    if spec.kind == "classification":
        outputs = outputs[:, : spec.outputs]
    ours = answers.scores(spec, loaded, outputs)
    task = registry.task(name, tokenizer=TOKENIZER, data_dir=made_up)
    examples = list(
        task.get_dataset(
            features.sequence_lengths(spec, length), "validation", shuffle=False
        ).as_numpy_iterator()
    )
    theirs = {}
    for metric in task.metric_fns:
        theirs |= metric(
            [
                task.postprocess_fn(None, example=example, is_target=True)
                for example in examples
            ],
            [
                task.postprocess_fn(output, example=example)
                for output, example in zip(outputs, examples, strict=True)
            ],
        )
    assert theirs == ours
    assert list(ours) == list(spec.metrics)
    assert list(ours.values()) == [pytest.approx(1.0)] * len(ours)


@pytest.mark.parametrize("name", SOURCES)
def test_a_training_step_runs_on_every_task(name, tiny, made_up):
    loaded = loading.load_examples(
        name,
        "train",
        tokenizer=tiny.tokenizer,
        max_length=LENGTH,
        data_dir=made_up,
    )
    stepping.one_step(specs.get(name), loaded, tiny)


# --- the vocabulary ----------------------------------------------------------


def test_vocabulary_agrees_in_python_and_tensorflow(vocabulary):
    import tensorflow as tf

    texts = ["the red cat.", "", "a café, perhaps?"]
    ids = [vocabulary.encode(text) for text in texts]
    assert vocabulary.encode_tf(tf.constant(texts)).to_list() == ids
    scalar = vocabulary.encode_tf(tf.constant(texts[0]))
    assert scalar.numpy().tolist() == ids[0]
    assert scalar.dtype == tf.int32
    assert vocabulary.decode(ids[0]) == texts[0]
    assert vocabulary.decode_tf(scalar).numpy().decode() == texts[0]
    padded = tf.ragged.constant(ids, dtype=tf.int32).to_tensor()
    shown = [text.decode() for text in vocabulary.decode_tf(padded).numpy()]
    assert shown == [vocabulary.decode(row) for row in ids]


def test_vocabularies_are_equal_by_fingerprint(vocabulary, tmp_path):
    other = type(vocabulary)(Tokenizer.builtin())
    assert vocabulary == other
    assert hash(vocabulary) == hash(other)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    assert vocabulary != type(vocabulary)(Tokenizer.from_folder(tmp_path))
    assert vocabulary.vocab_size == Tokenizer.builtin().vocab_size
    assert (vocabulary.pad_id, vocabulary.unk_id) == (0, 1)
    assert (vocabulary.bos_id, vocabulary.eos_id) == (2, None)


def test_a_reference_is_json_and_only_once_a_question(registry, made_up):
    from panda_jax.tasks import features

    spec = specs.get("copa")
    task = registry.task("copa", tokenizer=TOKENIZER, data_dir=made_up)
    lengths = features.sequence_lengths(spec, 32)
    rows = list(
        task.get_dataset(lengths, "train", shuffle=False).as_numpy_iterator()
    )
    assert [int(row["question"]) for row in rows] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    assert all(row["reference"] == b"" for row in rows[1::2])
    labels = [json.loads(row["reference"])["label"] for row in rows[::2]]
    assert [int(row["targets"]) for row in rows[::2]] == [1 - x for x in labels]
