"""Each setting of a tokenizer changes ids as it does elsewhere, or is refused.

The settings are those that `tokenizers` itself writes down and that
transformers' classes take: one that a later release adds fails here first.
"""

import inspect
import json
import pathlib
import shutil

import pytest
import small_spiece
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers

from panda_jax import UserError
from panda_jax.data import loading
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import SPECIALS, Tokenizer
from panda_jax.interop.hf_layouts import SENTENCES

REAL = pathlib.Path(__file__).parents[3] / "shared/data/t5_vocab/spiece.model"
TEXTS = [
    "The quick brown fox isn't here.",
    "Caf\u00e9 na\u00efve e\u0301te\u0301 \u0130stanbul",
    "\u4e2d\u6587and\u6771\u4eac \ud55c\uad6d",
    "tab\tnew\nline \u200bzero\u0000 hard\u00a0space",
    "[CLS] quick [MASK] [SEP] [MASK]quick <a> <s>b</s> <new>fox new fox",
    "  two  blanks " + "x" * 60 + " " + "x" * 150,
    "",
    "Fox fOX FOX",
]
WORDS = [
    *SPECIALS,
    *["<s>", "</s>", "<pad>", "<unk>", "<new>", "fox", "quick", "caf", "##e"],
    *["the", "The", "is", "##n", "##xx", "x", "cafe", "naive", "istanbul"],
    *["\u4e2d", "\u6587", "\u4e2d\u6587and", "##\u6587", "and", "ete", "__xx"],
    *["Fox", "Caf\u00e9", "new", "here", "##fox", "##and", "__n"],
    *[chr(i) for i in range(33, 127)],
    *[f"##{chr(i)}" for i in range(97, 123)],
    *[f"__{chr(i)}" for i in range(97, 123)],
]
WORDS = [*dict.fromkeys(WORDS)]


def write_words(folder: pathlib.Path, words=WORDS, **settings) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    if settings:
        write_settings(folder, **settings)
    return folder


def write_settings(folder: pathlib.Path, **settings) -> None:
    text = json.dumps({"tokenizer_class": "BertTokenizer", **settings})
    (folder / "tokenizer_config.json").write_text(text)


def change_whole(folder: pathlib.Path, change) -> tokenizers.Tokenizer:
    """Rewrites `tokenizer.json` after `change(its value)`."""
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return tokenizers.Tokenizer.from_file(str(path))


@pytest.fixture
def whole(tmp_path) -> pathlib.Path:
    """A folder with `tokenizer.json` alone, as transformers writes it."""
    made = transformers.BertTokenizerFast.from_pretrained(
        write_words(tmp_path / "words")
    )
    (tmp_path / "whole").mkdir()
    made.backend_tokenizer.save(str(tmp_path / "whole" / "tokenizer.json"))
    return tmp_path / "whole"


def plain_ids(tokenizer: tokenizers.Tokenizer) -> list[list[int]]:
    return [
        tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS
    ]


def assert_as_transformers(folder: pathlib.Path) -> Tokenizer:
    """With special tokens, alone and in pairs."""
    ours = Tokenizer.from_folder(folder)
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    ids = ours.encode(TEXTS)
    for i, text in enumerate(TEXTS):
        wanted = theirs(text)["input_ids"]
        assert ours.pair(ids[i], None, 999)[0] == wanted, text
        wanted = theirs(text, TEXTS[0])
        tokens, segments = ours.pair(ids[i], ids[0], 999)
        assert tokens == wanted["input_ids"], text
        assert segments == wanted["token_type_ids"], text
    assert (ours.pad_id, ours.unk_id) == (
        theirs.pad_token_id,
        theirs.unk_token_id,
    )
    return ours


