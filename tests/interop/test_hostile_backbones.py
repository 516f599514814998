"""Files that mean harm or are broken: one message, and nothing done."""

import contextlib
import gzip
import json
import os
import pathlib
import pickle
import resource
import shutil
import zlib

import msgpack
import numpy as np
import pytest
import safetensors.numpy
import t5x_writing as writing
import torch
from t5x_writing import CONFIG
from transformers import BertConfig, BertModel

from panda_jax import UserError
from panda_jax.interop import hf
from panda_jax.interop.t5x import load_t5x
from panda_jax.prompts import Prompt
from panda_jax.store import exchange, prompt_folders

# What a refusal may cost; the bombs below ask for far more.
MOST_BYTES = 200 << 20


class Payload:
    """What would make a file, were it unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, pathlib.Path]:
    """A healthy folder of each kind."""
    root = tmp_path_factory.mktemp("healthy")
    bert = BertModel(
        BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=20,
        )
    )
    bert.save_pretrained(root / "single")
    bert.save_pretrained(root / "shards", max_shard_size="3KB")
    flat = writing.params_of(CONFIG)
    arrays = writing.t5x_arrays(flat, CONFIG)
    writing.write_legacy(root / "legacy", arrays)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def single(made, tmp_path) -> pathlib.Path:
    return shutil.copytree(made["single"], tmp_path / "single")


@pytest.fixture
def shards(made, tmp_path) -> pathlib.Path:
    return shutil.copytree(made["shards"], tmp_path / "shards")


@pytest.fixture
def legacy(made, tmp_path) -> pathlib.Path:
    return shutil.copytree(made["legacy"], tmp_path / "legacy")


def refused(load, folder: pathlib.Path, message: str) -> None:
    """Loading fails with one line of this message, and costs little."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < MOST_BYTES
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000


def test_the_healthy_ones_load(made):
    assert hf.load(made["single"])[1] == hf.load(made["shards"])[1]
    assert load_t5x(made["legacy"])[1] == CONFIG


# Safetensors.


