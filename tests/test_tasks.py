import dataclasses
import os
import pathlib

import made_up_data
import numpy as np
import pytest
from panda_jax.tasks import offline, readers, sources, specs
from panda_jax.tasks.spec import SPLITS, TaskSpec

from panda_jax.errors import UserError
from panda_jax.tokenizer import Tokenizer

FROM_FILES = ["cb", "rte", "mrpc", "cola", "sst2", "stsb"]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return str(made_up_data.write(tmp_path_factory.mktemp("data")))


# --- the table ---------------------------------------------------------------


def test_the_table_is_consistent():
    assert set(specs.names()) >= {*FROM_FILES, *offline.GENERATORS}
    targets = [n for n in specs.names() if specs.get(n).target]
    assert targets == ["cb", "rte", "mrpc", "cola", "stsb"]
    for name in specs.names():
        spec = specs.get(name)
        assert spec.outputs == (len(spec.labels) or 1)
        assert spec.offline == (name in offline.GENERATORS)
        assert spec.offline or sorted(spec.files) == sorted(SPLITS)
        if spec.offline:
            assert spec.outputs == offline.GENERATORS[name][1]


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


# --- the readers -------------------------------------------------------------


@pytest.mark.parametrize("name", FROM_FILES)
def test_made_up_rows_are_read_as_their_authors_meant(name, made_up):
    spec = specs.get(name)
    for split, count in (("train", 5), ("validation", 3)):
        rows = readers.read(spec, split, made_up)
        for i, row in enumerate(rows):
            texts = tuple(row[field].strip() for field in spec.fields)
            assert texts == made_up_data.PAIRS[i][: len(texts)]
        labels = [row["label"] for row in rows]
        want = [i * 1.25 for i in range(count)]
        if name != "stsb":
            want = [i % spec.outputs for i in range(count)]
        assert labels == want


def test_bool_and_int_labels_in_json_are_understood(tmp_path):
    spec = TaskSpec(
        name="flags",
        description="",
        text_a="{text}",
        labels=("no", "yes"),
        reader="jsonl",
        files={"train": ("a.jsonl", "b.jsonl")},
        columns={"text": "passage"},
        label_values={"false": "no", "true": "yes", "1": "yes"},
    )
    (tmp_path / "a.jsonl").write_text('{"passage": "x", "label": true}\n')
    (tmp_path / "b.jsonl").write_text('{"passage": "y\x85z", "label": 1}\n\n')
    rows = readers.read(spec, "train", str(tmp_path))
    assert rows == [{"text": "x", "label": 1}, {"text": "y\x85z", "label": 1}]


GOOD = b'{"premise": "a", "hypothesis": "b", "label": "neutral"}\n'
STSB = b"sentence1\tsentence2\tscore\n"

