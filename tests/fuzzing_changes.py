"""Changes to valid files that readers must survive: by bytes and by structure.

Every change is a function of a seeded generator and of a file's bytes, and
gives other bytes, which may well be valid again.
"""

import copy
import io
import json
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import msgpack

Change = Callable[[random.Random, bytes], bytes]

# Bytes of a changed file at most, so that what a reader takes beyond them is
# of its own making.
MOST = 1 << 16
NUMBERS = (
    *(-1, 0, 1, 2, 3, 7, 127, 128, 255, 256, 1000, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53 + 1, 2**60),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, 10**4200),
    *(-(2**31), -(2**31) - 1, -(2**63), -(10**400)),
    *(0.0, -0.0, 0.5, 1.5, -1.5, 1e-320, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "\0", "\n", "\t", "\x1b[2J", "\ufeff", "\u2028", "\ud800"),
    *(".", "..", "../x", "../outside", "../../etc/passwd", "/etc/passwd"),
    *("a/b", "a\\b", "~", "file:///etc/passwd", "gs://b/x", "x.safetensors"),
    *(
        "é",
        "漢字",
        "𝄞" * 40,
        "e\u0301" * 40,
        "a" * 3000,
        "-" * 3000,
        "a " * 999,
    ),
    *("nan", "NaN", "inf", "1e999", "-1", "0x10", "1_0", "１", "null", "true"),
    *("$x_{", "%s%n", "{}", "{premise}", "{0.__class__}", "@placeholder"),
    *("F32", "BF16", "F64", "I64", "BOOL", "<f4", "|O", "<f8", "float64"),
    *("bert", "t5", "relu", "gelu", "PROMPT_TUNING", "PREFIX_TUNING"),
    *("SEQ_CLS", "SEQ_2_SEQ_LM", "deep", "shallow", "cb", "entailment"),
)
# Python cannot print what is nested a thousand deep, nor parse much more.
DEPTHS = (60, 70, 500, *range(900, 1000, 3), 5000, 30_000)


def change(rng: random.Random, data: bytes, *kinds: Change) -> bytes:
    """One to three changes; by bytes alone for one in four."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.choice((*kinds, *kinds, *kinds, by_bytes))
        try:
            data = kind(rng, data)
        except Exception:  # what is damaged already has no structure
            data = by_bytes(rng, data)
    return data[:MOST]


def by_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flips, cuts, splices, repeats and numbers that are out of bounds."""
    kind = rng.randrange(8)
    at = rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[at:]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16))) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.choice((1, 2, 4, 16, 256)) :]
    if kind == 4:
        other = rng.randrange(len(data) + 1)
        part = data[other : other + rng.choice((1, 4, 16, 64, 1024))]
        return data[:at] + part + data[at + rng.choice((0, len(part))) :]
    if kind == 5:
        part = data[at : at + rng.choice((1, 2, 8, 64))]
        return data[:at] + part * rng.choice((2, 10, 1000)) + data[at:]
    changed = bytearray(data)
    if not changed:
        return rng.randbytes(8)
    if kind == 6:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice([n for n in NUMBERS if isinstance(n, int)])
    order = rng.choice(("little", "big"))
    number = (number % 2 ** (8 * size)).to_bytes(size, order)
    changed[at : at + size] = number
    return bytes(changed)


def any_value(rng: random.Random) -> Any:
    """A value where another was expected."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind == 7:
        return f"@deep {rng.choice(DEPTHS)} {rng.choice('[{')}"
    many = rng.choice((1, 2, 5, 100, 5000))
    return rng.choice(
        (None, True, False, [], {}, [0] * many, [[]] * many, {"a": {}}, [None])
    )


def any_node(rng: random.Random, value: Any) -> Any:
    """A value with one of its parts changed."""
    value = copy.deepcopy(value)
    places = []
    todo = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            places += [(node, key) for key in keys]
            todo += [node[key] for key in keys]
    if not places or rng.random() < 0.03:
        return any_value(rng)
    node, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind < 5:
        node[key] = any_value(rng)
    elif kind == 5:
        del node[key]
    elif kind == 6 and isinstance(node, dict):
        node[str(rng.choice(TEXTS))] = node.pop(key)
    elif kind == 6:
        node.insert(key, copy.deepcopy(node[key]))
    elif kind == 7:
        other, where = rng.choice(places)
        node[key], other[where] = (
            copy.deepcopy(other[where]),
            copy.deepcopy(node[key]),
        )
    elif kind == 8:
        node[key] = rng.choice(([node[key]], {"a": node[key]}))
    elif isinstance(node[key], int | float) and abs(node[key]) < 2**53:
        node[key] = rng.choice((node[key] + 1, node[key] - 1, -node[key]))
    else:
        node[key] = str(node[key])
    return value


def json_text(value: Any, rng: random.Random) -> bytes:
    """JSON, with what is to be deep as deep as it says."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)

    def deep(found: re.Match[str]) -> str:
        depth = int(found[1])
        if found[2] == "[":
            return "[" * depth + "]" * depth
        return '{"a":' * depth + "1" + "}" * depth

    text = re.sub(r'"@deep (\d+) (.)"', deep, text)
    return text.encode("utf-8", "surrogatepass")