def with_header(folder: pathlib.Path, header, *, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (folder / "model.safetensors").write_bytes(content)


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("size", [2**60, 2**64 - 1, 2**40, 9])
def test_a_header_larger_than_the_file(single, size):
    (single / "model.safetensors").write_bytes(size.to_bytes(8, "little"))
    refused(hf.load, single, f"8 bytes cannot hold a header of {size}")


@pytest.mark.parametrize(
    ("header", "data"),
    [
        # Two tensors in the same bytes.
        ({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, 24),
        # Bytes between, before and after tensors.
        ({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, 12),
        ({"a": tensor([1], 4, 8)}, 8),
        ({"a": tensor([1], 0, 4)}, 8),
        # Past the end, backwards, negative, and not what the shape needs.
        ({"a": tensor([4], 0, 16)}, 8),
        ({"a": tensor([1], 8, 4)}, 8),
        ({"a": tensor([1], -4, 0)}, 8),
        ({"a": tensor([5], 0, 16)}, 16),
        # Shapes whose product is 0 or 4 in 64 bits.
        ({"a": tensor([2**32, 2**32], 0, 0)}, 0),
        ({"a": tensor([2**62 + 1, 4], 0, 16)}, 16),
        ({"a": tensor([2**63, 2**63], 0, 4)}, 4),
        ({"a": tensor([-1], 0, 4)}, 4),
        ({"a": tensor([1], 0, 4, "F31")}, 4),
        ({"a": [1, 2]}, 0),
        ([], 0),
        (b"[" * 100_000, 0),
        (b'{"a":' * 100_000, 0),
        (b"\xff\xfe", 0),
        (b"", 0),
    ],
)
def test_a_header_that_lies(single, header, data):
    with_header(single, header, data=bytes(data))
    refused(hf.load, single, "model.safetensors .*is damaged")


def test_weights_that_are_a_pickle(single, tmp_path):
    payload = {"pooler.dense.bias": Payload(tmp_path / "done")}
    for data in (pickle.dumps(payload), pickle.dumps(payload, 2)):
        (single / "model.safetensors").write_bytes(data)
        refused(hf.load, single, "model.safetensors is damaged")
    torch.save(payload, single / "model.safetensors")
    refused(hf.load, single, "model.safetensors is damaged")
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    asked = r"asks for 'posix.mkdir'.*nothing of it was executed"
    refused(hf.load, single, asked)
    for data in (pickle.dumps(payload), pickle.dumps(payload, 2)):
        (single / "pytorch_model.bin").write_bytes(data)
        refused(hf.load, single, "it is no archive of torch.save")
    assert not (tmp_path / "done").exists()


def test_sizes_that_only_the_config_has(single):
    """2^24 x 2^24 weights are asked for, and none are made."""
    path = single / "config.json"
    raw = json.loads(path.read_text())
    raw |= {"vocab_size": 2**24, "intermediate_size": 2**24}
    path.write_text(json.dumps(raw))
    refused(hf.load, single, r"has shape \(\d+.*\), expected \(16777216")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_the_folder(single, tmp_path, name):
    (single / name).rename(tmp_path / "elsewhere")
    (single / name).symlink_to(tmp_path / "elsewhere")
    refused(hf.load, single, f"{name}' is a link to outside the folder")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 100_000,
        '{"model_type": ' + "9" * 100_000 + "}",
        "[]",
        "",
        "\x00",
    ],
    ids=["lists", "objects", "digits", "number", "list", "nothing", "nul"],
)
@pytest.mark.parametrize("name", ["config.json", hf.SINGLE + ".index.json"])
def test_json_bombs(shards, name, text):
    (shards / name).write_text(text)
    refused(hf.load, shards, "is not valid JSON|holds a JSON list")


# Millions of lists, each of which is 64 bytes to Python.
LISTS = '{"model_type": [' + "[]," * (1 << 22) + "[]]}"


@pytest.mark.parametrize("name", ["config.json", hf.SINGLE + ".index.json"])
def test_json_that_is_huge(shards, name):
    (shards / name).write_text(LISTS)
    refused(hf.load, shards, "has 12582932 bytes, expected at most 4194304")
    with (shards / name).open("wb") as file:
        file.truncate(1 << 42)
    refused(hf.load, shards, "has 4398046511104 bytes, expected at most")


# Prompt folders, ours and of PEFT, and files with a prompt.


ADAPTER, OLD = "adapter_model.safetensors", "adapter_model.bin"
SETTINGS = "adapter_config.json"


@pytest.fixture
def adapter(tmp_path) -> pathlib.Path:
    """As PEFT writes it; with `panda.json` it would be one of ours."""
    prompt = Prompt(np.ones((5, 16), np.float32), {})
    info = prompt_folders.PromptInfo("cb", "b", "f" * 16, "shallow", "prompt")
    prompt_folders.save_prompt(tmp_path / "p", prompt, info)
    (tmp_path / "p" / prompt_folders.INFO).rename(
        tmp_path / prompt_folders.INFO
    )
    assert read_adapter(tmp_path / "p").kind == "shallow"
    return tmp_path / "p"


def read_adapter(folder: pathlib.Path) -> Prompt:
    return exchange.import_prompt("peft", folder).prompt


def read_ours(folder: pathlib.Path) -> Prompt:
    """The same with its description."""
    shutil.copy(folder.parent / prompt_folders.INFO, folder)
    return prompt_folders.load_prompt(folder).prompt


@pytest.fixture(params=[read_adapter, read_ours], ids=["theirs", "ours"])
def read(request):
    return request.param


@pytest.mark.parametrize("size", [2**60, 2**64 - 1, 2**40, 9])
def test_an_adapter_with_a_header_larger_than_the_file(adapter, read, size):
    (adapter / ADAPTER).write_bytes(size.to_bytes(8, "little"))
    refused(read, adapter, f"8 bytes cannot hold a header of {size}")


def test_an_adapter_that_is_a_pickle(adapter, read, tmp_path):
    """Under the name of safetensors, and under the name that PEFT gives it."""
    payload = {"prompt_embeddings": Payload(tmp_path / "done")}
    for data in (pickle.dumps(payload), pickle.dumps(payload, 2)):
        (adapter / ADAPTER).write_bytes(data)
        refused(read, adapter, f"{ADAPTER} is damaged")
    torch.save(payload, adapter / ADAPTER)
    refused(read, adapter, f"{ADAPTER} is damaged")
    (adapter / ADAPTER).rename(adapter / OLD)
    # Ours are safetensors alone.
    asked = f"{ADAPTER} is missing"
    if read is read_adapter:
        asked = r"asks for 'posix.mkdir'.*nothing of it was executed"
    refused(read, adapter, asked)
    assert not (tmp_path / "done").exists()
    # The payload does work where it is let.
    with contextlib.suppress(AttributeError, TypeError):
        torch.load(adapter / OLD, weights_only=False)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("format", ["npy", "prompthub", "panda"])
def test_a_prompt_file_that_is_a_pickle(tmp_path, format, tiny):
    for name, data in {
        "plain": pickle.dumps(Payload(tmp_path / "done"), 2),
        "numpy": b"\x93NUMPY" + pickle.dumps(Payload(tmp_path / "done")),
    }.items():
        (tmp_path / name).write_bytes(data)

        def load(path):
            return exchange.import_prompt(format, path, backbone=tiny)

        refused(load, tmp_path / name, "cannot be read|.npy version|no archive")
    torch.save({"model": Payload(tmp_path / "done")}, tmp_path / "torch")
    refused(load, tmp_path / "torch", "cannot be read|asks for 'posix.mkdir'")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("name", [SETTINGS, prompt_folders.INFO])
def test_json_bombs_of_a_prompt_folder(adapter, tmp_path, name):
    def load(folder):
        return exchange.import_prompt("peft", folder)

    shutil.copy(tmp_path / prompt_folders.INFO, adapter)
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "[]", ""):
        (adapter / name).write_text(text)
        refused(load, adapter, "is not valid JSON|holds a JSON list")
    (adapter / name).write_text(LISTS)
    refused(load, adapter, "has 12582932 bytes, expected at most 4194304")
    with (adapter / name).open("wb") as file:
        file.truncate(1 << 42)
    refused(load, adapter, "has 4398046511104 bytes, expected at most")


