"""Made-up copies of TFDS's data sets, in its own formats, read as rows."""

import pathlib
import shutil
import types

import made_up_data
import pytest
from panda_jax.tasks import sources, specs, views
from panda_jax.tasks.spec import SPLITS

from panda_jax.data import loading
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.errors import UserError

BACKED = [name for name in specs.names() if specs.get(name).tfds]
BYTES = TextTokenizer.of_bytes()
NO_LABEL = -1  # as TFDS marks rows of a test split


@pytest.fixture(scope="module")
def tfds():
    # Slow to import.
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch):
    monkeypatch.delenv("PANDA_DATA_DIR", raising=False)


# --- every task --------------------------------------------------------------

_PAIR = {"premise": "It rained.", "hypothesis": "It was wet. "}
_TEXTS = {"sentence1": "One é.", "sentence2": "Two\ttabs."}
_CONTEXT = "The cat sat on the mat."
_QUESTION = {"paragraph": "Ann ran.", "question": "Who?"}
_NEWS = {
    "passage": "Ann met Bo.\n@highlight\nThey met",
    "query": "@placeholder",
}

# Task -> (what TFDS holds, the row it means).  Two rows each, so that classes
# are told apart.
EXAMPLES = {
    "cb": [
        ({**_PAIR, "label": "neutral"}, {**_PAIR, "label": 2}),
        ({**_PAIR, "label": "contradiction"}, {**_PAIR, "label": 1}),
    ],
    "rte": [
        ({**_PAIR, "label": "not_entailment"}, {**_PAIR, "label": 1}),
        ({**_PAIR, "label": "entailment"}, {**_PAIR, "label": 0}),
    ],
    "mnli": [
        ({**_PAIR, "label": "contradiction"}, {**_PAIR, "label": 2}),
        ({**_PAIR, "label": "neutral"}, {**_PAIR, "label": 1}),
    ],
    "copa": [
        (
            {
                "premise": "It rained.",
                "question": question,
                "choice1": "It was wet.",
                "choice2": "It was dry.",
                "label": f"choice{label + 1}",
            },
            {
                "premise": "It rained.",
                "question": question,
                "choice1": "It was wet.",
                "choice2": "It was dry.",
                "label": label,
            },
        )
        for label, question in enumerate(("effect", "cause"))
    ],
    "wic": [
        (
            {
                **_TEXTS,
                "word": "bank",
                "start1": 1,
                "end1": 2,
                "start2": 3,
                "end2": 4,
                "label": name,
            },
            {**_TEXTS, "word": "bank", "label": label},
        )
        for label, name in enumerate(("False", "True"))
    ],
    "wsc": [
        (
            {
                "text": "Ann said she ran.",
                "span1_text": "Ann",
                "span1_index": 0,
                "span2_text": "she",
                "span2_index": 2,
                "label": name,
            },
            {
                "text": "Ann said * she * ran.",
                "span1_text": "Ann",
                "span2_text": "she",
                "label": label,
            },
        )
        for label, name in enumerate(("False", "True"))
    ],
    "boolq": [
        (
            {"passage": "It is.", "question": "is it", "label": name},
            {"passage": "It is.", "question": "is it", "label": label},
        )
        for label, name in enumerate(("False", "True"))
    ],
    "multirc": [
        (
            {
                **_QUESTION,
                "answer": "Ann",
                "label": "True",
                "idx": {"paragraph": 3, "question": 1, "answer": 7},
            },
            {**_QUESTION, "answer": "Ann", "label": 1, "question_id": "3-1"},
        ),
        (
            {
                **_QUESTION,
                "answer": "Bo",
                "label": "False",
                "idx": {"paragraph": 31, "question": 1, "answer": 8},
            },
            {**_QUESTION, "answer": "Bo", "label": 0, "question_id": "31-1"},
        ),
    ],
    "record": [
        (
            {
                **_NEWS,
                "entities": ["Ann", "Bo"],
                "answers": answers,
                "idx": {"passage": 0, "query": 1},
            },
            {**_NEWS, "entities": ["Ann", "Bo"], "answers": answers},
        )
        for answers in (["Bo"], ["Ann", "Bo"])
    ],
    "cola": [
        (
            {"sentence": "Ok.", "label": name},
            {"sentence": "Ok.", "label": label},
        )
        for label, name in enumerate(("unacceptable", "acceptable"))
    ],
    "sst2": [
        (
            {"sentence": "Ok.", "label": name},
            {"sentence": "Ok.", "label": label},
        )
        for label, name in enumerate(("negative", "positive"))
    ],
    "mrpc": [
        ({**_TEXTS, "label": name}, {**_TEXTS, "label": label})
        for label, name in enumerate(("not_equivalent", "equivalent"))
    ],
    "stsb": [
        ({**_TEXTS, "label": score}, {**_TEXTS, "label": score})
        for score in (0.0, 4.75)
    ],
    "qqp": [
        (
            {"question1": "a?", "question2": "b?", "label": name},
            {"question1": "a?", "question2": "b?", "label": label},
        )
        for label, name in enumerate(("not_duplicate", "duplicate"))
    ],
    "qnli": [
        (
            {"question": "who?", "sentence": "Ann.", "label": name},
            {"question": "who?", "sentence": "Ann.", "label": label},
        )
        for label, name in enumerate(("entailment", "not_entailment"))
    ],
    "squad": [
        (
            {
                "id": "56be",
                "title": "Cats",
                "context": _CONTEXT,
                "question": "Who sat?",
                "answers": {"text": texts, "answer_start": starts},
            },
            {
                "context": _CONTEXT,
                "question": "Who sat?",
                "answers": texts,
                "starts": starts,
            },
        )
        for texts, starts in (
            (["cat"], [4]),
            (["The cat", "cat", "cat sat"], [0, 4, 4]),
        )
    ],
    "conll03": [
        (
            {
                "tokens": ["Ann", "Lee", "of", "Rome", "é", "é"],
                "pos": ["NNP"] * 6,
                "chunks": ["O"] * 6,
                "ner": ["B-PER", "I-PER", "O", "B-LOC", "B-MISC", "I-MISC"],
            },
            {
                "words": ["Ann", "Lee", "of", "Rome", "é", "é"],
                "tags": [1, 2, 0, 5, 7, 8],
            },
        ),
        (
            {"tokens": ["No"], "pos": ["UH"], "chunks": ["O"], "ner": ["O"]},
            {"words": ["No"], "tags": [0]},
        ),
    ],
}