def by_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with a value changed."""
    return json_text(any_node(rng, json.loads(data)), rng)


def by_json_line(rng: random.Random, data: bytes) -> bytes:
    """A file of a JSON object a line with one changed."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = by_json(rng, lines[at])
    return b"\n".join(lines)


def by_line(rng: random.Random, data: bytes) -> bytes:
    """Lines that go, come twice, change places or are many."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = str(rng.choice(TEXTS)).encode("utf-8", "surrogatepass")
    else:
        lines[at:at] = [b""] * rng.choice((1, 2, 20_000))
    return b"\n".join(lines)


def by_cell(separator: bytes) -> Change:
    """Cells of a table that change, go or come twice."""

    def changed(rng: random.Random, data: bytes) -> bytes:
        lines = data.split(b"\n")
        at = rng.randrange(len(lines))
        cells = lines[at].split(separator)
        place = rng.randrange(len(cells))
        kind = rng.randrange(5)
        value = rng.choice(
            (*TEXTS, *map(str, NUMBERS[:-8]), "(X*", "*)", "B-V")
        )
        text = str(value).encode("utf-8", "surrogatepass")
        if kind < 3:
            cells[place] = text
        elif kind == 3:
            del cells[place]
        else:
            cells.insert(place, cells[place])
        lines[at] = separator.join(cells)
        return b"\n".join(lines)

    return changed


def by_names(rng: random.Random, data: bytes) -> bytes:
    """A table of scores that names much and says little."""
    header, *lines = data.split(b"\n")
    columns = header.count(b",") + 1
    for i in range(rng.choice((10, 100, 300, 300, 1500))):
        names = [
            f"{rng.choice('ab')}{i if rng.random() < 0.9 else 0}"
            for _ in range(columns - 1)
        ]
        lines.append(",".join([*names, "0.5"]).encode())
    return b"\n".join([header, *lines])


def by_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header of a safetensors file, or the length that it claims."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.15:
        number = rng.choice(NUMBERS[:24])
        return (number % 2**64).to_bytes(8, "little") + data[8:]
    text = json_text(any_node(rng, header), rng)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def by_npy(rng: random.Random, data: bytes) -> bytes:
    """The header of an npy file: its version, its length, what it claims."""
    size = int.from_bytes(data[8:10], "little")
    text, rest = data[10 : 10 + size].decode("latin-1"), data[10 + size :]
    claims = {
        "descr": ("'|O'", "'<f8'", "'>f4'", "[('a', '<f4')]", "'V0'", "'<U9'"),
        "shape": (
            "()",
            "(0, 0)",
            "(-1, 4)",
            "(2**9,)",
            "(4611686018427387904, 4)",
        )
        + (f"({10**400}, 1)", "(1,) * 9", "(" * 150, "(((1,),),)", "(True, 1)"),
        "fortran_order": ("True", "None", "1", "[" * 900 + "]" * 900),
    }
    name = rng.choice(list(claims))
    text = re.sub(
        rf"'{name}': (\([^)]*\)|[^,]*)",
        lambda _: f"'{name}': {rng.choice(claims[name])}",
        text,
    )
    kind = rng.random()
    if kind < 0.1:
        text += " " * rng.choice((1, 9000, 60_000))
    header = text.encode("latin-1")
    length = len(header)
    if kind > 0.9:
        length = rng.choice((0, 1, length - 1, length + 1, 2**16 - 1))
    version = rng.choice((b"\1\0",) * 8 + (b"\2\0", b"\3\0", b"\xff\xff"))
    digits = 2 if version == b"\1\0" else 4
    if digits == 4 and rng.random() < 0.3:
        length = 2**32 - 1
    length = min(length, 2 ** (8 * digits) - 1).to_bytes(digits, "little")
    return data[:6] + version + length + header + rest


def by_zip(rng: random.Random, data: bytes, inner: Change) -> bytes:
    """An archive with one record changed, its check sums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(e.filename, archive.read(e)) for e in archive.infolist()]
    at = rng.randrange(len(records))
    name, content = records[at]
    kind = rng.randrange(12)
    if kind == 0:
        del records[at]
    elif kind == 1:
        name = name.rpartition("/")[0] + "/" + rng.choice(("..", "x", "0", "1"))
        records[at] = name, content
    elif kind == 2:
        records.append((rng.choice(("../x", "/x", "x/y", "é")), content))
    elif kind == 3:
        content += bytes(rng.choice((1, 4, MOST)))
        records[at] = name, content
    else:
        records[at] = name, inner(rng, content)
    packing = zipfile.ZIP_STORED
    if rng.random() < 0.05:
        packing = zipfile.ZIP_DEFLATED
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return made.getvalue()


