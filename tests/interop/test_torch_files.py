import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from panda_jax import errors
from panda_jax.interop import torch_files

DTYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def _saved(tmp_path: pathlib.Path, value, **options) -> pathlib.Path:
    path = tmp_path / "file.bin"
    torch.save(value, path, **options)
    return path


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _assert_same(read: dict, expected: dict) -> None:
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == _numpy(tensor).dtype
        np.testing.assert_array_equal(read[name], _numpy(tensor))


# --- What torch writes ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(tmp_path, dtype):
    tensor = (torch.arange(6).reshape(2, 3) % 2 - 1).to(dtype)
    read = torch_files.read(_saved(tmp_path, {"a": tensor}))["a"]
    assert read.dtype == DTYPES[dtype]
    _assert_same({"a": read}, {"a": tensor.contiguous()})


def test_views_of_one_storage(tmp_path):
    base = torch.randn(4, 6, 5)
    views = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:3, ::2, 4],
        "last": base[-1, -1, -1],
        "row": base[2:3].expand(1, 6, 5),
        "empty": base[:, :0],
        "repeated": base[:1, :1].expand(4, 6, 5),
    }
    _assert_same(torch_files.read(_saved(tmp_path, views)), views)


def test_a_module_and_its_parameters(tmp_path):
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)
    ).half()
    state = module.state_dict()
    _assert_same(torch_files.read(_saved(tmp_path, state)), state)
    parameters = dict(module.named_parameters())
    assert isinstance(parameters["0.weight"], torch.nn.Parameter)
    _assert_same(torch_files.read(_saved(tmp_path, parameters)), parameters)


def test_a_bare_tensor(tmp_path):
    tensor = torch.randn(3, 2)
    _assert_same(torch_files.read(_saved(tmp_path, tensor)), {"": tensor})


def test_a_checkpoint(tmp_path):
    module = torch.nn.Linear(3, 2)
    # As AdamW's, whose import takes seconds.
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.randn(2, 3)}
    optimizer = {
        "state": {0: moments, 1: {"step": torch.tensor(2.0)}},
        "param_groups": [
            {"lr": 1e-3, "betas": (0.9, 0.99), "amsgrad": False, "params": [0]}
        ],
    }
    value = {
        "model": module.state_dict(),
        "optimizer": optimizer,
        "epoch": 3,
        "name": "größe",
        "scores": [0.5, None, True, -(2**40), 10**30],
        5: (module.bias, {"x": [module.bias]}),
    }
    read = torch_files.read(_saved(tmp_path, value))
    expected = {
        "model/weight": module.weight,
        "model/bias": module.bias,
        "optimizer/state/0/step": moments["step"],
        "optimizer/state/0/exp_avg": moments["exp_avg"],
        "optimizer/state/1/step": torch.tensor(2.0),
        "5/0": module.bias,
        "5/1/x/0": module.bias,
    }
    _assert_same(read, expected)


def test_arrays_take_no_memory_of_their_own(tmp_path):
    base = torch.zeros(1000)
    read = torch_files.read(_saved(tmp_path, {"a": base, "b": base[5:]}))
    assert np.shares_memory(read["a"], read["b"])
    with pytest.raises(ValueError, match="read-only"):
        read["a"][0] = 1


def test_loads_no_torch(tmp_path):
    path = _saved(tmp_path, {"a": torch.ones(2)})
    code = (
        "import sys\n"
        "from panda_jax.interop import torch_files\n"
        "assert torch_files.read(sys.argv[1])['a'].sum() == 2\n"
        "assert not {'torch', 'pickle5'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


# --- What others write ---


def _archive(
    path: pathlib.Path,
    data: bytes,
    *,
    storages: dict[str, bytes] | None = None,
    folder: str = "file",
    compression: int = zipfile.ZIP_STORED,
    **records: bytes,
) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", data)
        archive.writestr(f"{folder}/version", b"3\n")
        for name, content in records.items():
            archive.writestr(f"{folder}/{name}", content)
        for key, content in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", content)
    return path


class _Pickler(pickle.Pickler):
    """Writes the references to storages that torch writes."""

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, _Storage) else None


class _Storage:
    def __init__(self, key="0", size=4, kind=torch.FloatStorage, tag="storage"):
        self.reference = (tag, kind, key, "cpu", size)