def _prepare(tfds, folder, name, splits, *, features=None):
    """Writes what TFDS's own preparation of the data set `name` would.

    Args:
      tfds: the module.
      folder: TFDS's data folder.
      name: of the data set in TFDS.
      splits: TFDS's split -> examples; an `idx` is their number by default.
      features: in place of the data set's own.

    Returns:
      The folder of the version.
    """
    import tensorflow as tf

    builder = tfds.builder(name, data_dir=folder)
    features = features or builder.info.features
    version = pathlib.Path(builder.data_dir)
    version.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=version, dataset_name=builder.name, filetype_suffix="tfrecord"
    )
    infos = []
    for split, examples in splits.items():
        path = version / f"{builder.name}-{split}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number, example in enumerate(examples):
                row = {"idx": number} if "idx" in features else {}
                encoded = features.encode_example(row | example)
                writer.write(features.serialize_example(encoded))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(examples)],
                num_bytes=1,
                filename_template=template.replace(split=split),
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=version,
        features=features,
        version=str(builder.version),
        filename_template=template,
        split_infos=infos,
    )
    return version


@pytest.mark.parametrize("name", BACKED)
def test_a_prepared_copy_is_read_as_rows(name, tfds, tmp_path):
    spec = specs.get(name)
    written = [example for example, _ in EXAMPLES[name]]
    meant = [row for _, row in EXAMPLES[name]]
    splits = [spec.tfds_splits.get(split, split) for split in SPLITS]
    folders = dict(zip(splits, (written, written[:1]), strict=True))
    _prepare(tfds, tmp_path, spec.tfds, folders)
    source = sources.find(spec, tfds_data_dir=tmp_path)
    assert source.rows("train") == meant
    assert source.rows("validation") == meant[:1]
    for row in source.rows("train"):
        assert all(type(row[field]) is str for field in spec.fields)
    assert source.fingerprint("train") is not None


# One of each kind and format; that rows are right is tested for all above.
THROUGH = ["boolq", "record", "mnli", "qnli", "qqp", "squad", "conll03"]


@pytest.mark.parametrize("name", THROUGH)
def test_a_prepared_copy_goes_through_both_views(name, tfds, tmp_path, tiny):
    spec = specs.get(name)
    written = [example for example, _ in EXAMPLES[name]]
    splits = [spec.tfds_splits.get(split, split) for split in SPLITS]
    _prepare(tfds, tmp_path, spec.tfds, dict.fromkeys(splits, written))
    loaded = loading.load_examples(
        name,
        "train",
        tokenizer=tiny.tokenizer,
        max_length=48,
        tfds_data_dir=tmp_path,
    )
    # Made-up files of every task are trained on in test_tasks.
    assert len(loaded) > 0
    assert loaded.tokens[0, ..., 0].any()
    texts = loading.load_text_examples(
        name, "train", tokenizer=BYTES, tfds_data_dir=tmp_path
    )
    for i, (_, row) in enumerate(EXAMPLES[name]):
        said, target = views.text_example(spec, row)
        assert BYTES.decode(texts.inputs[i]) == said
        assert BYTES.decode(texts.targets[i]) == target


# --- faults and oddities -----------------------------------------------------


def _cb(tfds, folder, names, labels):
    features = tfds.features.FeaturesDict(
        {
            "premise": tfds.features.Text(),
            "hypothesis": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=names),
        }
    )
    examples = [
        {"premise": a, "hypothesis": b, "label": label}
        for (a, b), label in zip(made_up_data.PAIRS, labels, strict=False)
    ]
    splits = {"train": examples, "validation": examples[:2]}
    return _prepare(tfds, folder, "super_glue/cb", splits, features=features)