# What `tokenizer.json` may say: the parts of BERT's, and a value for each
# setting of theirs that is not the one in the file.
PARTS = {
    "normalizer": normalizers.BertNormalizer(),
    "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
    "model": models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"),
}
OTHERS = {
    ("normalizer", "clean_text"): [False],
    ("normalizer", "handle_chinese_chars"): [False],
    ("normalizer", "strip_accents"): [False],
    ("normalizer", "lowercase"): [False],
    ("model", "unk_token"): ["<unk>"],
    ("model", "continuing_subword_prefix"): ["__"],
    ("model", "max_input_chars_per_word"): [7, 50, 110, 200],
}


def known_settings(parts) -> set[tuple[str, str]]:
    """What the library writes of parts, but for their kind and pieces."""
    return {
        (where, name)
        for where, part in parts.items()
        for name in json.loads(part.__getstate__())
        if name not in ("type", "vocab")
    }


def test_these_are_all_settings_of_berts_parts():
    assert known_settings(PARTS) == OTHERS.keys()


@pytest.mark.parametrize(("where", "name"), OTHERS)
def test_a_setting_of_a_berts_parts(whole, where, name):
    before = Tokenizer.from_folder(whole)
    for value in OTHERS[where, name]:

        def change(about, value=value):
            assert about[where][name] != value
            about[where][name] = value

        made = change_whole(whole, change)
        ours = Tokenizer.from_folder(whole)
        assert ours.encode(TEXTS) == plain_ids(made)
        # Of 110 characters no word here is: it counts all the same.
        assert ours.encode(TEXTS) != before.encode(TEXTS) or value == 110
        assert ours.identity != before.identity
        ours.save(whole)
        assert Tokenizer.from_folder(whole).identity == ours.identity
        before = ours


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": None},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}]}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
    ids=str,
)
def test_other_parts_than_a_berts(whole, part):
    before = Tokenizer.from_folder(whole)
    made = change_whole(whole, lambda about: about.update(part))
    ours = Tokenizer.from_folder(whole)
    assert ours.encode(TEXTS) == plain_ids(made)
    assert ours.identity != before.identity


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@pytest.mark.parametrize("flag", FLAGS)
def test_how_an_added_token_is_found(whole, flag):
    def add(about):
        token = dict.fromkeys(FLAGS, False) | {"special": True}
        token |= {"id": WORDS.index("<new>"), "content": "<new>"}
        about["added_tokens"].append(token)

    def turn(about):
        about["added_tokens"][-1][flag] = True

    plain = Tokenizer.from_folder(whole)
    change_whole(whole, add)
    before = Tokenizer.from_folder(whole)
    made = change_whole(whole, turn)
    ours = Tokenizer.from_folder(whole)
    assert ours.encode(TEXTS) == plain_ids(made)
    assert len({t.identity for t in (plain, before, ours)}) == 3


def test_a_post_processor_of_another_model_is_refused(whole):
    def swap(about):
        single = about["post_processor"]["single"]
        about["post_processor"]["single"] = single[1:]

    change_whole(whole, swap)
    with pytest.raises(UserError, match="has a post_processor that makes"):
        Tokenizer.from_folder(whole)
    change_whole(whole, lambda about: about.update(post_processor=None))
    assert Tokenizer.from_folder(whole).cls_id == 2
    bert = {
        "type": "BertProcessing",
        "sep": ["</s>", WORDS.index("</s>")],
        "cls": ["<s>", WORDS.index("<s>")],
    }
    change_whole(whole, lambda about: about.update(post_processor=bert))
    found = Tokenizer.from_folder(whole)
    assert found.pair([9], None, 9)[0] == [bert["cls"][1], 9, bert["sep"][1]]


def test_cutting_and_padding_are_ours(whole):
    before = Tokenizer.from_folder(whole)
    made = tokenizers.Tokenizer.from_file(str(whole / "tokenizer.json"))
    made.enable_truncation(3)
    made.enable_padding(length=20)
    made.save(str(whole / "tokenizer.json"))
    ours = Tokenizer.from_folder(whole)
    assert ours.encode(TEXTS) == before.encode(TEXTS)
    assert ours.identity == before.identity
    made.enable_truncation(3, direction="left")
    made.save(str(whole / "tokenizer.json"))
    with pytest.raises(UserError, match="truncation's direction 'left'"):
        Tokenizer.from_folder(whole)