FAULTS = {
    "bad json": ("cb", GOOD + b'{"premise": "a", \n', 2, "JSON"),
    "no object": ("cb", b"[1, 2]\n", 1, "a JSON object"),
    "missing field": (
        "cb",
        GOOD + b'{"premise": "a", "label": "neutral"}\n',
        2,
        "field 'hypothesis': got 'nothing'.*premise, label",
    ),
    "wrong type": (
        "cb",
        b'{"premise": 3, "hypothesis": "b", "label": "neutral"}\n',
        1,
        "field 'premise': got 3, expected a text",
    ),
    "empty text": (
        "cb",
        b'{"premise": "a", "hypothesis": " ", "label": "neutral"}\n',
        1,
        "field 'hypothesis': got ' '",
    ),
    "unknown label": (
        "cb",
        GOOD + GOOD.replace(b"neutral", b"netural"),
        2,
        "field 'label': got 'netural', expected 'entailment' or",
    ),
    "test row": ("cb", GOOD.replace(b'"neutral"', b"null"), 1, "got None"),
    "label code": ("sst2", b"sentence\tlabel\nfine\t2\n", 2, "'0' or '1'"),
    "class name for a code": (
        "sst2",
        b"sentence\tlabel\nfine\tpositive\n",
        2,
        "got 'positive'",
    ),
    "missing column": (
        "mrpc",
        b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\n",
        1,
        "field 'sentence2'.*column '#2 String'",
    ),
    "wrong column count": (
        "sst2",
        b"sentence\tlabel\nfine\t1\na\tb\t1\n",
        3,
        "expected 2 tab-separated columns, not 3",
    ),
    "wrong column count, no header": (
        "cola",
        b"s\t1\t\tfine\ns\t1\tfine\n",
        2,
        "expected 4 tab-separated columns, not 3",
    ),
    "blank line": ("cola", b"s\t1\t\tfine\n\ns\t1\t\tok\n", 2, "not 1"),
    "score above": ("stsb", STSB + b"a\tb\t5.01\n", 2, "'5.01', .* 0 to 5"),
    "score below": ("stsb", STSB + b"a\tb\t-1\n", 2, "got '-1'"),
    "score nan": ("stsb", STSB + b"a\tb\tnan\n", 2, "got 'nan'"),
    "score text": ("stsb", STSB + b"a\tb\thigh\n", 2, "got 'high'"),
    "nul byte": ("cb", GOOD + b"\0\0\n", 2, "NUL byte"),
    "latin-1": (
        "sst2",
        b"\xef\xbb\xbfsentence\tlabel\nfine\t1\ncaf\xe9\t1\n",
        3,
        "expected UTF-8",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_line_and_field(fault, tmp_path):
    name, data, line, message = FAULTS[fault]
    spec = specs.get(name)
    path = tmp_path / spec.files["train"][0]
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        readers.read(spec, "train", str(tmp_path))
    text = str(caught.value)
    assert text.startswith(f"{path}, line {line}, field ")
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(data, tmp_path):
    path = tmp_path / specs.get("cb").files["train"][0]
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train\.jsonl has no rows"):
        readers.read(specs.get("cb"), "train", str(tmp_path))


def test_missing_folder_and_file_say_the_layout(tmp_path, made_up):
    where = str(tmp_path / "no" / "where")
    with pytest.raises(UserError, match="data folder '.*where'.*--data_dir"):
        readers.read(specs.get("cb"), "train", where)
    layout = r"super_glue/CB/train\.jsonl.*val\.jsonl.*TFDS"
    with pytest.raises(UserError, match=layout):
        readers.read(specs.get("cb"), "train", str(tmp_path))
    with pytest.raises(UserError, match="split 'test'.*train or validation"):
        sources.find(specs.get("cb"), data_dir=made_up).rows("test")


def _real_data() -> str:
    beside = pathlib.Path(__file__).parents[2] / "shared" / "data"
    return os.environ.get("PANDA_DATA_DIR") or str(beside)


@pytest.mark.skipif(
    not os.path.isdir(_real_data()), reason="PANDA_DATA_DIR is not set"
)
@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("cb", 250, 56),
        ("rte", 2490, 277),
        ("mrpc", 3668, 408),
        ("cola", 8551, 1043),
        ("sst2", 67349, 872),
        ("stsb", 5749, 1500),
    ],
)
def test_real_files_have_their_published_row_counts(name, train, validation):
    spec = specs.get(name)
    if not (pathlib.Path(_real_data()) / spec.files["train"][0]).is_file():
        pytest.skip(f"no {name} in this data folder")
    assert len(readers.read(spec, "train", _real_data())) == train
    assert len(readers.read(spec, "validation", _real_data())) == validation


# --- SeqIO -------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry():
    from panda_jax.tasks import registry

    return registry


@pytest.fixture(scope="module")
def vocabulary(registry):
    from panda_jax.tasks.vocabulary import WordPieceVocabulary

    return WordPieceVocabulary(Tokenizer.builtin())


def test_every_task_is_registered_once(registry):
    import importlib

    import seqio

    importlib.reload(registry)
    assert set(specs.names()) <= set(seqio.TaskRegistry.names())
    bound = registry.task("toy_topic", tokenizer=Tokenizer.builtin())
    again = registry.task("toy_topic", tokenizer=Tokenizer.builtin())
    assert bound is again
    assert bound.name.startswith("toy_topic:")
    assert bound.num_input_examples("train") == 2000


def test_a_registered_task_yields_packed_rows(registry, made_up, monkeypatch):
    import seqio

    monkeypatch.setenv("PANDA_DATA_DIR", made_up)
    task = seqio.TaskRegistry.get("mrpc")
    lengths = {"inputs": 16, "segment_ids": 16, "targets": None}
    rows = list(task.get_dataset(lengths, "train", shuffle=False))
    assert len(rows) == 5
    tokenizer = registry.default_tokenizer()
    for i, row in enumerate(rows):
        a, b = tokenizer.encode(made_up_data.PAIRS[i])
        tokens, segments = tokenizer.pair(a, b, 16)
        assert row["inputs"].numpy().tolist() == tokens
        assert row["segment_ids"].numpy().tolist() == segments
        assert row["targets"].numpy() == i % 2


def test_the_converter_pads_and_renames(registry, made_up):
    import seqio
    import tensorflow as tf
    from panda_jax.tasks.features import EncoderFeatureConverter

    tokenizer = Tokenizer.builtin()
    name = registry.task("stsb", tokenizer=tokenizer, data_dir=made_up).name
    dataset = seqio.get_dataset(
        name,
        {"inputs": 80, "segment_ids": 80, "targets": None},
        EncoderFeatureConverter(label_dtype=tf.float32),
        dataset_split="validation",
        shuffle=False,
    )
    rows = list(dataset.as_numpy_iterator())
    assert [float(row["labels"]) for row in rows] == [0.0, 1.25, 2.5]
    for row, texts in zip(rows, made_up_data.PAIRS, strict=False):
        tokens, segments = tokenizer.pair(*tokenizer.encode(texts), 80)
        padding = [0] * (80 - len(tokens))
        assert row["encoder_input_tokens"].tolist() == tokens + padding
        assert row["encoder_segment_ids"].tolist() == segments + padding