def by_npz(rng: random.Random, data: bytes) -> bytes:
    """An npz file with one array changed."""
    return by_zip(rng, data, lambda r, d: change(r, d, by_npy))


def by_torch(rng: random.Random, data: bytes) -> bytes:
    """A torch file with its pickle, or another record, changed."""
    return by_zip(rng, data, lambda r, d: change(r, d, by_pickle))


def by_pickle(rng: random.Random, data: bytes) -> bytes:
    """A pickle with an opcode less, twice, elsewhere or of other value."""
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    ends = [*starts[1:], len(data)]
    parts = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    kind = rng.randrange(6)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts.insert(other, parts[at])
    elif kind == 2:
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 3:
        parts.insert(at, rng.choice(_OPCODES))
    elif kind == 4:
        parts[at:at] = [rng.choice((b"(", b"}", b")\x85", b"\x85", b"0", b"2"))]
        parts[at] *= rng.choice((1, 5, 1000, 20_000))
    else:
        number = rng.choice([n for n in NUMBERS if isinstance(n, int)])
        packed = number.to_bytes(200, "little", signed=True)
        parts[at] = b"\x8a\xc8" + packed
    return b"".join(parts)


_OPCODES = (
    b"cposix\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"R",
    b"Q",
    b"b",
    b"o",
    b"\x81",
    b"\x93",
    b".",
    b"N",
    b"I99999999999999\n",
    b"F1e999\n",
    b"X\xff\xff\xff\xff",
    b"X\x01\0\0\0a",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8d" + b"\xff" * 8,
    b"r\xff\xff\xff\xff",
    b"j\0\0\0\0",
    b"q\0",
    b"h\0",
    b"Vx\\ud800\n",
    b"S'\\x'\n",
    b"\x80\x05",
)


def by_msgpack(rng: random.Random, data: bytes) -> bytes:
    """A msgpack file with a value changed, arrays inside it too."""
    value = msgpack.unpackb(data, strict_map_key=False)
    value = any_node(rng, value)
    todo = [value]
    packed = []
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            inner = node.items() if isinstance(node, dict) else enumerate(node)
            packed += [
                (node, k) for k, v in inner if isinstance(v, msgpack.ExtType)
            ]
            todo += node.values() if isinstance(node, dict) else node
    if packed and rng.random() < 0.4:
        node, key = rng.choice(packed)
        array = msgpack.unpackb(node[key].data)
        code = rng.choice((1, 1, 1, 3, 0, 42))
        content = _packed(any_node(rng, array))
        if rng.random() < 0.1:
            content = b"\x91" * rng.choice((10, 5000)) + b"\xc0"
        node[key] = msgpack.ExtType(code, content)
    return _packed(value)


def _packed(value: Any) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            return 2**64 - 1
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        if isinstance(value, dict):
            return {plain(k): plain(v) for k, v in value.items()}
        return value

    return msgpack.packb(plain(value))


def by_protobuf(rng: random.Random, data: bytes) -> bytes:
    """Tags and lengths of a protocol buffer, where they may be."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(changed))
        changed[at : at + 1] = rng.choice(
            (
                b"\xff" * 9 + b"\1",
                b"\x80",
                b"\x12",
                b"\0",
                struct.pack("<d", 1e308),
            )
        )
    return bytes(changed)
