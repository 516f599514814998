"""Inputs that once crashed a reader, filled memory, or were believed."""

import io
import json
import pathlib
import tracemalloc
import zipfile

import fuzzing_readers
import msgpack
import numpy as np
import pytest
from fuzzing_readers import READERS

from panda_jax.config import runs
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError
from panda_jax.experiments.report.results import read_results
from panda_jax.interop import peft, t5x_files
from panda_jax.io import files
from panda_jax.training import identity

HUGE = 10**400
MOST = 70 << 20


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Makes a reader's valid input, changes it, and has it refused."""
    monkeypatch.setenv("PANDA_CACHE_DIR", str(tmp_path / "cache"))

    def check(name: str, seed: str, message: str, **changed) -> None:
        reader = READERS[name]
        root = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        reader.write(root)
        folder = root / seed
        reader.read(folder, seed)
        for file, change in changed.items():
            path = next(p for p in folder.rglob("*") if _key(p) == file)
            path.write_bytes(_bytes(change, path.read_bytes()))
        tracemalloc.start(1)
        try:
            with pytest.raises(UserError, match=message) as error:
                reader.read(folder, seed)
            assert tracemalloc.get_traced_memory()[1] < MOST
        finally:
            tracemalloc.stop()
        assert "\n" not in str(error.value)

    return check


def _key(path: pathlib.Path) -> str:
    return path.name.replace(".", "_").replace("-", "_")


def _bytes(change, data: bytes) -> bytes:
    """New bytes, new entries of a JSON object, or a function of the old."""
    if isinstance(change, dict):
        return json.dumps({**json.loads(data), **change}).encode()
    return change if isinstance(change, bytes) else change(data)


def deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_an_npy_file_that_claims_a_header_of_four_gigabytes(given):
    start = b"\x93NUMPY\2\0\xff\xff\xff\xff{}"
    given("npy", "plain", "header has 4294967295 bytes", p_npy=start)


@pytest.mark.parametrize("value", [[], {}, ["gelu"]])
def test_names_that_are_no_text(given, value):
    config = {"config_json": {"hidden_act": value}}
    given("backbone", "bert", "hidden_act is .*expected one of", **config)
    config = {"config_json": {"feed_forward_proj": value}}
    given("backbone", "t5", "feed_forward_proj is", **config)