# What `tokenizer_config.json` may say beside either file.

STATED = [
    {"do_lower_case": False},
    {"do_lower_case": False, "strip_accents": True},
    {"strip_accents": False},
    {"strip_accents": None},
    {"tokenize_chinese_chars": False},
    {"unk_token": "<unk>"},
    {"cls_token": "<s>", "sep_token": "</s>"},
    {
        "cls_token": {"__type": "AddedToken", "content": "<s>", "lstrip": True},
        "mask_token": "<new>",
    },
    {"never_split": None, "do_basic_tokenize": True},
    {"model_max_length": 5, "padding_side": "left"},
    {"extra_special_tokens": ["<new>"]},
    {"additional_special_tokens": ["<brand_new>"]},
    {
        "added_tokens_decoder": {
            str(WORDS.index("<new>")): {"content": "<new>", "lstrip": True},
            str(len(WORDS)): {"content": "brown fox", "normalized": True},
        }
    },
]


@pytest.mark.parametrize("stated", STATED, ids=str)
def test_a_setting_beside_vocab_txt(tmp_path, stated):
    before = Tokenizer.from_folder(write_words(tmp_path))
    write_settings(tmp_path, **stated)
    ours = assert_as_transformers(tmp_path)
    inert = {"never_split", "model_max_length"} & {*stated}
    same = bool(inert) or stated == {"strip_accents": None}
    assert (ours.identity == before.identity) == same


@pytest.mark.parametrize("stated", STATED, ids=str)
def test_a_setting_beside_tokenizer_json(whole, stated):
    """What is stated counts, in whichever file it stands."""
    if "unk_token" in stated:
        change_whole(
            whole, lambda about: about["model"].update(unk_token="<unk>")
        )
    if "cls_token" in stated:
        # transformers makes its own post-processor.
        change_whole(whole, lambda about: about.update(post_processor=None))
    write_settings(whole, **stated)
    assert_as_transformers(whole)


def test_the_settings_of_transformers_berts_are_known():
    known = {name for each in STATED for name in each}
    taken = inspect.signature(
        transformers.BertTokenizerFast.__init__
    ).parameters
    assert {*taken} - {"self", "vocab", "vocab_file", "kwargs"} - known == {
        "pad_token"  # by test_special_tokens_that_cannot_be
    }


REFUSED = [
    ({"do_basic_tokenize": False}, "do_basic_tokenize False, expected true"),
    ({"never_split": ["fox"]}, r"never_split \['fox'\], expected none"),
    ({"never_split": "fox"}, "never_split 'fox'"),
    ({"split_special_tokens": True}, "split_special_tokens True"),
    ({"truncation_side": "left"}, "truncation_side 'left', expected 'right'"),
    ({"clean_text": False}, "clean_text False"),
    ({"tokenize_chinese_chars": "no"}, "tokenize_chinese_chars 'no'"),
    ({"strip_accents": "no"}, "strip_accents 'no', expected true, false or"),
    ({"do_lower_case": None}, "do_lower_case None, expected true or false"),
    ({"cls_token": 3}, "cls_token 3, expected a text"),
    ({"tokenizer_class": 3}, "tokenizer_class 3, expected the name"),
    ({"extra_special_tokens": "x"}, "extra_special_tokens 'x', expected a"),
    ({"extra_special_tokens": [3]}, r"extra_special_tokens \[3\], expected a"),
    ({"added_tokens_decoder": [3]}, "added_tokens_decoder .*, expected tokens"),
    ({"added_tokens_decoder": {"x": "y"}}, "expected tokens by id"),
    ({"added_tokens_decoder": {"0": {}}}, "expected a token of id 0"),
    (
        {"added_tokens_decoder": {"3": {"content": "x", "lstrip": 1}}},
        "expected a token of id 3",
    ),
    (
        {"added_tokens_decoder": {"3": {"content": "fox"}}},
        "the added token 'fox' has the id 3 by its configuration, and 10 by",
    ),
]


