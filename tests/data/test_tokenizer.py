import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panda_jax.tasks import offline

from panda_jax.data.tokenizer import SPECIALS, Tokenizer, truncated_lengths
from panda_jax.errors import UserError

PAIRS = [
    ("The bank's fee -- $2.50!? -- was refunded.", "It cost nothing."),
    ("Café naïve Ünïcode \u4e2d\u6587 text\u200b\twith tabs", "e\u0301tude"),
    ("short", "a far longer second text " * 12),
    ("a far longer first text " * 12, "short"),
    ("both are long, this one by a word " * 9, "both are long indeed " * 9),
    ("antidisestablishmentarianism", "pneumonoultramicroscopic"),
    ("", "an empty first text"),
    ("[SEP] [CLS] markers typed by a user [MASK]", "##ing is text too"),
]


@pytest.mark.parametrize("max_length", [5, 8, 9, 16, 33, 128])
def test_pairs_equal_hugging_face(minilm_folder, max_length):
    transformers = pytest.importorskip("transformers")

    theirs = transformers.BertTokenizerFast.from_pretrained(minilm_folder)
    ours = Tokenizer.from_folder(minilm_folder)
    rows = offline.rows("toy_entailment", "validation")[:40]
    pairs = PAIRS + [(row["sentence1"], row["sentence2"]) for row in rows]
    for a, b in pairs:
        a_ids, b_ids = ours.encode([a, b])
        for args, ids in (((a, b), b_ids), ((a,), None)):
            want = theirs(*args, truncation=True, max_length=max_length)
            tokens, segments = ours.pair(a_ids, ids, max_length)
            assert tokens == want["input_ids"], (args, max_length)
            assert segments == want["token_type_ids"], (args, max_length)


def test_vocab_txt_equals_tokenizer_json(minilm_folder, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(
        (minilm_folder / "vocab.txt").read_bytes()
    )
    texts = [text for pair in PAIRS for text in pair]
    whole = Tokenizer.from_folder(minilm_folder)
    words = Tokenizer.from_folder(tmp_path)
    assert words.encode(texts) == whole.encode(texts)
    assert words.vocab_size == whole.vocab_size


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 60))
def test_truncation_equals_the_library(a, b, budget):
    inner = _library()
    inner.enable_truncation(budget, strategy="longest_first")
    encoding = inner.encode("a " * a, "b " * b, add_special_tokens=False)
    kept = encoding.tokens.count("a"), encoding.tokens.count("b")
    assert truncated_lengths(a, b, budget) == kept


def _library():
    import tokenizers

    return tokenizers.Tokenizer.from_str(
        Tokenizer.builtin()._inner.to_str()  # a copy, ours stays as it is
    )


def test_builtin_covers_ascii_and_the_builtin_tasks():
    tokenizer = Tokenizer.builtin()
    assert [tokenizer.pad_id, tokenizer.unk_id] == [0, 1]
    assert [tokenizer.cls_id, tokenizer.sep_id] == [2, 3]
    texts = ["Zebra #42: (x^2) `quoted` ~ | \\ {y} <z>"]
    for name in offline.GENERATORS:
        for row in offline.rows(name, "validation"):
            texts += [v for k, v in row.items() if k != "label"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.unk_id not in ids, text
        assert max(ids) < tokenizer.vocab_size


def test_decode_inverts_encode():
    tokenizer = Tokenizer.builtin()
    text = "the red painter near the doctor is waiting in london."
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    tokens, _ = tokenizer.pair(ids, ids, 64)
    shown = tokenizer.decode(tokens + [0, 0])
    assert shown == f"[CLS] {text} [SEP] {text} [SEP]"


def test_fingerprint_tells_vocabularies_apart(tmp_path):
    _write_vocabulary(tmp_path, ["red", "green"])
    first = Tokenizer.from_folder(tmp_path)
    assert first.fingerprint == Tokenizer.from_folder(tmp_path).fingerprint
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"do_lower_case": False}))
    cased = Tokenizer.from_folder(tmp_path)
    assert cased.encode(["Red"]) == [[cased.unk_id]]
    assert first.encode(["Red"]) == [[5]]
    _write_vocabulary(tmp_path, ["green", "red"])
    swapped = Tokenizer.from_folder(tmp_path)
    prints = {t.fingerprint for t in (first, cased, swapped)}
    assert len(prints) == 3


def _write_vocabulary(folder, words, specials=SPECIALS):
    text = "\n".join([*specials, *words]) + "\n"
    (folder / "vocab.txt").write_text(text)


def test_missing_and_broken_folders_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json.*vocab\.txt"):
        Tokenizer.from_folder(tmp_path)
    _write_vocabulary(tmp_path, ["a"], specials=("[PAD]", "[UNK]", "[CLS]"))
    with pytest.raises(UserError, match=r"vocab\.txt' lacks .*\[SEP\]"):
        Tokenizer.from_folder(tmp_path)
    _write_vocabulary(tmp_path, ["a"], specials=SPECIALS[::-1])
    with pytest.raises(UserError, match=r"\[PAD\] the id 4, expected 0"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(UserError, match=r"vocab\.txt' cannot be read"):
        Tokenizer.from_folder(tmp_path)
    _write_vocabulary(tmp_path, ["a"])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": 3}')
    with pytest.raises(UserError, match="do_lower_case 3"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model":')
    with pytest.raises(UserError, match=r"tokenizer\.json' is broken"):
        Tokenizer.from_folder(tmp_path)


def test_no_room_for_text_is_an_error():
    tokenizer = Tokenizer.builtin()
    with pytest.raises(UserError, match="max_length is 4, expected at least 5"):
        tokenizer.pair([7], [8], 4)
    with pytest.raises(UserError, match="at least 3"):
        tokenizer.pair([7], None, 2)
    assert tokenizer.pair([7, 9], [8, 9], 5)[0] == [2, 7, 3, 8, 3]