def _no_positions(shape: list[int]) -> dict:
    """A prompt without positions whose file has no byte too many."""
    L, _, P, H, K = shape

    def tensors(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
        header["prompt_embeddings"]["shape"] = [P, L * 2 * H * K]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + rest

    return {
        "panda_json": {"prompt_shape": shape},
        peft.TENSORS.replace(".", "_"): tensors,
    }


@pytest.mark.parametrize(
    "shape",
    [
        [10**9, 2, 0, 1, 1],
        [1, 2, 0, 0, 5],
        [0, 2, 0, 2, 4],
        [2, 3, 0, 2, 4],
        [2, 2, -1, 2, 4],
    ],
    ids=str,
)
def test_a_prompt_of_a_shape_that_none_has(given, shape):
    given("prompt", "none", "prompt_shape is", **_no_positions(shape))


def test_a_score_that_is_no_float(given):
    scores = {"scores": {"accuracy": HUGE}}
    given("prompt", "deep", "scores is .*expected dict", panda_json=scores)


@pytest.mark.parametrize("depth", [65, 500, *range(930, 1000, 3), 5000])
def test_json_that_python_cannot_print(depth, tmp_path):
    """Where it can be parsed, a message that shows it could not be made."""
    path = tmp_path / "x.json"
    path.write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(UserError, match="nested more than 64 deep"):
        files.read_json(path)
    path.write_text('{"a": ' + "[" * 60 + "]" * 60 + "}")
    assert repr(files.read_json(path))
    assert files.parse_json('"' + "[" * 100 + '"') == "[" * 100
    assert files.parse_json(f"[{'[],' * 100}0]")


def test_rows_that_python_cannot_print(given):
    text = json.dumps(deep(60))
    row = b'{"premise": "a", "hypothesis": "b", "label": %s}'

    def line(depth: int) -> bytes:
        return row % (b"[" * depth + text.encode() + b"]" * depth)

    for depth in (10, *range(870, 940, 7)):
        given(
            "jsonl",
            "cb",
            "line 1, field '.whole line.'",
            train_jsonl=line(depth),
        )
    given("jsonl", "cb", "field 'label'", train_jsonl=line(1))


def test_half_of_a_surrogate_pair(given):
    """JSON can spell it, and no file can hold it."""
    task = {"task": "\ud800"}
    given("prompt", "deep", "surrogates not allowed", panda_json=task)


def test_result_files_that_no_run_leaves(tmp_path):
    """They leave out their run, and the report is made without it."""
    READERS["runs"].write(tmp_path)
    results = [
        {"best": {"value": HUGE}},
        {"best": {"value": -HUGE}},
        {"task": "\ud800"},
    ]
    for number, change in enumerate(results):
        path = tmp_path / "runs" / f"{number}" / "result.json"
        path.write_bytes(_bytes(change, path.read_bytes()))
    about = tmp_path / "runs" / "3" / "run.json"
    needs = {"needs": {"development data": {}, "source": []}}
    about.write_bytes(_bytes(needs, about.read_bytes()))
    found = read_results(tmp_path / "runs")
    assert [run.folder for run in found.runs] == ["3"]
    told = {run.folder: run.reason for run in found.left_out}
    assert "expected a finite number" in told["0"]
    assert "expected a finite number" in told["1"]
    assert "surrogates not allowed" in told["2"]
    READERS["runs"].read(tmp_path / "runs", "runs")


@pytest.mark.parametrize("name", ["name", "folder", "task", "kind"])
def test_a_grid_s_list_of_something_else(given, name):
    def changed(data: bytes) -> bytes:
        value = json.loads(data)
        value["runs"][0][name] = 5
        return json.dumps(value).encode()

    given("runs", "grid", "is no list of a grid's runs", grid_json=changed)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("run_json", {"settings": []}, "is none: expected objects"),
        ("run_json", {"needs": 3}, "is none: expected objects"),
        ("result_json", b"{}", "is not what a run leaves"),
        ("result_json", {"best": {}}, "is not what a run leaves"),
        ("result_json", {"seconds": "3"}, "is not what a run leaves"),
        ("metrics_jsonl", b'{"step": 1, "a": [NaN]}\n{"step": 2}', ":1: got"),
        ("metrics_jsonl", b'{"step": 1, "a": "\\ud800"}\n{"step": 2}', ":1: "),
        ("metrics_jsonl", b'{"step": true}\n{"step": 2}', ":1: got"),
    ],
)
def test_a_run_folder_that_no_run_left(given, file, change, message):
    given("begun", "run", message, **{file: change})


@pytest.mark.parametrize("pid", [2**31, 2**70, 0, -1])
def test_a_claim_of_a_process_that_cannot_be(tmp_path, pid):
    fuzzing_readers._write_grid(tmp_path)
    for path in tmp_path.rglob("claim.json"):
        change = {"pid": pid, "stale": 10**400, "beat": []}
        path.write_bytes(_bytes(change, path.read_bytes()))
    fuzzing_readers._read_grid(tmp_path / "grid", "grid")


def test_seconds_and_lanes_that_are_none(tmp_path):
    fuzzing_readers._write_grid(tmp_path)
    (result,) = tmp_path.rglob("result.json")
    for seconds in ("long", [], HUGE, -1, None):
        result.write_bytes(_bytes({"seconds": seconds}, result.read_bytes()))
        fuzzing_readers._read_grid(tmp_path / "grid", "grid")
    plan = fuzzing_readers._plan()
    ledger = fuzzing_readers.Ledger(plan, tmp_path / "grid")
    (note,) = tmp_path.rglob("fleet.json")
    for content in ("{}", '{"runs": 3}', '{"runs": [[]]}'):
        note.write_text(content)
        ledger.own_checkpoints(plan.runs[0].fleet, ["a"])
        assert json.loads(note.read_text()) == {"runs": ["a"]}