class _Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _tensor(
    offset=0, shape=(4,), strides=(1,), storage=None, function=None
) -> _Call:
    return _Call(
        function or torch._utils._rebuild_tensor_v2,
        storage or _Storage(),
        offset,
        shape,
        strides,
        False,
        collections.OrderedDict(),
    )


def _pickle(value, protocol=2) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol, fix_imports=False).dump(value)
    return file.getvalue()


FOUR = {"0": np.arange(4, dtype=np.float32).tobytes()}


def _refused(path: pathlib.Path, match: str) -> None:
    with pytest.raises(errors.UserError, match=match) as caught:
        torch_files.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_archives_of_these_tests_are_read(tmp_path):
    path = _archive(tmp_path / "f", _pickle({"a": _tensor()}), storages=FOUR)
    np.testing.assert_array_equal(torch_files.read(path)["a"], range(4))
    torch.testing.assert_close(torch.load(path)["a"], torch.arange(4.0))


def _payloads(target: pathlib.Path) -> dict[str, _Call]:
    """Calls that make a file appear, by the names that they ask for."""
    code = f"open({str(target)!r}, 'w')"
    return {
        "posix.system": _Call(os.system, f"touch {target}"),
        "builtins.eval": _Call(eval, code),
        "builtins.exec": _Call(exec, code),
        "subprocess.Popen": _Call(subprocess.Popen, ["touch", str(target)]),
        "builtins.getattr": _Call(getattr, "", "join"),
        # `io` or, from Python 3.12 on, `_io`.
        f"{open.__module__}.open": _Call(open, str(target), "w"),
    }


@pytest.mark.parametrize("place", ["alone", "beside", "key", "argument"])
@pytest.mark.parametrize("name", _payloads(pathlib.Path()))
def test_payloads_are_refused_and_not_executed(tmp_path, name, place):
    target = tmp_path / "executed"
    payload = _payloads(target)[name]
    value = {
        "alone": payload,
        "beside": {"a": _tensor(), "b": payload},
        "key": collections.OrderedDict([(payload, _tensor())]),
        "argument": _tensor(offset=payload),
    }[place]
    path = _archive(tmp_path / "f", _pickle(value), storages=FOUR)
    _refused(path, rf"asks for '{name}'.*nothing of it was executed")
    time.sleep(0.05 if "Popen" in name else 0)
    assert not target.exists()
    # The payload does work where it is let.
    if place == "alone" and name == "posix.system":
        pickle.loads(_pickle(payload))
        assert target.exists()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is damaged"),
        (b"\x80\x02", "is damaged"),
        (b"\x80\x02.", "ends within a value"),
        (b"\x80\x02N", "is damaged"),
        (b"\x80\x02(N.", "ends within a value"),
        (b"\x80\x02NN.", "ends within a value"),
        (b"\x80\x02R.", "is damaged"),
        (b"\x80\x02t.", "is damaged"),
        (b"\x80\x02}u.", "is damaged"),
        (b"\x80\x02]NNs.", "is damaged"),
        (b"\x80\x02}(Nu.", "is damaged"),
        (b"\x80\x02}]Ns.", "neither text nor an integer"),
        (b"\x80\x02NNb.", "is damaged"),
        (b"\x80\x02NN\x81.", "opcode NEWOBJ"),
        (b"\x80\x02NQ.", "reference that is no storage"),
        (b"\x80\x02Pid\n.", "opcode PERSID"),
        (b"\x80\x02(cos\nsystem\no.", "'os.system'"),
        (b"\x80\x02(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "makes no tensor"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "makes no tensor"),
        (b"\x80\x02NNR.", "makes no tensor"),
        (b"\x80\x02\xff.", "is damaged"),
        # memo abuse: of nothing, of what was never put, and far away
        (b"\x80\x02q\x00.", "is damaged"),
        (b"\x80\x02h\x05.", "is damaged"),
        (b"\x80\x02j\xff\xff\xff\x7f.", "is damaged"),
        (b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7f.", "ends within"),
        # texts and numbers that say they are huge
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "is damaged"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "is damaged|opcode LONG4"),
        (b"I" + b"9" * 5000 + b"\n.", "is damaged|opcode INT"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "is damaged"),
        (pickle.dumps({"a": 1}, 4), "protocol 4, expected 2"),
        (pickle.dumps({"a": 1}, 5), "protocol 5, expected 2"),
        (pickle.dumps({"a": b"x"}, 2), "_codecs.encode"),
        (pickle.dumps({"a": {1, 2}}, 2), "set"),
        (pickle.dumps({"a": 1}, 2), "holds no tensors"),
        (pickle.dumps([1.5, "x"], 2), "holds no tensors"),
    ],
)
def test_damaged_and_foreign_pickles(tmp_path, data, match):
    _refused(_archive(tmp_path / "f", data), match)