@pytest.mark.parametrize(("stated", "message"), REFUSED, ids=str)
def test_a_setting_that_is_refused(whole, tmp_path, stated, message):
    write_settings(whole, **stated)
    write_settings(tmp_path / "words", **stated)
    for folder in (whole, tmp_path / "words"):
        with pytest.raises(UserError, match=message):
            Tokenizer.from_folder(folder)


def test_a_tokenizer_that_only_its_class_knows_is_refused(tmp_path, whole):
    write_words(tmp_path, tokenizer_class="BertJapaneseTokenizer")
    with pytest.raises(UserError, match="'BertJapaneseTokenizer', expected B"):
        Tokenizer.from_folder(tmp_path)
    # A whole definition needs no class, and is then what counts.
    before = Tokenizer.from_folder(whole)
    write_settings(
        whole, tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False
    )
    assert Tokenizer.from_folder(whole).identity == before.identity


def test_two_files_that_contradict_each_other(whole):
    """What is not stated, and by default would be otherwise, is asked for."""
    for name, value, setting in (
        ("lowercase", False, "do_lower_case"),
        ("handle_chinese_chars", False, "tokenize_chinese_chars"),
        ("strip_accents", False, "strip_accents"),
    ):
        folder = shutil.copytree(whole, whole.parent / name)

        def change(about, name=name, value=value):
            about["normalizer"][name] = value

        made = change_whole(folder, change)
        assert Tokenizer.from_folder(folder).encode(TEXTS) == plain_ids(made)
        write_settings(folder, model_max_length=512)
        with pytest.raises(UserError, match=f"{name} false.*say {setting},"):
            Tokenizer.from_folder(folder)
        write_settings(folder, **{setting: value})
        assert Tokenizer.from_folder(folder).encode(TEXTS) == plain_ids(made)

    change_whole(whole, lambda about: about.update(normalizer=None))
    write_settings(whole, do_lower_case=False)
    with pytest.raises(UserError, match="do_lower_case, which are settings of"):
        Tokenizer.from_folder(whole)


def test_names_that_the_two_files_disagree_on(whole):
    write_settings(whole, unk_token="<unk>")
    with pytest.raises(UserError, match=r"unk_token '<unk>', expected '\[UNK"):
        Tokenizer.from_folder(whole)
    write_settings(whole, cls_token="<s>")
    with pytest.raises(UserError, match="has a post_processor that makes"):
        Tokenizer.from_folder(whole)
    write_settings(whole, wordpieces_prefix="__")
    with pytest.raises(UserError, match="wordpieces_prefix '__', expected '##"):
        Tokenizer.from_folder(whole)
    write_settings(whole, clean_text=False)
    with pytest.raises(UserError, match="clean_text False, expected True, as"):
        Tokenizer.from_folder(whole)


def test_special_tokens_that_cannot_be(tmp_path):
    words = ["<pad>", *[word for word in WORDS if word != "<pad>"]]
    write_words(tmp_path, words, pad_token="<pad>")
    assert assert_as_transformers(tmp_path).pad_id == 0
    write_settings(tmp_path, pad_token="<s>")
    with pytest.raises(UserError, match="gives <s> the id .*, expected 0"):
        Tokenizer.from_folder(tmp_path)
    write_settings(tmp_path, sep_token="<nowhere>")
    with pytest.raises(UserError, match="lacks the token <nowhere>"):
        Tokenizer.from_folder(tmp_path)
    # Nothing is encoded before it is known that there is what all texts need.
    write_words(tmp_path / "few", ["[PAD]", "[CLS]", "[SEP]", "fox"])
    (tmp_path / "few" / SENTENCES).write_text('{"do_lower_case": false}')
    with pytest.raises(UserError, match=r"lacks the token \[UNK\]"):
        Tokenizer.from_folder(tmp_path / "few")