@pytest.mark.parametrize("name", [SETTINGS, ADAPTER, OLD, prompt_folders.INFO])
def test_a_link_out_of_a_prompt_folder(adapter, tmp_path, name):
    """The file is there, and is the right one."""
    if name == OLD:
        tensors = safetensors.numpy.load_file(adapter / ADAPTER)
        tensors = {key: torch.tensor(x) for key, x in tensors.items()}
        torch.save(tensors, adapter / OLD)
        (adapter / ADAPTER).unlink()
        read_adapter(adapter)
    if name != prompt_folders.INFO:
        (adapter / name).rename(tmp_path / "elsewhere")
        (adapter / name).symlink_to(tmp_path / "elsewhere")
    else:
        (adapter / name).symlink_to(tmp_path / name)
    refused(read_adapter, adapter, "is a link to outside the folder")


def test_a_configuration_that_claims_to_be_huge(adapter, read):
    """2^60 positions are asked for, and none are made."""
    raw = json.loads((adapter / SETTINGS).read_text())
    raw |= {"num_virtual_tokens": 2**60, "token_dim": 2**60}
    (adapter / SETTINGS).write_text(json.dumps(raw))
    refused(read, adapter, "1152921504606846976")


# The index of shards.


def change_map(folder: pathlib.Path, change) -> None:
    path = folder / "model.safetensors.index.json"
    raw = json.loads(path.read_text())
    change(raw["weight_map"])
    path.write_text(json.dumps(raw))


def first(placed: dict[str, str]) -> tuple[str, str]:
    return next(iter(sorted(placed.items())))


@pytest.mark.parametrize("climb", ["absolute", "../x", "a/../../x", "..\\x"])
def test_a_shard_outside_the_folder(shards, climb):
    """The file is there, and is the right one."""

    def move(placed):
        _, file = first(placed)
        (shards / file).rename(shards.parent / "x.safetensors")
        outside = f"{shards.parent}/x" if climb == "absolute" else climb
        for name in [n for n, f in placed.items() if f == file]:
            placed[name] = f"{outside}.safetensors"

    change_map(shards, move)
    refused(hf.load, shards, "expected a name inside the folder")


def test_a_shard_that_is_a_link_out(shards):
    file = next(iter(sorted(shards.glob("*.safetensors"))))
    outside = file.rename(shards.parent / "x.safetensors")
    file.symlink_to(outside)
    refused(hf.load, shards, "link to outside the folder")


