"""The readers that are fuzzed: valid files, how they are read, what to change.

`docs/design.md` says which module reads what. Every reader here documents
`UserError` for what it refuses, but for the two caches, which warn and compute
anew.
"""

import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import fuzzing_changes as changes
import made_up_data
import made_up_runs
import msgpack
import numpy as np
import small_spiece
import t5x_writing as writing
import tokenizers
from fuzzing_changes import Change
from panda_jax.tasks import (
    own,
    readers,
    specs,
    submissions,
    unanswered,
    views,
)
from panda_jax.tasks.spec import TaskSpec

from panda_jax import cli
from panda_jax.data import token_cache
from panda_jax.data.examples import Examples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import SPECIALS, Tokenizer
from panda_jax.errors import UserError
from panda_jax.experiments.grid.grid import Grid, expand
from panda_jax.experiments.grid.ledger import Ending, Endings, Ledger
from panda_jax.experiments.ranking.data import Truth
from panda_jax.experiments.report.board import make_boards
from panda_jax.experiments.report.results import read_results, warnings
from panda_jax.interop import (
    hf,
    hf_bert,
    hf_layouts,
    npy,
    panda_release,
    peft,
    prompthub,
    t5x,
    tables,
    tensors,
    torch_files,
    weights,
)
from panda_jax.io import writers
from panda_jax.io.claims import Claims
from panda_jax.io.files import read_json, write_json
from panda_jax.models import trees
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config
from panda_jax.prompts import Prompt
from panda_jax.store import prompt_folders
from panda_jax.training import identity, predictions
from panda_jax.transfer.scores import Scores
from panda_jax.transfer.vector_cache import VectorCache