def test_the_older_files_beside_a_vocabulary(tmp_path):
    """As transformers 2 to 4 wrote them: tokens apart, by name and id."""
    write_words(tmp_path, do_lower_case=True)
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"cls_token": "<s>", "sep_token": {"content": "</s>"}})
    )
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({"brown fox": len(WORDS), "isn't": len(WORDS) + 1})
    )
    ours = assert_as_transformers(tmp_path)
    assert ours.vocab_size == len(WORDS) + 2
    for wrong in (float("inf"), 3.5, "3", None):
        text = json.dumps({"brown fox": wrong})
        (tmp_path / "added_tokens.json").write_text(text)
        with pytest.raises(UserError, match="tokens by id|is not valid JSON"):
            Tokenizer.from_folder(tmp_path)
    # A newer list of tokens is all that counts.
    write_settings(tmp_path, added_tokens_decoder={})
    assert Tokenizer.from_folder(tmp_path).cls_id == 2


def test_capitals_that_sentence_transformers_lowers(tmp_path):
    write_words(tmp_path, do_lower_case=False)
    settings = tmp_path / SENTENCES
    settings.write_text('{"max_seq_length": 128, "do_lower_case": false}')
    Tokenizer.from_folder(tmp_path)
    settings.write_text('{"max_seq_length": 128, "do_lower_case": true}')
    with pytest.raises(UserError, match="do_lower_case true.*keeps capitals"):
        Tokenizer.from_folder(tmp_path)
    write_settings(tmp_path, do_lower_case=True)
    Tokenizer.from_folder(tmp_path)


def test_special_tokens_are_no_words(tmp_path):
    write_words(tmp_path, cls_token="<s>", extra_special_tokens=["<new>"])
    found = Tokenizer.from_folder(tmp_path)
    words = {WORDS[i] for i in found.word_ids}
    assert "fox" in words
    assert not {"<s>", "<new>", "[CLS]", "[MASK]"} & words


# T5.

T5_TEXTS = [
    *TEXTS,
    "sst2 sentence: It was the best of times, it was the worst of times.",
    "premise: Caf\u00e9 \ufb01ne \u00bd \u2460 \uff34\uff25\uff38\uff34 \u2026",
    "a <extra_id_0> b <extra_id_1>. c<extra_id_2>d </s> e<pad>f <unk>",
    "\u2581under \u2581\u2581 score\u2581",
    "\U0001f600\U0001f601 \U0001f602",
]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> pathlib.Path:
    """A folder with a small `spiece.model`."""
    lines = [
        "it was the best of times, it was the worst of times.",
        "the quick brown fox isn't here: fox, Fox and cafe",
        "sst2 sentence: premise: hypothesis: a b c d e f",
    ]
    folder = tmp_path_factory.mktemp("pieces")
    model = small_spiece.trained(lines * 9, 90)
    (folder / "spiece.model").write_bytes(model)
    return folder


def converted(pieces: pathlib.Path, folder: pathlib.Path, **given):
    """transformers' tokenizer, saved as `tokenizer.json` with settings."""
    made = transformers.T5TokenizerFast.from_pretrained(pieces, **given)
    made.save_pretrained(folder)
    assert not (folder / "spiece.model").exists()
    return made


@pytest.fixture
def only(pieces, tmp_path) -> pathlib.Path:
    """A folder that has `tokenizer.json` alone."""
    converted(pieces, tmp_path / "only")
    return tmp_path / "only"


def assert_as_t5(folder: pathlib.Path) -> TextTokenizer:
    ours = TextTokenizer.from_folder(folder)
    assert ours is not None
    theirs = transformers.T5TokenizerFast.from_pretrained(folder)
    wanted = [theirs(text)["input_ids"] for text in T5_TEXTS]
    assert [[*ids, 1] for ids in ours.encode(T5_TEXTS)] == wanted
    return ours