@pytest.mark.parametrize(
    "file",
    ["x.safetensors", "config.json", "", ".", "a\0b", "\ud800", "a" * 999],
)
def test_a_shard_that_is_none(shards, file):
    def rename(placed):
        placed[first(placed)[0]] = file

    change_map(shards, rename)
    refused(
        hf.load,
        shards,
        "no safetensors file|a name inside|cannot be followed|disagree|"
        "surrogates not allowed",
    )


def test_an_index_and_shards_that_disagree(shards, made):
    def add(placed):
        placed["oops"] = first(placed)[1]

    change_map(shards, add)
    refused(hf.load, shards, r"Only the index has \['oops'\]")
    shutil.copytree(made["shards"], shards, dirs_exist_ok=True)
    names = []

    def drop(placed):
        names.append(first(placed)[0])
        del placed[names[0]]

    change_map(shards, drop)
    refused(hf.load, shards, rf"only the file has \['{names[0]}'\]")
    shutil.copytree(made["shards"], shards, dirs_exist_ok=True)

    def swap(placed):
        name, file = first(placed)
        placed[name] = next(f for f in placed.values() if f != file)

    change_map(shards, swap)
    refused(hf.load, shards, "disagree")


@pytest.mark.parametrize("placed", [None, [], {"a": 1}, {"a": ["b"]}])
def test_an_index_without_a_map(shards, placed):
    path = shards / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": placed}))
    refused(hf.load, shards, "holds no weight_map")


# The index of a legacy checkpoint.


def write_index(folder: pathlib.Path, content: bytes) -> None:
    (folder / "checkpoint").write_bytes(content)


def change_target(folder: pathlib.Path, change) -> None:
    index = msgpack.unpackb((folder / "checkpoint").read_bytes())
    change(index["optimizer"]["target"])
    write_index(folder, msgpack.packb(index))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"model_checkpoint_path: 'model.ckpt-1000000'",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04" + bytes(100),
        # Nested 10^5 deep: lists, maps.
        b"\x91" * 100_000 + b"\xc0",
        b"\x81\xa1a" * 100_000 + b"\xc0",
        # 2^32 - 1 items, entries, characters, bytes.
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        # Ten million items, each a list that claims as many.
        b"\xdd\x00\x98\x96\x80" * 1000 + bytes(10_000_000),
        # And ten million that are there.
        b"\xdd\x00\x98\x96\x80" + bytes(10_000_000),
        b"\x81\xa1\xff\xc0",
        b"\x81\xc0\xc0",
        b"\xc1",
    ],
    ids=lambda content: f"{content[:6].hex()}-{len(content)}",
)
def test_an_index_that_is_none(legacy, content):
    write_index(legacy, content)
    refused(load_t5x, legacy, "is no msgpack index of a T5X checkpoint")


def test_an_index_without_weights(legacy):
    for index in ({}, {"optimizer": {"state": {}}}, {"target": 3}):
        write_index(legacy, msgpack.packb(index))
        refused(load_t5x, legacy, "holds no weights")


@pytest.mark.parametrize("code", [0, 2, 42, 112, 127])
def test_a_pickle_in_the_index(legacy, tmp_path, code):
    data = pickle.dumps(Payload(tmp_path / "done"))

    def put(target):
        target["encoder"]["encoder_norm"]["scale"] = msgpack.ExtType(code, data)

    change_target(legacy, put)
    refused(load_t5x, legacy, f"msgpack type {code}")
    assert not (tmp_path / "done").exists()


def test_a_pickle_as_an_array_of_the_index(legacy, tmp_path):
    data = pickle.dumps(Payload(tmp_path / "done"))
    for content in (data, ([1], "object", data), ([1], "O", data)):
        packed = msgpack.packb(content)

        def put(target, packed=packed):
            scale = msgpack.ExtType(1, packed)
            target["encoder"]["encoder_norm"]["scale"] = scale

        change_target(legacy, put)
        refused(load_t5x, legacy, "encoder_norm/scale.*is no array of float32")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    "content",
    [
        ([2**40], "float32", bytes(4)),
        ([2**32, 2**32], "float32", bytes(0)),
        ([2**63], "float32", bytes(4)),
        ([-1], "float32", bytes(48)),
        ([12], "float32", bytes(47)),
        ([12], "float32", "text"),
        (["12"], "float32", bytes(48)),
        ([12], ["float32"], bytes(48)),
        ([12], "float32"),
        ([12], "float64", bytes(96)),
        ([1], "(12,)f4", bytes(48)),
        {"shape": [12]},
        12,
    ],
    ids=str,
)
def test_an_array_of_the_index_that_lies(legacy, content):
    def put(target):
        scale = msgpack.ExtType(1, msgpack.packb(content))
        target["encoder"]["encoder_norm"]["scale"] = scale

    change_target(legacy, put)
    refused(load_t5x, legacy, "encoder_norm/scale.*is no array of float32")