BERT = BertConfig(
    vocab_size=14,
    width=8,
    layers=2,
    heads=2,
    ffn=6,
    positions=10,
)
T5 = dataclasses.replace(writing.CONFIG, layers=1, decoder_layers=1)
VOCABULARY = [*SPECIALS, "it", "was", "##s", "a", "1", ".", "d", "##ay"]
# Tracing a model to learn its parameters' shapes takes longer than all else.
tables.shapes = functools.lru_cache(tables.shapes)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
      name: of it.
      write: writes valid inputs, each a folder of its own, into a folder.
      read: reads the input in a folder, which was made from one of that name.
      changes: pattern of files' names -> how they are changed by structure.
      guarded: whether links that lead out must be refused.
      climb: changes files so that one names what lies outside; whether it did.
      traced: bytes that it may allocate beyond four times the input.
    """

    name: str
    write: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path, str], Any]
    changes: Mapping[str, tuple[Change, ...]]
    guarded: bool = False
    climb: Callable[[random.Random, dict[str, bytes]], bool] | None = None
    traced: int = 8 << 20


def _vectors(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Backbones.


def params_of(config: BertConfig | T5Config) -> dict[str, Any]:
    """Random parameters of these sizes."""
    rng = np.random.default_rng(0)
    return writing.tree_of(
        {
            path: rng.normal(size=shape).astype(np.float32)
            for path, shape in tables.shapes(config).items()
        }
    )


def _write_backbones(root: pathlib.Path) -> None:
    for name, config in (("bert", BERT), ("t5", T5)):
        (root / name).mkdir()
        hf.save(root / name, params_of(config), config)


def _write_layouts(root: pathlib.Path) -> None:
    """The BERT of a masked language model, by torch, in a chain of modules."""
    place = root / "sentences" / hf_layouts.ENCODER
    place.mkdir(parents=True)
    hf.save(place, params_of(BERT), BERT)
    (place / tensors.SINGLE).unlink()
    named = tables.disassemble(params_of(BERT), hf_bert.bert_table(BERT))
    named = {f"bert.{name}": x for name, x in named.items()}
    named["cls.predictions.bias"] = _vectors(BERT.vocab_size)
    (place / weights.TORCH_SINGLE).write_bytes(_torch(named))
    modules = [
        {"idx": 0, "path": place.name, "type": "x.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "x.Pooling"},
    ]
    text = json.dumps(modules)
    (root / "sentences" / hf_layouts.MODULES).write_text(text)


def _write_shards(root: pathlib.Path) -> None:
    """The BERT in two files."""
    _write_backbones(root)
    shutil.rmtree(root / "t5")
    folder = root / "bert"
    arrays = tensors.read(folder / tensors.SINGLE, fix="")
    (folder / tensors.SINGLE).unlink()
    names = sorted(arrays)
    placed = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        tensors.save(folder / file, {name: arrays[name] for name in part})
        placed |= dict.fromkeys(part, file)
    write_json(folder / tensors.INDEX, {"weight_map": placed})


def _climb_shards(rng: random.Random, files: dict[str, bytes]) -> bool:
    name = rng.choice([n for n in files if n.startswith("model-0")])
    way = rng.choice(("../../outside/bert/", "a/../../../outside/bert/"))
    index = files[tensors.INDEX].replace(name.encode(), f"{way}{name}".encode())
    files[tensors.INDEX] = index
    del files[name]
    return True


def _write_tokenizers(root: pathlib.Path) -> None:
    words = root / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    write_json(words / "tokenizer_config.json", {"do_lower_case": True})
    (root / "whole").mkdir()
    Tokenizer.from_folder(words).save(root / "whole")
    settings = {"do_lower_case": True, "cls_token": {"content": "[CLS]"}}
    token = {"content": "1 day", "lstrip": True}
    settings["added_tokens_decoder"] = {str(len(VOCABULARY)): token}
    write_json(root / "whole" / "tokenizer_config.json", settings)
    shutil.copytree(words, root / "old")
    write_json(root / "old" / "special_tokens_map.json", {"sep_token": "[SEP]"})
    added = {"1 day": len(VOCABULARY)}
    write_json(root / "old" / "added_tokens.json", added)
    write_json(root / "old" / hf_layouts.SENTENCES, {"do_lower_case": True})


def _read_tokenizer(folder: pathlib.Path, seed: str) -> None:
    found = Tokenizer.from_folder(folder)
    found.encode(["It was 1 day.", ""])
    found.encode_with_offsets(["It was a day."])
    found.decode([0, 1, 5, found.vocab_size - 1])
    assert len(found.word_ids) <= found.vocab_size


def _write_pieces(root: pathlib.Path) -> None:
    """SentencePiece without its table of characters, which is 200 kB."""
    model = small_spiece.trained(
        ["it was a day and it was the night"] * 20,
        24,
        normalization_rule_name="identity",
    )
    (root / "pieces").mkdir()
    (root / "pieces" / "spiece.model").write_bytes(model)
    (root / "bytes").mkdir()
    TextTokenizer.of_bytes().save(root / "bytes")
    unigrams = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581it", -1.0),
    ]
    whole = tokenizers.Tokenizer(tokenizers.models.Unigram(unigrams, unk_id=2))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    whole.decoder = tokenizers.decoders.Metaspace()
    whole.add_special_tokens(["<extra_id_0>"])
    (root / "whole").mkdir()
    whole.save(str(root / "whole" / "tokenizer.json"))
    settings = {"extra_ids": 1, "extra_special_tokens": ["<extra_id_0>"]}
    write_json(root / "whole" / "tokenizer_config.json", settings)


def _read_pieces(folder: pathlib.Path, seed: str) -> None:
    found = TextTokenizer.from_folder(folder)
    if found is None:
        raise UserError("says nothing of a vocabulary")
    (ids,) = found.encode(["it was"])
    found.decode([*ids, 2, 3, found.vocab_size + 5, 1])


def _write_legacy(root: pathlib.Path) -> None:
    """With a prompt beside the weights."""
    arrays = writing.t5x_arrays(_flat(), T5)
    arrays["encoder/prompt/prompt/prompt"] = _vectors(3, T5.width)
    writing.write_legacy(root / "legacy", arrays)


def _read_legacy(folder: pathlib.Path, seed: str) -> None:
    vectors, _ = t5x.read_prompt(folder)
    assert np.isfinite(vectors).all()
    t5x.load_t5x(folder)


def _write_orbax(root: pathlib.Path) -> None:
    entries = {}
    arrays = writing.t5x_arrays(_flat(), T5, scanned="{}")
    for path, array in arrays.items():
        keys = ("target", *path.split("/"))
        writing.write_zarr(root / "orbax" / ".".join(keys), array)
        entries[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {"value_type": "jax.Array"},
        }
    write_json(root / "orbax" / "_METADATA", {"tree_metadata": entries})


@functools.cache
def _flat() -> dict[str, np.ndarray]:
    return writing.params_of(T5)


def _climb_legacy(rng: random.Random, files: dict[str, bytes]) -> bool:
    """Another array of the index lies outside, where it is the right one."""
    index = msgpack.unpackb(files["checkpoint"])
    embedding = index["optimizer"]["target"]["token_embedder"]["embedding"]
    place = embedding["kvstore"]["path"]
    way = rng.choice(("../../outside/legacy/", "./a/../../../outside/legacy/"))
    embedding["kvstore"]["path"] = way + place
    files["checkpoint"] = msgpack.packb(index)
    return True


# Prompts.


def _torch(named: Mapping[str, np.ndarray]) -> bytes:
    """What `torch.save` writes of a dictionary of tensors."""
    import zipfile

    def text(word: str) -> bytes:
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little")

    pickle = b"\x80\x02}("
    for i, (name, array) in enumerate(named.items()):
        steps = [s // array.itemsize for s in array.strides]
        pickle += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        pickle += text("storage") + b"ctorch\nFloatStorage\n" + text(str(i))
        pickle += text("cpu") + number(array.size) + b"tQ" + number(0)
        for each in (array.shape, steps):
            pickle += b"(" + b"".join(map(number, each)) + b"t"
        pickle += b"\x89ccollections\nOrderedDict\n)RtR"
    pickle += b"u."
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("file/data.pkl", pickle)
        archive.writestr("file/byteorder", b"little")
        for i, array in enumerate(named.values()):
            archive.writestr(f"file/data/{i}", array.tobytes())
        archive.writestr("file/version", b"3\n")
    return made.getvalue()


def _write_torch(root: pathlib.Path) -> None:
    seeds = {
        "plain": {"soft_embeds": _vectors(4, 8)},
        "state": {
            "model.prompt_embeddings.weight": _vectors(4, 8),
            "bias": _vectors(3),
        },
    }
    for name, named in seeds.items():
        (root / name).mkdir()
        (root / name / "prompt.bin").write_bytes(_torch(named))


@functools.cache
def _bert_params() -> dict[str, Any]:
    return params_of(BERT)


def _write_release(root: pathlib.Path) -> None:
    """A checkpoint of the released code, its encoder beside the prompt."""
    table = hf_bert.bert_table(BERT)
    encoder = tables.disassemble(_bert_params(), table)
    named = {f"bert.{name}": array for name, array in encoder.items()}
    named[panda_release.VECTORS] = _vectors(3, BERT.layers * 2 * BERT.width)
    named["classifier.weight"] = _vectors(2, BERT.width)
    named["classifier.bias"] = _vectors(2)
    (root / "panda").mkdir()
    path = root / "panda" / panda_release.FILE
    path.write_bytes(_torch({k: named[k] for k in sorted(named)}))


def _prompts() -> dict[str, tuple[Prompt, prompt_folders.PromptInfo]]:
    head = {"kernel": _vectors(8, 3), "bias": _vectors(3)}
    made = {
        "deep": Prompt(_vectors(2, 2, 3, 2, 4), head),
        "shallow": Prompt(_vectors(5, 8), {}),
        "none": Prompt(_vectors(2, 2, 0, 2, 4), head),
    }
    return {
        name: (
            prompt,
            prompt_folders.PromptInfo(
                task="cb",
                backbone="b",
                fingerprint="f" * 16,
                kind=prompt.kind,
                method="prompt",
                scores={"accuracy": 0.5},
                labels=["a", "b", "c"] if prompt.head else [],
                versions={"jax": "1"},
            ),
        )
        for name, prompt in made.items()
    }


def _write_prompts(root: pathlib.Path) -> None:
    for name, (prompt, info) in _prompts().items():
        place = root / name
        # One is that of a run folder.
        prompt_folders.save_prompt(
            place / "prompt" if name == "shallow" else place, prompt, info
        )


def _read_prompt(folder: pathlib.Path, seed: str) -> None:
    found = prompt_folders.load_prompt(folder)
    # What is taken can be written, and is the same then; in the folder, which
    # is watched.
    with tempfile.TemporaryDirectory(dir=folder) as there:
        place = pathlib.Path(there) / "prompt"
        again = prompt_folders.save_prompt(place, found.prompt, found.info)
        same = trees.content_hash(prompt_folders.load_prompt(place).prompt)
        assert again.info == found.info
        assert same == trees.content_hash(found.prompt)


def _write_adapters(root: pathlib.Path) -> None:
    for name, (prompt, info) in _prompts().items():
        if name == "none":
            continue
        prompt_folders.save_prompt(root / name, prompt, info)
        (root / name / prompt_folders.INFO).unlink()
    old = root / "old"
    shutil.copytree(root / "shallow", old)
    (old / peft.TENSORS).unlink()
    named = {"prompt_embeddings": _vectors(5, 8)}
    (old / peft.TORCH_TENSORS).write_bytes(_torch(named))
    factored = root / "factored"
    shutil.copytree(root / "shallow", factored)
    config = read_json(factored / peft.CONFIG, what="configuration")
    config |= {"peft_type": "MULTITASK_PROMPT_TUNING", "task_type": None}
    write_json(factored / peft.CONFIG, config)
    P, D = config["num_virtual_tokens"], config["token_dim"]
    named = {
        peft.VECTORS: _vectors(P, D),
        peft.COLUMNS: _vectors(1, P, 2),
        peft.ROWS: _vectors(1, 2, D),
    }
    tensors.save(factored / peft.TENSORS, named)


def _write_npy(root: pathlib.Path) -> None:
    (root / "plain").mkdir()
    npy.write(root / "plain" / "p.npy", _vectors(4, 8))


# Caches.


def _write_vectors(root: pathlib.Path) -> None:
    (root / "cache").mkdir()
    os.environ["PANDA_CACHE_DIR"] = str(root / "cache")
    VectorCache().put("ab" * 32, _vectors(4, 8))


def _read_vectors(folder: pathlib.Path, seed: str) -> None:
    os.environ["PANDA_CACHE_DIR"] = str(folder)
    cache = VectorCache()
    if cache.get("ab" * 32) is None:
        raise UserError("computed anew")


class _Rows:
    """A source of rows that nobody reads."""

    def fingerprint(self, split: str) -> str:
        return "0"


_TOKENS = {"cb": (4,), "stsb": (4,), "conll03": (4, 6), "squad": (4, 2)}


def _cached(folder: pathlib.Path, task: str, *, fill: Callable) -> Examples:
    return token_cache._cached(
        specs.get(task),
        "train",
        _Rows(),  # pyright: ignore
        name=task,
        key="",
        folder=folder,
        fill=fill,
        parse=functools.partial(token_cache._examples, specs.get(task)),
    )


def _write_tokens(root: pathlib.Path) -> None:
    for task, shape in _TOKENS.items():
        (root / task).mkdir()
        number = np.float32 if task == "stsb" else np.int32
        arrays = {
            "tokens": np.arange(24, dtype=np.int32).reshape(4, 6),
            "segments": np.zeros((4, 6), np.uint8),
            "cut": np.zeros(4, bool),
            "labels": np.ones(shape, number),
            "question": np.array([0, 1, 1, 2], np.int32),
            "references": np.frombuffer(b"[{},{},{}]", np.uint8),
        }
        if task == "squad":
            arrays["char_starts"] = np.ones((4, 6), np.int32)
            arrays["char_ends"] = np.ones((4, 6), np.int32)
        _cached(root / task, task, fill=lambda arrays=arrays: arrays)


def _read_tokens(folder: pathlib.Path, seed: str) -> None:
    def fill() -> dict[str, np.ndarray]:
        raise UserError("filled again")

    found = _cached(folder, seed, fill=fill)
    found.batch(np.arange(len(found)))
    assert found.fingerprint
    assert found.questions <= len(found.tokens)


# Data.


def _write_data(tasks: tuple[str, ...], root: pathlib.Path) -> None:
    whole = made_up_data.write(root / "whole")
    for task in tasks:
        spec = specs.get(task)
        for split in ("train", "validation"):
            for path in readers.paths(spec, split, str(whole)):
                target = root / task / path.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    shutil.rmtree(whole)


def _read_data(folder: pathlib.Path, seed: str) -> None:
    spec = specs.get(seed)
    for split in ("train", "validation"):
        for row in readers.read(spec, split, str(folder)):
            views.text_example(spec, row)
            json.dumps(views.reference(spec, row)).encode()


_ROWS = {
    "cb": {"premise": "It was late.", "hypothesis": "It was late."},
    "wsc": {
        "text": "it, it",
        "target": {"span1_text": "a", "span2_text": "it", "span2_index": 1},
    },
    "multirc": {"paragraph": "a b", "question": "c?", "answer": "d"},
    "record": {
        "passage": "Ida ran.",
        "query": "@placeholder ran.",
        "entities": ["Ida", "Per"],
    },
    "squad": {"context": "Ida ran.", "question": "Who ran?"},
    "conll03": {"words": ["Ida", "ran"]},
    "conll05": {"words": ["Ida", "ran"], "predicate": 1},
}


def _write_rows(root: pathlib.Path) -> None:
    for task, row in _ROWS.items():
        (root / task).mkdir()
        # As flat rows of this task are known; others by their number.
        parts = ("paragraph", "question", "answer")
        rows = [{**row, "id": n} for n in range(3)]
        if task in submissions.FILES and task != "squad":
            rows = [{**row, "idx": n} for n in range(3)]
        if task == "multirc":
            rows = [{**row, "idx": dict.fromkeys(parts, n)} for n in range(3)]
        lines = "".join(f"{json.dumps(each)}\n" for each in rows)
        (root / task / "rows.jsonl").write_text(lines)


_POSED = 100


def _answered(spec: TaskSpec, given: Any, **options: Any) -> None:
    """Reads rows as `predict` does, and writes what it would."""
    # All are read; of thousands, posing and writing some says the same.
    asked = unanswered.read(spec, given, **options)[:_POSED]
    rows = []
    for each in asked:
        inputs = views.text_example(spec, each.row)
        if spec.kind != "tags":
            inputs = views.encoder_texts(spec, each.row)
        json.dumps([inputs, views.reference(spec, each.row)]).encode()
        said = each.row[spec.choices[0]][0] if spec.listed_choices else "x"
        if spec.labels and spec.kind != "tags":
            said = spec.labels[0]
        rows.append({**predictions._head(each, True), "prediction": said})
    for form in ("jsonl", "csv"):
        predictions.written(rows, form).encode()
    if spec.name in submissions.FILES and spec.kind != "regression":
        keyed = [
            {**each.key, "prediction": row["prediction"]}
            for each, row in zip(asked, rows, strict=True)
        ]
        submissions.text(spec.name, keyed).encode()


def _read_rows(folder: pathlib.Path, seed: str) -> None:
    _answered(specs.get(seed), folder / "rows.jsonl")


def _write_asked(tasks: tuple[str, ...], root: pathlib.Path) -> None:
    """The development files of some tasks, each as `rows` and its ending."""
    whole = made_up_data.write(root / "whole")
    for task in tasks:
        (root / task).mkdir()
        paths = readers.paths(specs.get(task), "validation", str(whole))
        for path in sorted(set(paths)):
            shutil.copy(path, root / task / f"rows{path.suffix}")
    shutil.rmtree(whole)


def _read_asked(folder: pathlib.Path, seed: str) -> None:
    names = sorted(map(str, folder.glob("rows*")), reverse=True)
    _answered(specs.get(seed), ",".join(names) or str(folder / "rows"))


def _read_stdin(folder: pathlib.Path, seed: str) -> None:
    """The same through stdin, whose format is sniffed."""
    (path,) = folder.glob("rows*")
    given, sys.stdin = (
        sys.stdin,
        io.TextIOWrapper(io.BytesIO(path.read_bytes())),
    )
    try:
        _answered(specs.get(seed), "-")
    finally:
        sys.stdin = given


# Endings of tables -> rows of the user's own; lists where a format has them.
_OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "csv": (
        {"id": "0", "body": 'He said "no",\nand left.', "y": "a"},
        {"id": "1", "body": "It was late.", "y": "b"},
    ),
    "tsv": (
        {"body": "a b", "other": "c", "y": "1"},
        {"body": "d", "other": "e", "y": "2.5"},
    ),
    "jsonl": (
        {"pair": {"a": "x", "b": 3}, "meta": {"gold": True}, "id": 7},
        {"pair": {"a": "y", "b": "é"}, "meta": {"gold": False}, "id": 8},
    ),
    "json": (
        {"q": "Why?", "all": ["x", "y"], "right": "y"},
        {"q": "Who?", "all": ["z", "w"], "right": 0},
    ),
    "conll": (
        {"words": ["Ida", "ran"], "tags": ["B-PER", "O"]},
        {"words": ["Per"], "tags": ["B-PER"]},
    ),
    "parquet": (
        {"body": ["Ida", "ran"], "y": ["B-PER", "O"], "id": 1},
        {"body": ["Per"], "y": ["B-PER"], "id": 2},
    ),
}
_NAMED: dict[str, dict[str, Any]] = {
    "csv": {"text": "body", "label": "y"},
    "tsv": {"text": "body,other", "label": "y", "kind": "regression"},
    "jsonl": {"text": "pair.a,pair.b", "label": "meta.gold"},
    "json": {"text": "q,all", "label": "right"},
    "conll": {"text": "0", "label": "1"},
    "parquet": {"text": "body", "label": "y"},
}


def _write_own(endings: tuple[str, ...], root: pathlib.Path) -> None:
    for ending in endings:
        (root / ending).mkdir()
        path = root / ending / f"rows.{ending}"
        rows = list(_OWN[ending]) * 2
        if ending == "parquet":
            import pyarrow
            from pyarrow import parquet

            # As much of it the rows' own as may be, and as it is.
            table = pyarrow.Table.from_pylist(rows * 40)
            parquet.write_table(
                table, path, compression="none", use_dictionary=False
            )
        elif ending == "csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif ending == "tsv":
            lines = [rows[0], *(row.values() for row in rows)]
            path.write_text("".join("\t".join(x) + "\n" for x in lines))
        elif ending == "conll":
            sentences = [
                "".join(
                    f"{word} {tag}\n"
                    for word, tag in zip(*row.values(), strict=True)
                )
                for row in rows
            ]
            path.write_text("\n".join(sentences))
        elif ending == "json":
            write_json(path, rows)
        else:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _read_own(folder: pathlib.Path, seed: str) -> None:
    """As training does, and as predicting does with the task that was made."""
    path = folder / f"rows.{seed}"
    known = own.add(
        {"train": _own_rows(seed)}, name="fuzzed_known", **_NAMED[seed]
    )
    errors = []
    for use in (
        lambda: _trained(path, seed),
        lambda: _answered(known, path),
    ):
        try:
            use()
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _own_rows(ending: str) -> list[dict[str, Any]]:
    rows = list(_OWN[ending]) * 2
    if ending != "conll":
        return rows
    return [
        {f"column {i}": value for i, value in enumerate(row.values())}
        for row in rows
    ]


def _trained(path: pathlib.Path, seed: str) -> None:
    spec = own.add({"train": path}, name="fuzzed", **_NAMED[seed])
    for split in ("train", "validation"):
        for row in own.OwnSource(spec).rows(split)[:_POSED]:
            views.text_example(spec, row)
            json.dumps(views.reference(spec, row)).encode()


# Tables, runs, grids and gin.


def _write_scores(root: pathlib.Path) -> None:
    (root / "scores").mkdir()
    names = ("a", "b")
    found = Scores(names, names, {"on": _vectors(2, 2), "x": _vectors(2, 2)})
    found.to_csv(root / "scores" / "scores.csv")


def _read_scores(folder: pathlib.Path, seed: str) -> None:
    path = folder / "scores.csv"
    found = Scores.from_csv(path)
    found.top(found.targets[0])
    Scores.by_backbone(path)


def _write_truth(root: pathlib.Path) -> None:
    (root / "truth").mkdir()
    text = "source,target,seed,backbone,score\na,b,0,x,0.5\nb,b,1,x,1e-3\n"
    (root / "truth" / "truth.csv").write_text(text)


def _read_truth(folder: pathlib.Path, seed: str) -> None:
    for found in Truth.by_backbone(folder / "truth.csv").values():
        assert found.values.shape == found.seeds.shape[1:]


_GRID = {
    "backbones": "random:bert-tiny",
    "sources": "toy_sentiment",
    "targets": "toy_review",
    "methods": "prompt,pot",
}


@functools.cache
def _plan() -> Any:
    return expand(Grid(**_GRID))


def _write_runs(root: pathlib.Path) -> None:
    for number, method in enumerate(("prompt", "pot", "panda", "panda")):
        made_up_runs.write_run(
            root / "runs",
            f"{number}",
            value=0.5,
            method=method,
            source="mrpc" if method == "pot" else None,
            run_id=f"run {number}",
            settings={"dtype": "float32", "epochs": number},
            needs={"development data": "f" * 16},
        )
    made_up_runs.fail(root / "runs", "failed", "diverged", task="cb")
    Ledger(_plan(), root / "grid").write_plan()
    run = _plan().runs[0]
    made_up_runs.write_run(root / "grid", run.folder, value=0.5)


def _read_runs(folder: pathlib.Path, seed: str) -> None:
    found = read_results(folder)
    warnings(found.runs, found.left_out)
    if found.runs:
        make_boards(found)


_ABOUT = {
    "run_id": "cb-prompt-s0-0",
    "settings": {"task": "cb", "seed": 0},
    "needs": {"source": None},
    "fingerprints": {"training data": "f"},
}


def _write_begun(root: pathlib.Path) -> None:
    made_up_runs.write_run(
        root,
        "run",
        value=0.5,
        steps=3,
        seconds=1.5,
        source=None,
        run_id=_ABOUT["run_id"],
    )
    write_json(root / "run" / "run.json", _ABOUT)
    lines = [{"step": i, "loss": 0.5 / i, "note": "é"} for i in (1, 2, 3)]
    text = "".join(map(writers._line, [*lines, {"step": 4, "x": float("nan")}]))
    (root / "run" / writers.FILE_NAME).write_text(text, encoding="utf-8")


def _read_begun(folder: pathlib.Path, seed: str) -> None:
    """As a run does that is started again."""
    try:
        identity.same_run(folder, _ABOUT)
        result = identity.done_result(folder)
        if result is not None:
            f"{result['best']['value']:.4f} {result['seconds']:.0f}"
    finally:
        records = writers.read_metrics(folder / writers.FILE_NAME)
        "".join(map(writers._line, records)).encode()


def _write_grid(root: pathlib.Path) -> None:
    """A grid with a claim, a result and a failure, as one is left."""
    folder = root / "grid"
    ledger = Ledger(_plan(), folder)
    claims = Claims(folder / "claims")
    for group in _plan().groups[:2]:
        claim = claims.take(group.name)
        assert claim is not None
        claim.release()
        (path,) = (folder / "claims" / group.name).rglob("claim.json")
        write_json(path, {**read_json(path), "released": False})
    first, second, *_ = _plan().runs
    made_up_runs.write_run(
        folder,
        first.folder,
        value=0.5,
        seconds=3.0,
        task=first.run.task,
        backbone=first.run.backbone,
    )
    ledger.fail(second, UserError("diverged"))
    ledger.own_checkpoints(first.fleet, [first.lane])
    Endings(folder / "ended").tell(
        Ending(second.fleet, {first.lane: 3.0}, {second.lane: "diverged"})
    )


def _read_grid(folder: pathlib.Path, seed: str) -> None:
    for again in (False, True):
        ledger = Ledger(_plan(), folder, retry_failed=again)
        ledger.seconds_left(2)
        json.dumps(ledger.counts())
    Claims(folder / "claims").all()


def _write_gin(root: pathlib.Path) -> None:
    seeds = {
        "train": (
            "# A run.\nSEED = 3\ntrain.task = 'cb'\ntrain.seed = %SEED\n"
            "train.prompt_init = 'text'\nx/train.kd_lambda = 2.5\n"
            'train.init_text = """a\n  b"""\ntrain.resize_source = True\n',
            "--gin.train.learning_rate=1e-2\n--task=rte\n--batch_size=8\n"
            "--gin.TRAIN_STEPS=300\n--gin.train.epochs=None",
        ),
        "grid": (
            "grid.targets = ('cb', 'rte')\ngrid.sources = 'mrpc,sst2'\n"
            "grid.settings = {'epochs': 2}\ngrid.seeds = [0, 1]\n",
            '--out_dir=x\n--overrides={"panda": {"epochs": 3}}\n--seeds=0,1',
        ),
        "plan": ("", "--topology=cpu:8\n--gin.train.seed=1\n--fleet=2"),
    }
    for name, (text, flags) in seeds.items():
        (root / name).mkdir()
        (root / name / "config.gin").write_text(text)
        (root / name / "flags.txt").write_text(flags)


def _read_gin(folder: pathlib.Path, seed: str) -> None:
    path = folder / "flags.txt"
    flags = path.read_text(errors="surrogateescape") if path.exists() else ""
    argv = [f"--gin_file={folder / 'config.gin'}", *flags.split("\n")]
    try:
        cli.resolve(seed, argv)
    except SystemExit as ended:  # --help, which exits 0
        raise UserError(f"ended with {ended}") from None


_JSON = (changes.by_json,)
_SAFE = (changes.by_safetensors,)
_LINES = (changes.by_json_line, changes.by_line)
_CELLS = {
    "tsv": (changes.by_cell(b"\t"), changes.by_line),
    "conll": (changes.by_cell(b" "), changes.by_line),
    "csv": (changes.by_cell(b","), changes.by_line, changes.by_names),
}
_FORMATS = {
    "jsonl": (("cb", "copa", "wsc"), _LINES),
    "multirc": (("multirc",), _LINES),
    "record": (("record",), _LINES),
    "squad": (("squad",), _JSON),
    "spert": (("conll04",), _JSON),
    "tsv": (("mrpc", "qqp", "stsb"), _CELLS["tsv"]),
    "tsv_plain": (("cola",), _CELLS["tsv"]),
    "conll_columns": (("conll03",), _CELLS["conll"]),
    "conll_props": (("conll05",), _CELLS["conll"]),
    "conll12": (("conll12", "ontonotes"), _CELLS["conll"]),
}
_ASKED = {
    "lines": (("cb", "copa", "wsc", "wic", "multirc", "record"), _LINES),
    "json": (("squad", "conll04"), _JSON),
    "tsv": (("cola", "mrpc", "qqp", "sst2", "stsb"), _CELLS["tsv"]),
    "conll": (("conll03", "conll05", "ontonotes"), _CELLS["conll"]),
}
_PIPED = ("cb", "multirc", "squad", "cola", "mrpc", "conll03")
_TABLES = {
    "csv": (("csv",), _CELLS["csv"]),
    "tsv": (("tsv",), _CELLS["tsv"]),
    "json": (("jsonl", "json"), (*_LINES, *_JSON)),
    "conll": (("conll",), _CELLS["conll"]),
    "parquet": (("parquet",), (changes.by_bytes,)),
}


def _all() -> list[Reader]:
    return [
        Reader(
            "safetensors",
            _write_prompts,
            lambda folder, _: [
                tensors.read(path, fix="copy it again")
                for path in sorted(folder.rglob(peft.TENSORS))
            ],
            {peft.TENSORS: _SAFE},
        ),
        Reader(
            "backbone",
            _write_backbones,
            lambda folder, _: hf.load(folder),
            {hf.CONFIG: _JSON, tensors.SINGLE: _SAFE},
            guarded=True,
        ),
        Reader(
            "shards",
            _write_shards,
            lambda folder, _: hf.load(folder),
            {tensors.INDEX: _JSON, "model-*": _SAFE},
            guarded=True,
            climb=_climb_shards,
        ),
        Reader(
            "layouts",
            _write_layouts,
            lambda folder, _: hf.load(hf_layouts.locate(folder)),
            {
                hf_layouts.MODULES: _JSON,
                hf_layouts.CONFIG: _JSON,
                "*.bin": (changes.by_torch,),
            },
            guarded=True,
        ),
        Reader(
            "tokenizer",
            _write_tokenizers,
            _read_tokenizer,
            {"*.json": _JSON, "vocab.txt": (changes.by_line,)},
            guarded=True,
        ),
        Reader(
            "sentencepiece",
            _write_pieces,
            _read_pieces,
            {"*.model": (changes.by_protobuf,), "*.json": _JSON},
            guarded=True,
        ),
        Reader(
            "t5x",
            _write_legacy,
            _read_legacy,
            {
                "checkpoint": (changes.by_msgpack,),
                ".zarray": _JSON,
                "target.*/*": (changes.by_bytes,),
            },
            guarded=True,
            climb=_climb_legacy,
            traced=160 << 20,
        ),
        Reader(
            "orbax",
            _write_orbax,
            lambda folder, _: t5x.load_t5x(folder),
            {
                "_METADATA": _JSON,
                ".zarray": _JSON,
                "target.*/*": (changes.by_bytes,),
            },
            guarded=True,
            traced=160 << 20,
        ),
        Reader(
            "npy",
            _write_npy,
            lambda folder, _: npy.read(folder / "p.npy"),
            {"*.npy": (changes.by_npy,)},
        ),
        Reader(
            "peft",
            _write_adapters,
            lambda folder, _: peft.read_folder(folder),
            {
                peft.CONFIG: _JSON,
                peft.TENSORS: _SAFE,
                peft.TORCH_TENSORS: (changes.by_torch,),
            },
            guarded=True,
        ),
        Reader(
            "prompt",
            _write_prompts,
            _read_prompt,
            {
                prompt_folders.INFO: _JSON,
                peft.CONFIG: _JSON,
                peft.TENSORS: _SAFE,
            },
            guarded=True,
        ),
        Reader(
            "torch",
            _write_torch,
            lambda folder, _: torch_files.read(folder / "prompt.bin"),
            {"*.bin": (changes.by_torch,)},
        ),
        Reader(
            "prompthub",
            _write_torch,
            lambda folder, _: prompthub.read(folder / "prompt.bin"),
            {"*.bin": (changes.by_torch,)},
        ),
        Reader(
            "panda",
            _write_release,
            lambda folder, _: panda_release.read(
                folder, config=BERT, params=_bert_params()
            ),
            {"*.bin": (changes.by_torch,)},
        ),
        Reader(
            "token_cache",
            _write_tokens,
            _read_tokens,
            {"*.npz": (changes.by_npz,)},
        ),
        Reader(
            "vector_cache",
            _write_vectors,
            _read_vectors,
            {"*.npy": (changes.by_npy,)},
        ),
        *(
            Reader(
                name,
                functools.partial(_write_data, tasks),
                _read_data,
                {"*": kinds},
            )
            for name, (tasks, kinds) in _FORMATS.items()
        ),
        Reader("rows", _write_rows, _read_rows, {"*": _LINES}),
        *(
            Reader(
                f"asked_{name}",
                functools.partial(_write_asked, tasks),
                _read_asked,
                {"*": kinds},
            )
            for name, (tasks, kinds) in _ASKED.items()
        ),
        Reader(
            "stdin",
            functools.partial(_write_asked, _PIPED),
            _read_stdin,
            {"*": (*_LINES, *_CELLS["tsv"])},
        ),
        *(
            Reader(
                f"own_{name}",
                functools.partial(_write_own, endings),
                _read_own,
                {"*": kinds},
                traced=32 << 20,
            )
            for name, (endings, kinds) in _TABLES.items()
        ),
        Reader("scores", _write_scores, _read_scores, {"*": _CELLS["csv"]}),
        Reader("truth", _write_truth, _read_truth, {"*": _CELLS["csv"]}),
        Reader("runs", _write_runs, _read_runs, {"*.json": _JSON}),
        Reader(
            "begun",
            _write_begun,
            _read_begun,
            {"*.json": _JSON, "*.jsonl": _LINES},
        ),
        Reader("grid", _write_grid, _read_grid, {"*.json": _JSON}),
        Reader(
            "gin",
            _write_gin,
            _read_gin,
            {
                "config.gin": (changes.by_cell(b" "), changes.by_line),
                "flags.txt": (changes.by_cell(b"="), changes.by_line),
            },
            # Which is gin's own way with text of many lines.
            traced=32 << 20,
        ),
    ]


READERS: dict[str, Reader] = {reader.name: reader for reader in _all()}