def test_a_t5_with_tokenizer_json_alone(only, tmp_path):
    ours = assert_as_t5(only)
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (0, 1, 2)
    assert ours.vocab_size == len(
        transformers.T5TokenizerFast.from_pretrained(only)
    )
    text = "it was the quick brown fox"
    assert ours.written(text) == text
    (ids,) = ours.encode([text])
    sentinel = ours.vocab_size - 1
    assert ours.decode([*ids, 0, sentinel, 99999, 1, 5]) == text
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    again = TextTokenizer.from_folder(tmp_path / "saved")
    assert again is not None
    assert again.identity == ours.identity
    assert again.encode(T5_TEXTS) == ours.encode(T5_TEXTS)
    for path in (only, only / "tokenizer.json"):
        assert TextTokenizer.from_file(path).identity == ours.identity


def test_the_two_files_of_a_t5_give_the_same_ids(pieces, only):
    """But where a text has the name of a special token."""
    both = TextTokenizer.from_file(pieces), TextTokenizer.from_file(only)
    texts = [text for text in T5_TEXTS if "<" not in text]
    assert both[0].encode(texts) == both[1].encode(texts)


@pytest.mark.skipif(not REAL.is_file(), reason="no development data")
def test_t5s_own_vocabulary_through_tokenizer_json(tmp_path):
    converted(REAL.parent, tmp_path)
    ours = assert_as_t5(tmp_path)
    assert ours.vocab_size == 32100
    texts = [text for text in T5_TEXTS if "<" not in text]
    assert ours.encode(texts) == TextTokenizer.from_file(REAL).encode(texts)


def test_rows_by_tokenizer_json(only, pieces):
    """SeqIO asks it too, and gives what SentencePiece's file gives."""
    rows = [
        loading.load_text_examples(
            "toy_sentiment",
            "validation",
            tokenizer=TextTokenizer.from_file(folder),
            input_length=64,
            limit=20,
        )
        for folder in (only, pieces)
    ]
    assert (rows[0].inputs == rows[1].inputs).all()
    assert (rows[0].targets == rows[1].targets).all()
    assert rows[0].inputs.max() > 2


T5_PARTS = {
    "model": models.Unigram([("<unk>", 0.0)], unk_id=0),
    "pre_tokenizer": pre_tokenizers.Metaspace(),
}
T5_OTHERS = {
    ("model", "unk_id"): 3,
    ("model", "byte_fallback"): True,
    ("pre_tokenizer", "replacement"): "_",
    ("pre_tokenizer", "prepend_scheme"): "never",
    ("pre_tokenizer", "split"): False,
}


def test_these_are_all_settings_of_t5s_parts():
    assert known_settings(T5_PARTS) == T5_OTHERS.keys()


@pytest.mark.parametrize(("where", "name"), T5_OTHERS)
def test_a_setting_of_t5s_parts(only, where, name):
    before = TextTokenizer.from_file(only)

    def change(about):
        part = about[where]
        if where == "pre_tokenizer":
            (part,) = (
                each
                for each in part["pretokenizers"]
                if each["type"] == "Metaspace"
            )
        assert part[name] != T5_OTHERS[where, name]
        part[name] = T5_OTHERS[where, name]

    made = change_whole(only, change)
    ours = TextTokenizer.from_file(only)
    wanted = made.encode_batch(T5_TEXTS, add_special_tokens=False)
    assert ours.encode(T5_TEXTS) == [each.ids for each in wanted]
    changed = ours.encode(T5_TEXTS) != before.encode(T5_TEXTS)
    assert ours.identity != before.identity or not changed


def test_a_t5_s_scores_are_a_part_of_it(only):
    before = TextTokenizer.from_file(only)

    def change(about):
        about["model"]["vocab"][9][1] -= 1e-3

    change_whole(only, change)
    assert TextTokenizer.from_file(only).identity != before.identity