def test_every_truncation_and_many_flips_of_the_pickle(tmp_path):
    whole = _pickle({"a": _tensor(), "b": [_tensor(1, (3,))]})
    for size in range(len(whole)):
        path = _archive(tmp_path / "f", whole[:size], storages=FOUR)
        _refused(path, "damaged")
    rng = np.random.default_rng(0)
    for place in range(2, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path = _archive(tmp_path / "f", bytes(flipped), storages=FOUR)
        try:
            arrays = torch_files.read(path)
        except errors.UserError:
            continue
        assert all(a.nbytes <= 64 for a in arrays.values())


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        ({"offset": 1}, "reaches out"),
        ({"offset": -1}, "expected two tuples of integers"),
        ({"offset": 2**70}, "reaches out"),
        ({"offset": 0.0}, "two tuples"),
        ({"offset": True}, "two tuples"),
        ({"shape": (5,)}, "reaches out"),
        ({"shape": (-4,)}, "two tuples"),
        ({"shape": (4, 1)}, "two tuples"),
        ({"shape": [4]}, "two tuples"),
        ({"shape": 4}, "two tuples"),
        ({"shape": (True,)}, "two tuples"),
        ({"shape": (4.0,)}, "two tuples"),
        ({"strides": (2,)}, "reaches out"),
        ({"strides": (-1,)}, "two tuples"),
        ({"strides": (2**64,)}, "reaches out"),
        ({"shape": (1 << 62,), "strides": (0,)}, "reaches out"),
        ({"shape": (2, 3), "strides": (1, 1)}, "reaches out"),
        ({"shape": (1 << 40, 1 << 40, 0), "strides": (1, 1, 1)}, "damaged"),
        ({"shape": (1,) * 17, "strides": (1,) * 17}, "two tuples"),
        ({"storage": _Storage(size=5)}, "16 bytes, expected 5 numbers"),
        ({"storage": _Storage(size=2**60)}, "16 bytes, expected"),
        ({"storage": _Storage(size=-4)}, "16 bytes, expected"),
        ({"storage": _Storage(size="4")}, "no storage"),
        ({"storage": _Storage(size=4.0)}, "no storage"),
        ({"storage": _Storage(key="1")}, "no record for the storage '1'"),
        ({"storage": _Storage(key="../data.pkl")}, "no record"),
        ({"storage": _Storage(key="/etc/passwd")}, "no record"),
        ({"storage": _Storage(key="")}, "no record"),
        ({"storage": _Storage(key=0)}, "no storage"),
        ({"storage": _Storage(kind="torch.FloatStorage")}, "no storage"),
        ({"storage": _Storage(kind=torch.DoubleStorage)}, "16 bytes"),
        ({"storage": _Storage(tag="module")}, "no storage"),
        ({"storage": _Storage(kind=torch.ComplexFloatStorage)}, "Complex"),
        ({"storage": 3}, "makes no tensor"),
        ({"function": torch._utils._rebuild_sparse_tensor}, "sparse"),
    ],
)
def test_views_out_of_bounds(tmp_path, tensor, match):
    data = _pickle({"a": _tensor(**tensor)})
    _refused(_archive(tmp_path / "f", data, storages=FOUR), match)


def test_the_stride_of_a_single_row_may_be_anything(tmp_path):
    data = _pickle({"a": _tensor(3, (1, 1), (2**70, 0))})
    read = torch_files.read(_archive(tmp_path / "f", data, storages=FOUR))
    np.testing.assert_array_equal(read["a"], [[3]])