@pytest.mark.parametrize("value", [None, 3, "text", b"bytes", [1, 2], {}, True])
def test_a_leaf_that_is_no_array(legacy, value):
    def put(target):
        target["encoder"]["encoder_norm"]["scale"] = value

    change_target(legacy, put)
    refused(load_t5x, legacy, "encoder_norm/scale")


# Zarr folders.


EMBEDDING = "target.token_embedder.embedding"


def embedding(target) -> dict:
    return target["token_embedder"]["embedding"]


def put_zarr(folder: pathlib.Path, **options) -> None:
    """The embedding once more, in four chunks of [25, 6] and gzip."""
    shutil.rmtree(folder / EMBEDDING)
    array = np.ones((50, 12), np.float32)
    metadata = writing.write_zarr(
        folder / EMBEDDING, array, chunks=(25, 6), **options
    )

    def put(target):
        embedding(target)["metadata"] = metadata

    change_target(folder, put)


@pytest.mark.parametrize(
    "place", ["absolute", "../x", "a/../../x", "..", ".", "", "..\\x", "a\0b"]
)
@pytest.mark.parametrize("placeholder", [False, True])
def test_an_array_outside_the_folder(legacy, place, placeholder):
    """The array is there, and is the right one."""
    (legacy / EMBEDDING).rename(legacy.parent / "x")
    place = f"{legacy.parent}/x" if place == "absolute" else place

    def put(target):
        if placeholder:
            target["token_embedder"]["embedding"] = f"PLACEHOLDER://{place}"
        else:
            embedding(target)["kvstore"]["path"] = place

    change_target(legacy, put)
    refused(load_t5x, legacy, "expected a name inside|cannot be followed")


@pytest.mark.parametrize("what", [EMBEDDING, f"{EMBEDDING}/0.0", "checkpoint"])
def test_a_link_out_of_the_checkpoint(legacy, what):
    outside = (legacy / what).rename(legacy.parent / "x")
    (legacy / what).symlink_to(outside)
    refused(load_t5x, legacy, "is a link to outside the folder")


def test_a_link_to_itself(legacy):
    (legacy / "a").symlink_to(legacy / "b")
    (legacy / "b").symlink_to(legacy / "a")
    refused(load_t5x, legacy, "cannot be followed|link to outside")


def test_a_link_inside_the_checkpoint_is_followed(legacy):
    (legacy / EMBEDDING).rename(legacy / "x")
    (legacy / EMBEDDING).symlink_to("x")
    assert load_t5x(legacy)[1] == CONFIG


@pytest.mark.parametrize(
    "change",
    [
        {"driver": "json"},
        {"driver": "n5"},
        {"kvstore": {"driver": "http", "path": "x"}},
        {"kvstore": {"driver": "file", "path": ["x"]}},
        {"kvstore": "file:///etc"},
        {"metadata": None},
        {"metadata": []},
    ],
    ids=str,
)
def test_a_specification_of_something_else(legacy, change):
    change_target(legacy, lambda target: embedding(target).update(change))
    refused(load_t5x, legacy, "expected a zarr folder beside it")


def test_one_folder_for_two_arrays(legacy):
    def put(target):
        wo = target["encoder"]["layers_0"]["mlp"]["wo"]["kernel"]
        target["encoder"]["layers_1"]["mlp"]["wo"]["kernel"] = wo

    change_target(legacy, put)
    refused(load_t5x, legacy, "uses the folder .*wo.kernel' twice")


CHUNK = np.ones((25, 6), np.float32).tobytes()


@pytest.mark.parametrize("compressor", ["gzip", "zlib", None])
@pytest.mark.parametrize(
    "content",
    [CHUNK[:-4], CHUNK + bytes(4), b"", CHUNK * 2],
    ids=["short", "long", "empty", "double"],
)
def test_a_chunk_of_another_size(legacy, compressor, content):
    put_zarr(legacy, compressor=compressor)
    assert load_t5x(legacy)[1] == CONFIG
    pack = {"gzip": gzip.compress, "zlib": zlib.compress, None: bytes}
    (legacy / EMBEDDING / "1.1").write_bytes(pack[compressor](content))
    refused(load_t5x, legacy, "token_embedder/embedding' is damaged")