def test_classes_are_told_apart_by_name(tfds, tmp_path):
    # TFDS's order of the classes, on purpose not ours.
    names = ["neutral", "entailment", "contradiction"]
    folder = _cb(tfds, tmp_path, names, [0, 1, 2, 0, 1])
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    rows = source.rows("train")
    found = {(row["premise"], row["hypothesis"]): row["label"] for row in rows}
    assert found == dict(zip(made_up_data.PAIRS, [2, 0, 1, 2, 0], strict=True))
    assert len(source.rows("validation")) == 2
    # Neither names nor sizes give another content away, nor do times.
    first = source.fingerprint("train")
    (shard,) = folder.glob("*-train.*")
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    assert source.fingerprint("train") not in (first, None)
    shutil.rmtree(folder)
    assert source.fingerprint("train") is None


def test_foreign_classes_are_refused(tfds, tmp_path):
    _cb(tfds, tmp_path, ["yes", "no", "perhaps"], [0, 1, 2])
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    with pytest.raises(UserError, match="super_glue/cb train, row 0.*'label'"):
        source.rows("train")


def test_a_row_without_a_label_is_refused(tfds, tmp_path):
    labels = list(specs.get("cb").labels)
    _cb(tfds, tmp_path, labels, [0, 1, NO_LABEL])
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    with pytest.raises(UserError, match="train, row 2, .*'label': got -1,"):
        source.rows("train")


def test_foreign_tags_are_refused(tfds, tmp_path):
    spec = specs.get("conll03")
    features = tfds.features.FeaturesDict(
        {
            "tokens": tfds.features.Sequence(tfds.features.Text()),
            "ner": tfds.features.Sequence(
                tfds.features.ClassLabel(names=["O", "B-PERSON"])
            ),
        }
    )
    splits = {"dev": [{"tokens": ["No", "Ann"], "ner": [0, 1]}]}
    _prepare(tfds, tmp_path, spec.tfds, splits, features=features)
    source = sources.find(spec, tfds_data_dir=tmp_path)
    with pytest.raises(UserError, match="dev, row 0, .*'tags'.*B-PERSON"):
        source.rows("validation")


def test_the_empty_sentence_that_tfds_adds_is_left_out(tfds, tmp_path):
    spec = specs.get("conll03")
    empty = {"tokens": [], "pos": [], "chunks": [], "ner": []}
    written = [example for example, _ in EXAMPLES["conll03"]]
    splits = {"train": [*written, empty], "dev": [*written, empty]}
    _prepare(tfds, tmp_path, spec.tfds, splits)
    source = sources.find(spec, tfds_data_dir=tmp_path)
    assert source.rows("train") == [row for _, row in EXAMPLES["conll03"]]


def test_a_task_without_tfds_says_so(tfds, tmp_path):
    source = sources.find(specs.get("conll04"), tfds_data_dir=tmp_path)
    with pytest.raises(UserError, match="'conll04' is not in TFDS.*--data_dir"):
        source.rows("train")


def test_a_damaged_copy_says_what_to_do(tfds, tmp_path):
    folder = _cb(tfds, tmp_path, list(specs.get("cb").labels), [0, 1, 2])
    (path,) = folder.glob("*train.tfrecord*")
    path.write_bytes(path.read_bytes()[:-5])
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    with pytest.raises(UserError, match="TFDS could not deliver.*DataLoss"):
        source.rows("train")
    assert len(source.rows("validation")) == 2


class _Builder:
    """A TFDS builder on a machine with or without a network."""

    def __init__(self, urls, homepage):
        self.url_infos = urls
        self.info = types.SimpleNamespace(homepage=homepage)
        self.downloads = 0

    def download_and_prepare(self):
        self.downloads += 1
        raise TimeoutError("the server is slow")


_FILES = ("https://data.example.org/CB.zip",)
_HOME = "https://data.example.org/cb"


@pytest.mark.parametrize(
    ("urls", "homepage", "network", "downloads"),
    [
        # Without a network TFDS would try again for minutes.
        (_FILES, None, False, 0),
        (_FILES, None, True, 1),
        (None, _HOME, False, 0),
        (None, _HOME, True, 1),
        # Nothing is known, so TFDS must try.
        (None, None, False, 1),
    ],
)
def test_tfds_that_cannot_deliver_says_what_to_do(
    urls, homepage, network, downloads, tfds, tmp_path, monkeypatch
):
    from panda_jax.tasks import from_tfds

    def resolve(host, port):
        assert host == "data.example.org"
        if not network:
            raise OSError("unknown name")

    builder = _Builder(urls, homepage)
    monkeypatch.setattr(from_tfds.tfds, "builder", lambda *a, **k: builder)
    monkeypatch.setattr(from_tfds.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(from_tfds.urllib.request, "getproxies", dict)
    source = sources.find(specs.get("cb"), tfds_data_dir=tmp_path)
    assert source.fingerprint("train") is None
    why = "the server is slow" if downloads else "data.example.org"
    hint = f"{why}.*--data_dir.*--tfds_data_dir.*toy_sentiment"
    with pytest.raises(UserError, match=hint):
        source.rows("train")
    assert builder.downloads == downloads