def _nested(depth: int) -> list:
    value: list = [_tensor()]
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting(tmp_path):
    # The same list twice in each of 60 lists is 2^60 lists to who walks it.
    laughs: list = [_tensor()]
    for _ in range(60):
        laughs = [laughs, laughs]
    path = _archive(tmp_path / "f", _pickle(laughs), storages=FOUR)
    _refused(path, "nested too deeply")
    wide = [_tensor()] * 400
    for _ in range(3):
        wide = [wide] * 400
    path = _archive(tmp_path / "f", _pickle(wide), storages=FOUR)
    _refused(path, "nested too deeply|two tensors")
    own: dict = {"a": _tensor()}
    own["b"] = own
    path = _archive(tmp_path / "f", _pickle(own), storages=FOUR)
    _refused(path, "nested too deeply, or in themselves")
    path = _archive(tmp_path / "f", _pickle(_nested(8)), storages=FOUR)
    assert list(torch_files.read(path)) == ["0/0/0/0/0/0/0/0"]
    path = _archive(tmp_path / "f", _pickle(_nested(9)), storages=FOUR)
    _refused(path, "nested too deeply")
    # A tuple in a tuple in a ..., a hundred thousand deep.
    deep = b"\x80\x02)" + b"\x85" * 100_000 + b"."
    _refused(_archive(tmp_path / "f", deep), "nested too deeply")
    clash = {"a": {"b": _tensor()}, "a/b": _tensor()}
    path = _archive(tmp_path / "f", _pickle(clash), storages=FOUR)
    _refused(path, "two tensors of the name 'a/b'")


def test_the_order_of_bytes(tmp_path):
    data = _pickle({"a": _tensor()})
    path = tmp_path / "f"
    _archive(path, data, storages=FOUR, byteorder=b"little")
    assert torch_files.read(path)
    _archive(path, data, storages=FOUR, byteorder=b"big")
    _refused(path, "byte order is b'big', expected b'little'")


def test_archives_that_are_bombs_or_name_paths(tmp_path):
    data, path = _pickle({"a": _tensor()}), tmp_path / "f"
    zeros = {"0": bytes(1 << 24)}
    _archive(path, data, storages=zeros, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 15
    _refused(path, "is compressed")
    _archive(path, b"\x80\x02" + b"}0" * (1 << 20) + b"N.")
    _refused(path, "its pickle has 2097156 bytes, expected at most 1048576")
    for name in ("../data/1", "/etc/x", "x/../../y", "./y"):
        _archive(path, data, storages=FOUR)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"")
        _refused(path, "no archive of torch.save|is a path")
    for folder in ("..", "", "/tmp"):
        _archive(path, data, storages=FOUR, folder=folder)
        _refused(path, "is a path|no data.pkl|no archive")
    _archive(path, data, storages=FOUR)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(path, "a") as archive,
    ):
        archive.writestr("file/data/0", bytes(16))
    _refused(path, "same name")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/other", b"")
    _refused(path, "no data.pkl")


def test_an_archive_that_says_it_is_huge(tmp_path):
    path = _archive(tmp_path / "f", _pickle({"a": _tensor()}), storages=FOUR)
    content = bytearray(path.read_bytes())
    # The sizes of the last record in the central directory.
    entry = content.rindex(b"PK\x01\x02")
    struct.pack_into("<II", content, entry + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content)
    _refused(path, "cannot hold records of|is damaged")


def test_every_truncation_and_many_flips_of_the_archive(tmp_path):
    path = _saved(tmp_path, {"a": torch.arange(4.0)})
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        _refused(path, "is damaged|no archive")
    rng = np.random.default_rng(1)
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            read = torch_files.read(path)
        except errors.UserError:
            continue
        np.testing.assert_array_equal(read["a"], range(4))


def test_other_files(tmp_path):
    path = tmp_path / "f"
    _refused(path, "no such file")
    _refused(tmp_path, "no such file")
    for content in (b"", b"{}", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        _refused(path, "no archive of torch.save|is damaged")
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    _refused(path, "before torch 1.6; load it with torch and save it again")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    _refused(path, "is compressed")
    torch.save({"a": torch.ones(2)}, path, pickle_protocol=4)
    _refused(path, "protocol 4, expected 2")
    torch.save(torch.nn.Linear(1, 1), path)
    _refused(path, "asks for 'torch.nn.modules.linear.Linear'")
    torch.save({"a": torch.ones(2, dtype=torch.uint16)}, path)
    _refused(path, "asks for 'torch._utils._rebuild_tensor_v3'")