def test_templates_are_filled_in_tensorflow(registry):
    import tensorflow as tf
    from panda_jax.tasks.features import format_texts

    rows = tf.data.Dataset.from_tensors({"w": "day", "s": "a day", "label": 1})
    (row,) = format_texts("{s} ask: {w}?", None)(rows).as_numpy_iterator()
    assert row == {"text_a": b"a day ask: day?", "targets": 1}


def test_registered_metrics_are_ours(registry):
    task = registry.task("cola")
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    names = {}
    for metric in task.metric_fns:
        names |= metric([0, 1, 1], logits)
    assert names == {
        "matthews": pytest.approx(0.5),
        "accuracy": pytest.approx(2 / 3),
    }


def test_a_readers_error_passes_tensorflow_unchanged(registry, tmp_path):
    path = tmp_path / "super_glue/CB/train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD + b"{\n")
    task = registry.task("cb", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"train\.jsonl, line 2"):
        task.get_dataset({"inputs": 16}, "train", shuffle=False)


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


# --- TFDS --------------------------------------------------------------------


def _prepare_tfds(folder, *, labels):
    """Writes what TFDS's own preparation of `super_glue/cb` would."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "premise": tfds.features.Text(),
            "hypothesis": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=labels),
            "idx": np.int32,
        }
    )
    version = folder / "super_glue/cb/1.0.2"
    version.mkdir(parents=True)
    for split, count in (("train", 5), ("validation", 2)):
        name = f"super_glue-{split}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(version / name)) as writer:
            for i, (a, b) in enumerate(made_up_data.PAIRS[:count]):
                row = {"premise": a, "hypothesis": b, "label": i % 3, "idx": i}
                encoded = features.encode_example(row)
                writer.write(features.serialize_example(encoded))
    template = tfds.core.ShardedFileTemplate(
        data_dir=version, dataset_name="super_glue", filetype_suffix="tfrecord"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=version,
        features=features,
        version="1.0.2",
        filename_template=template,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[count],
                num_bytes=1,
                filename_template=template.replace(split=split),
            )
            for split, count in (("train", 5), ("validation", 2))
        ],
    )


def test_a_prepared_tfds_copy_is_read(registry, tmp_path, monkeypatch):
    monkeypatch.delenv("PANDA_DATA_DIR", raising=False)
    # TFDS's order of the classes, on purpose not ours.
    _prepare_tfds(tmp_path, labels=["neutral", "entailment", "contradiction"])
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    rows = source.rows("train")
    found = {(row["premise"], row["hypothesis"]): row["label"] for row in rows}
    ids = [2, 0, 1, 2, 0]
    assert found == dict(zip(made_up_data.PAIRS, ids, strict=True))
    assert len(source.rows("validation")) == 2
    first = source.fingerprint("train")
    (tmp_path / "super_glue/cb/1.0.2/more").write_text("x")
    assert source.fingerprint("train") not in (first, None)


def test_foreign_tfds_labels_are_refused(registry, tmp_path, monkeypatch):
    monkeypatch.delenv("PANDA_DATA_DIR", raising=False)
    _prepare_tfds(tmp_path, labels=["yes", "no", "perhaps"])
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    with pytest.raises(UserError, match="super_glue/cb train, row 0.*'label'"):
        source.rows("train")


class _Builder:
    """A TFDS builder on a machine with or without a network."""

    url_infos = ("https://data.example.org/CB.zip",)
    downloads = 0

    def download_and_prepare(self):
        self.downloads += 1
        raise TimeoutError("the server is slow")


@pytest.mark.parametrize("network", [False, True])
def test_tfds_that_cannot_deliver_says_what_to_do(
    network, registry, tmp_path, monkeypatch
):
    from panda_jax.tasks import from_tfds

    def resolve(host, port):
        assert host == "data.example.org"
        if not network:
            raise OSError("unknown name")

    builder = _Builder()
    monkeypatch.setattr(from_tfds.tfds, "builder", lambda *a, **k: builder)
    monkeypatch.setattr(from_tfds.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(from_tfds.urllib.request, "getproxies", dict)
    monkeypatch.delenv("PANDA_DATA_DIR", raising=False)
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    assert source.fingerprint("train") is None
    why = "the server is slow" if network else "data.example.org"
    hint = f"{why}.*--data_dir.*--tfds_data_dir.*toy_sentiment"
    with pytest.raises(UserError, match=hint):
        source.rows("train")
    # Without a network TFDS would try again for minutes.
    assert builder.downloads == network