def test_a_table_of_a_thousand_lines_and_a_billion_places(given):
    lines = [f"s{i},t{i},m{i},1" for i in range(1000)]
    table = "\n".join(["source,target,metric,score", *lines]).encode()
    message = "1000 lines for 1000 x 1000 x 1000 names"
    given("scores", "scores", message, scores_csv=table)
    table = table.replace(b"metric", b"seed")
    given("truth", "truth", message, truth_csv=table)


def test_a_table_with_holes_is_one(tmp_path):
    """A few sources of many, as a ranking's best."""
    lines = [f"s{i % 97},t{i % 89},on,1" for i in range(1500)]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(["source,target,metric,score", *lines]))
    found = fuzzing_readers.Scores.from_csv(path)
    assert found.values["on"].shape == (97, 89)


@pytest.mark.parametrize(
    "flag",
    [
        "--gin.train.task=(",
        "--gin.train.task='''",
        "--gin.train.task=" + "[" * 5000,
        "--gin.train.task=[" + "1," * 3 + "\\",
        "--gin.train.task",
        "--gin.=1",
        "--gin.train.task=%task/%x",
    ],
    ids=range(7),
)
def test_gin_that_python_cannot_tokenize(given, flag):
    given("gin", "train", ".", flags_txt=flag.encode())


def test_numbers_that_have_no_end(tmp_path):
    READERS["begun"].write(tmp_path)
    path = tmp_path / "run" / "result.json"
    best = {"best": {"value": HUGE}}
    path.write_bytes(_bytes(best, path.read_bytes()))
    with pytest.raises(UserError, match="is not what a run leaves"):
        identity.done_result(path.parent)
    with pytest.raises(UserError, match="clip is inf, expected a finite numb"):
        runs.Run(task="cb", clip=HUGE)


def test_a_message_is_never_a_file():
    words = "x" * 10_000
    assert str(UserError(words[:2000])) == words[:2000]
    said = str(UserError(f"begin {words} end"))
    assert len(said) < 2100
    assert said.startswith("begin xx")
    assert said.endswith("xx end")
    assert "(8010 characters)" in said


# A checkpoint's index.


def _target(value) -> bytes:
    return msgpack.packb({"target": {"a": value}})


def test_an_index_of_little_more_than_nothing(given, monkeypatch):
    """A byte each to the file, and seventy to Python."""
    monkeypatch.setattr(t5x_files, "_MOST_VALUES", 1 << 13)
    inner = b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\x80" * 64) * 64
    index = b"\x81\xa6target\x81\xa1a\x93" + inner * 3
    given("t5x", "legacy", "more than 8192 values", checkpoint=index)


@pytest.mark.parametrize("depth", [400, 936, 945, 960, 985])
def test_an_index_that_python_cannot_print(given, depth):
    driver = b"\x91" * depth + b"\xc0"
    index = b"\x81\xa6target\x81\xa1a\x82\xa6driver" + driver
    index += b"\xa7kvstore\xc0"
    given(
        "t5x", "legacy", "is no msgpack index|in the index is", checkpoint=index
    )


def test_lists_in_the_shape_of_an_array(given):
    inner = b"\xdc\x00\x40" + b"\xc0" * 64
    for _ in range(2):
        inner = b"\xdc\x00\x40" + inner * 64
    value = msgpack.ExtType(1, b"\x93" + inner + b"\xa7float32\xc4\0")
    given("t5x", "legacy", "is no array of", checkpoint=_target(value))


# Caches.