def test_a_chunk_that_is_cut_off_or_changed(legacy):
    put_zarr(legacy)
    chunk = legacy / EMBEDDING / "0.1"
    whole = chunk.read_bytes()
    for content in (whole[:20], whole[:3], b"\xff" * len(whole), whole * 2):
        chunk.write_bytes(content)
        refused(load_t5x, legacy, "token_embedder/embedding' is damaged")


def gzip_of_zeros(blocks: int) -> bytes:
    """16 MiB a block, in 16 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 24)

    def block() -> bytes:
        return packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)

    return block() + block() * (blocks - 1)


def zstd_of_zeros(size: int) -> bytes:
    """A frame of run-length blocks: up to 128 KiB in 4 bytes (RFC 8878)."""
    frame, window = (0xFD2FB528).to_bytes(4, "little"), bytes([0, 7 << 3])
    blocks = []
    while size:
        length = min(size, 1 << 17)
        size -= length
        header = (size == 0) | 1 << 1 | length << 3
        blocks.append(header.to_bytes(3, "little") + bytes(1))
    return frame + window + b"".join(blocks)


def put_zstd(folder: pathlib.Path, content: bytes) -> None:
    path = folder / EMBEDDING / ".zarray"
    metadata = json.loads(path.read_text()) | {"compressor": {"id": "zstd"}}
    path.write_text(json.dumps(metadata))
    for chunk in ("0.0", "0.1", "1.0", "1.1"):
        (folder / EMBEDDING / chunk).write_bytes(content)


def test_a_chunk_that_is_a_bomb(legacy):
    """2 GiB of zeros in 2 MB, and in 64 kB."""
    put_zarr(legacy)
    (legacy / EMBEDDING / "0.0").write_bytes(gzip_of_zeros(128))
    refused(load_t5x, legacy, "token_embedder/embedding' is damaged")
    put_zstd(legacy, zstd_of_zeros(len(CHUNK)))
    assert not load_t5x(legacy)[0]["token_embedder"]["embedding"].any()
    put_zstd(legacy, zstd_of_zeros(1 << 31))
    refused(load_t5x, legacy, "token_embedder/embedding' is damaged")


@pytest.mark.parametrize("name", ["0.1", "1.1"])
def test_a_chunk_that_is_missing_is_not_zeros(legacy, name):
    put_zarr(legacy)
    (legacy / EMBEDDING / name).unlink()
    refused(load_t5x, legacy, "has 3 chunks, expected 4")


@pytest.mark.parametrize("name", ["2.0", "0", "0.00", "x", "0.1/0"])
def test_a_chunk_of_no_place(legacy, name):
    put_zarr(legacy)
    path = legacy / EMBEDDING / name
    (legacy / EMBEDDING / "0.1").unlink()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CHUNK)
    refused(load_t5x, legacy, "has 4 chunks, expected 4 with their own names")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2**40, 2**40]},
        {"shape": [50, -12]},
        {"shape": [50, 12.0]},
        {"shape": "50"},
        {"shape": [50]},
        {"shape": [1] * 50},
        {"shape": [50, 0]},
        {"chunks": [0, 6]},
        {"chunks": [2**40, 2**40]},
        {"chunks": None},
        {"dtype": "|O"},
        {"dtype": "<u2"},
        {"dtype": [["a", "<f4"]]},
        {"dtype": None},
        {"order": "F"},
        {"filters": [{"id": "pickle"}]},
        {"compressor": {"id": "pickle"}},
        {"compressor": "gzip"},
        {"compressor": {}},
        {"zarr_format": 3},
        {"dimension_separator": "/"},
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["folder", "index"])
def test_metadata_that_lie(legacy, change, where):
    put_zarr(legacy, zarray=where == "folder")
    if where == "folder":
        path = legacy / EMBEDDING / ".zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        change_target(
            legacy, lambda target: embedding(target)["metadata"].update(change)
        )
    refused(
        load_t5x, legacy, "token_embedder/embedding' has .*(metadata|chunks)"
    )


def test_a_chunk_much_larger_than_its_array(legacy):
    put_zarr(legacy)
    for name in ("0.1", "1.0", "1.1"):
        (legacy / EMBEDDING / name).unlink()
    path = legacy / EMBEDDING / ".zarray"
    vast = json.loads(path.read_text()) | {"chunks": [2**39, 2**39]}
    path.write_text(json.dumps(vast))
    refused(load_t5x, legacy, r"has chunks \[549755813888, 549755813888\]")


def test_metadata_that_are_no_json_object(legacy):
    put_zarr(legacy)
    for text in ("[" * 60_000, '{"a":' * 10_000, "[]", "", "\ufffd"):
        (legacy / EMBEDDING / ".zarray").write_text(text)
        refused(load_t5x, legacy, "embedding/.zarray' is damaged")
    with (legacy / EMBEDDING / ".zarray").open("wb") as file:
        file.truncate(1 << 40)
    refused(load_t5x, legacy, "1099511627776 bytes, expected at most")


def test_weights_that_the_files_cannot_hold(legacy):
    """One chunk of 64 TiB, which is there, of a kilobyte."""
    put_zarr(legacy)
    vast = {"shape": [2**22, 2**22], "chunks": [2**22, 2**22]}
    path = legacy / EMBEDDING / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | vast))
    for name in ("0.1", "1.0", "1.1"):
        (legacy / EMBEDDING / name).unlink()
    change_target(
        legacy, lambda target: embedding(target)["metadata"].update(vast)
    )
    refused(load_t5x, legacy, "claims to hold 703687442.* bytes of weights")


def test_a_thousand_layers_with_a_hole(legacy):
    def put(target):
        target["encoder"]["layers_9999"] = target["encoder"].pop("layers_1")

    change_target(legacy, put)
    refused(load_t5x, legacy, "encoder/layers_1 is missing")


# The metadata of an orbax checkpoint.


def metadata_of(entries: list[tuple[str, ...]], **options) -> dict:
    return {
        "tree_metadata": {
            str(keys): {
                "key_metadata": [{"key": key, "key_type": 2} for key in keys],
                "value_metadata": {"value_type": "jax.Array"},
            }
            for keys in entries
        },
        "use_ocdbt": False,
        **options,
    }


@pytest.mark.parametrize(
    "key", ["../x", "/etc/x", "a/b", "..", "", "a\0", "x\n", 3, None]
)
def test_orbax_names_that_lead_out(legacy, key):
    """The array is there: `target.../x` is `x` beside the checkpoint."""
    (legacy / "target.").mkdir()
    (legacy / EMBEDDING).rename(legacy.parent / "x")
    raw = metadata_of([("target", key)])
    (legacy / "_METADATA").write_text(json.dumps(raw))
    refused(load_t5x, legacy, "has the key .*expected plain names")


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"tree_metadata": []},
        {"tree_metadata": {"a": 3}},
        {"tree_metadata": {"a": {"key_metadata": 3}}},
        {"tree_metadata": {"a": {"key_metadata": ["target"]}}},
        metadata_of([("target", "a")], use_zarr3="yes"),
    ],
    ids=str,
)
def test_orbax_metadata_that_are_none(legacy, raw):
    (legacy / "_METADATA").write_text(json.dumps(raw))
    refused(load_t5x, legacy, "_METADATA' has")


def test_orbax_without_its_arrays(legacy):
    entries = [("target", "token_embedder", "nothing"), ("state", "../../x")]
    (legacy / "_METADATA").write_text(json.dumps(metadata_of(entries[:1])))
    refused(load_t5x, legacy, "token_embedder/nothing' has no .zarray")
    (legacy / "_METADATA").write_text("[" * 100_000)
    refused(load_t5x, legacy, "is not valid JSON")
    (legacy / "manifest.ocdbt").write_bytes(b"\x0c\xdb" + bytes(1000))
    (legacy / "_METADATA").write_text(json.dumps(metadata_of(entries[:1])))
    refused(load_t5x, legacy, "token_embedder/nothing' is damaged")


def test_other_projects_folders(single, shards, tmp_path):
    """Neither reader takes the other's folder."""
    refused(load_t5x, single, "is no T5X checkpoint")
    writing.write_legacy(tmp_path / "c", {})
    refused(hf.load, tmp_path / "c", "config.json' does not exist")
    safetensors.numpy.save_file({}, single / "model.safetensors")
    refused(hf.load, single, "Missing")