T5_STATED = [
    {},
    {"extra_ids": 5},
    {"extra_special_tokens": ["<new>"]},
    {"legacy": False},
    {"legacy": True},
    {"model_max_length": 7},
]


@pytest.mark.parametrize("stated", T5_STATED, ids=str)
def test_a_t5_that_was_saved_with_settings(pieces, tmp_path, stated):
    made = converted(pieces, tmp_path, **stated)
    ours = assert_as_t5(tmp_path)
    assert ours.vocab_size == len(made)


def test_tokens_that_were_added_to_a_t5(only, pieces, tmp_path):
    """In its `tokenizer.json`, or stated beside it."""
    made = transformers.T5TokenizerFast.from_pretrained(only)
    made.add_tokens(["brown fox", "<new>"])
    made.save_pretrained(only)
    ours = assert_as_t5(only)
    assert ours.vocab_size == len(made)
    # With the file of pieces there too, which cannot hold them.
    both = shutil.copytree(only, tmp_path / "both")
    shutil.copy(pieces / "spiece.model", both)
    found = TextTokenizer.from_folder(both)
    assert found is not None
    assert found.identity == ours.identity
    (both / "tokenizer.json").unlink()
    tokens = {str(ours.vocab_size - 1): {"content": "<new>"}}
    write_settings(
        both, tokenizer_class="T5Tokenizer", added_tokens_decoder=tokens
    )
    with pytest.raises(UserError, match=r"adds the tokens \['<new>'\]"):
        TextTokenizer.from_folder(both)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"add_prefix_space": False}, "add_prefix_space False"),
        ({"truncation_side": "left"}, "truncation_side 'left'"),
        ({"split_special_tokens": True}, "split_special_tokens True"),
        ({"eos_token": "<pad>"}, "eos_token '<pad>'|ids .* for <pad>, <pad>"),
        ({"unk_token": 3}, "unk_token 3, expected a text"),
        ({"sp_model_kwargs": {"alpha": 0.1}}, "sp_model_kwargs|alpha"),
        ({"tokenizer_class": "LlamaTokenizer"}, "'LlamaTokenizer', expected"),
    ],
    ids=str,
)
def test_a_setting_of_a_t5_that_is_refused(
    pieces, only, tmp_path, stated, message
):
    folder = shutil.copytree(pieces, tmp_path / "pieces")
    for each in (folder, only):
        (each / "tokenizer_config.json").write_text(json.dumps(stated))
        names = {*stated} & {"sp_model_kwargs", "tokenizer_class"}
        if each == only and names:
            # Says how another file would be read.
            TextTokenizer.from_folder(each)
            continue
        with pytest.raises(UserError, match=message):
            TextTokenizer.from_folder(each)


def test_settings_that_a_t5_s_definition_denies(only):
    path = only / "tokenizer_config.json"
    path.write_text('{"extra_ids": 7}')
    with pytest.raises(UserError, match="extra_ids 7, expected 100, as"):
        TextTokenizer.from_folder(only)
    path.unlink()
    none = {"type": "TemplateProcessing", "single": [], "pair": []}

    def change(about):
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        about["post_processor"] = none | {
            "single": [sequence],
            "pair": [sequence],
            "special_tokens": {},
        }

    change_whole(only, change)
    with pytest.raises(UserError, match="post_processor that makes .*not a T5"):
        TextTokenizer.from_folder(only)

    def swap(about):
        vocabulary = about["model"]["vocab"]
        vocabulary[0], vocabulary[5] = vocabulary[5], vocabulary[0]
        about["added_tokens"] = []
        about["post_processor"] = None

    change_whole(only, swap)
    with pytest.raises(UserError, match=r"has the ids \[5, 1, 2\] for <pad>"):
        TextTokenizer.from_folder(only)


def test_bytes_need_no_file(tmp_path):
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    found = TextTokenizer.from_folder(tmp_path)
    assert found is not None
    assert found.path is None
    assert TextTokenizer.from_folder(tmp_path / "nowhere") is None