def _npz(**members: bytes):
    def changed(data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            content = {n: archive.read(n) for n in archive.namelist()}
        content |= {f"{name}.npy": part for name, part in members.items()}
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name, part in content.items():
                archive.writestr(name, part)
        return made.getvalue()

    return changed


def _array(array: np.ndarray, shape: str | None = None) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    if shape is None:
        return made.getvalue()
    # Of the same length, so that the header stays one.
    old = str(array.shape).encode()
    return made.getvalue().replace(
        old + b", }" + b" " * (len(shape) - len(old)), shape.encode() + b", }"
    )


@pytest.mark.parametrize(
    "members",
    [
        {"tokens": _array(np.zeros((4, 6), np.int32), "(1099511627776, 6)")},
        {"tokens": b"no array"},
        {"tokens": _array(np.zeros((0, 6), np.int32))},
        {"question": _array(np.array([0, 2, 2, 3], np.int32))},
        {"question": _array(np.array([5, 5, 6, 7], np.int32))},
        {"question": _array(np.array([1, 0, 0, 0], np.int32))},
        {"labels": _array(np.zeros(4, object))},
    ],
    ids=["claims", "text", "empty", "gap", "begins", "falls", "objects"],
)
def test_a_token_cache_that_was_changed(given, members):
    (name,) = (path for path in _cache_names("cb"))
    given("token_cache", "cb", "filled again", **{name: _npz(**members)})


def _cache_names(task: str) -> list[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        fuzzing_readers._write_tokens(root)
        return [_key(path) for path in (root / task).iterdir()]


def test_a_token_cache_that_is_another_file(given):
    (name,) = _cache_names("cb")
    for content in (_array(np.zeros(3)), b"", b"PK\5\6" + bytes(18)):
        given("token_cache", "cb", "filled again", **{name: content})


def test_a_vector_cache_that_claims_a_terabyte(given):
    lie = _array(np.zeros((4, 8), np.float32), "(1099511627776, 8)")
    name = f"{'ab' * 32}_npy"
    given("vector_cache", "cache", "computed anew", **{name: lie})


# Tokenizers.


@pytest.mark.parametrize(
    ("seed", "name"), [("whole", "tokenizer.json"), ("words", "vocab.txt")]
)
def test_a_tokenizer_that_lies_elsewhere(tmp_path, seed, name):
    fuzzing_readers._write_tokenizers(tmp_path)
    (tmp_path / seed / name).rename(tmp_path / "x")
    (tmp_path / seed / name).symlink_to(tmp_path / "x")
    with pytest.raises(UserError, match="link to outside the folder"):
        Tokenizer.from_folder(tmp_path / seed)


def test_ids_beyond_their_number(tmp_path):
    """The highest needs an embedding, whatever is missing below it."""
    fuzzing_readers._write_tokenizers(tmp_path)
    path = tmp_path / "whole" / "tokenizer.json"
    # Without the added token, whose place the late piece would be.
    files.write_json(path.with_name("tokenizer_config.json"), {})
    raw = json.loads(path.read_text())
    raw["model"]["vocab"]["late"] = 70_000
    path.write_text(json.dumps(raw))
    assert Tokenizer.from_folder(path.parent).vocab_size == 70_001


def test_ids_that_no_table_could_hold(tmp_path):
    fuzzing_readers._write_tokenizers(tmp_path)
    path = tmp_path / "whole" / "tokenizer.json"
    # Without the added token, whose place the late piece would be.
    files.write_json(path.with_name("tokenizer_config.json"), {})
    raw = json.loads(path.read_text())
    raw["model"]["vocab"]["late"] = 2**32 - 1
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="pieces with ids up to 4294967295"):
        Tokenizer.from_folder(path.parent)


def test_a_piece_that_is_no_text(given):
    def changed(data: bytes) -> bytes:
        # The end of a word's mark.
        assert b"\xe2\x96\x81" in data
        return data.replace(b"\xe2\x96\x81", b"\xe2\x96\xc1")

    given("sentencepiece", "pieces", "is no text", spiece_model=changed)


def test_a_tokenizer_that_fails_at_its_first_word(given):
    def changed(data: bytes) -> bytes:
        raw = json.loads(data)
        raw["model"]["unk_token"] = "[NONE]"
        return json.dumps(raw).encode()

    given("tokenizer", "whole", "is broken", tokenizer_json=changed)
