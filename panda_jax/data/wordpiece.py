"""WordPiece from Hugging Face folders, with what each setting does to ids.

`tokenizer.json` says it all, but transformers goes by `tokenizer_config.json`
where the two differ in what BERT's tokenizer has a name for: what is stated
there counts here too.  Where nothing is stated and transformers' default would
differ from `tokenizer.json` the folder means two things, and is refused.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from panda_jax.data import tokenizer_files
from panda_jax.data.tokenizer_files import Settings
from panda_jax.errors import UserError
from panda_jax.interop.folders import inside, json_inside
from panda_jax.interop.hf_layouts import SENTENCES

VOCABULARY = "vocab.txt"
ROLES = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
SPECIALS = tuple(ROLES.values())
_PREFIX, _LONGEST = "##", 100
# Classes of transformers whose tokenizer is BERT's.
_BERTS = re.compile(
    r"(Bert|DistilBert|Electra|ConvBert|MobileBert|SqueezeBert|RetriBert|"
    r"LayoutLM|Lxmert|Funnel)Tokenizer(Fast|Legacy)?"
)
# transformers' setting -> the normalizer's.
_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}

Read = tuple[tokenizers.Tokenizer, dict[str, str], str]


def read(folder: pathlib.Path) -> Read:
    """The tokenizer of a folder, its special tokens by role, and its place.

    Raises:
      UserError: there is none, a file is broken, or a setting would make
        other ids than are made here; by name.
    """
    whole = inside(folder, tokenizer_files.WHOLE)
    words = inside(folder, VOCABULARY)
    found = tokenizer_files.settings(folder)
    _check_words(found)
    if whole.is_file():
        made = _of_whole(whole, found)
    elif words.is_file():
        made = _of_words(words, found)
    else:
        raise UserError(
            f"No tokenizer in '{folder}': expected 'tokenizer.json' or "
            "'vocab.txt' there, as Hugging Face ships them."
        )
    inner, roles, where = made
    tokenizer_files.add(inner, _tokens(inner, found, roles), where=where)
    return made


def check(made: Read, folder: pathlib.Path) -> None:
    """Holds what `read` gave against what it makes of a text.

    Args:
      made: that has its special tokens, so that any text can be encoded.
      folder: which it is of.

    Raises:
      UserError: it makes other ids than are made here.
    """
    inner, roles, where = made
    _check_pairs(inner, roles, where=where)
    _check_sentences(inner, folder)


def of_pieces(
    vocabulary: Sequence[str],
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    chinese: bool = True,
    roles: Mapping[str, str] = ROLES,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer over `vocabulary`, one piece an id."""
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    inner = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=roles["unk"]))
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix=_PREFIX)
    inner.add_special_tokens([name for name in roles.values() if name in ids])
    return inner


def unusual(inner: tokenizers.Tokenizer) -> dict[str, Any]:
    """The parts of a tokenizer that BERT's does not have, and their settings.

    Empty for BERT's own, whatever its normalizer's settings are.
    """
    about = json.loads(inner.to_str())
    model = {k: v for k, v in about["model"].items() if k != "vocab"}
    plain = models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")
    expected = json.loads(tokenizers.Tokenizer(plain).to_str())["model"]
    found = {k: v for k, v in model.items() if v != expected.get(k)}
    found.pop("unk_token", None)
    for part, kind in {
        "normalizer": "BertNormalizer",
        "pre_tokenizer": "BertPreTokenizer",
    }.items():
        if (about[part] or {}).get("type") != kind:
            found[part] = about[part]
    tokens = tokenizer_files.unusual(inner, SPECIALS)
    return found | ({"added": tokens} if tokens else {})


def _of_words(path: pathlib.Path, found: Settings) -> Read:
    """The tokenizer of a `vocab.txt`, as BERT's class makes it."""
    made_for = found.made_for
    if made_for is not None and not _BERTS.fullmatch(made_for):
        raise found.wrong(
            "tokenizer_class",
            f"BertTokenizer, to read {path.name} by; or a "
            f"{tokenizer_files.WHOLE}, which says all of another",
        )
    lines = tokenizer_files.read_text(path).split("\n")
    vocabulary = [line.rstrip("\r") for line in lines]
    while vocabulary and not vocabulary[-1]:
        vocabulary.pop()
    if not found.flag("clean_text", True):
        raise found.wrong("clean_text", "true")
    roles = {role: found.token(role) or ROLES[role] for role in ROLES}
    inner = of_pieces(
        vocabulary,
        lowercase=found.flag("do_lower_case", True),
        strip_accents=_accents(found),
        chinese=found.flag("tokenize_chinese_chars", True),
        roles=roles,
    )
    return inner, roles, f"The vocabulary file '{path}'"


def _of_whole(path: pathlib.Path, found: Settings) -> Read:
    """The tokenizer of a `tokenizer.json`, with what is stated beside it."""
    inner = tokenizer_files.whole(path)
    about = json.loads(inner.to_str())
    made_for = found.made_for
    if found.stated and (made_for is None or _BERTS.fullmatch(made_for)):
        _normalize(inner, about, found, path=path)
    said = {
        "unk": about["model"].get("unk_token"),
        **_around(about["post_processor"]),
    }
    roles = {
        role: found.token(role) or said.get(role) or ROLES[role]
        for role in ROLES
    }
    if said["unk"] not in (None, roles["unk"]):
        raise found.wrong(
            "unk_token", f"{said['unk']!r}, as {path.name} has it"
        )
    prefix = about["model"].get("continuing_subword_prefix")
    if found.values.get("wordpieces_prefix", prefix) != prefix:
        raise found.wrong(
            "wordpieces_prefix", f"{prefix!r}, as {path.name} has it"
        )
    return inner, roles, f"The tokenizer file '{path}'"


def _normalize(
    inner: tokenizers.Tokenizer,
    about: Mapping[str, Any],
    found: Settings,
    *,
    path: pathlib.Path,
) -> None:
    """Brings the normalizer in line with what is stated."""
    state = about["normalizer"] or {}
    stated = {*_NORMALIZER, "clean_text"} & {*found.values}
    if state.get("type") != "BertNormalizer":
        if stated:
            raise UserError(
                f"'{found.path}' has {' and '.join(sorted(stated))}, which are "
                f"settings of BertNormalizer; the normalizer of {path.name} is "
                f"{state.get('type')!r}. Take them out, or save the tokenizer "
                "again with the library that made it."
            )
        return
    # No transformers goes by its own setting against the file's.
    if (
        found.values.get("clean_text", state["clean_text"])
        != (state["clean_text"])
    ):
        raise found.wrong(
            "clean_text", f"{state['clean_text']}, as {path.name} has it"
        )
    lowercase = found.flag("do_lower_case", True)
    accents = _accents(found)
    wanted = {
        "lowercase": lowercase,
        "strip_accents": accents,
        "handle_chinese_chars": found.flag("tokenize_chinese_chars", True),
    }
    # By default accents go where capitals do.
    does = {
        **state,
        "strip_accents": _or(state["strip_accents"], state["lowercase"]),
    }
    should = {**wanted, "strip_accents": _or(accents, lowercase)}
    for name, theirs in _NORMALIZER.items():
        same = state[theirs] == wanted[theirs] or does[theirs] == should[theirs]
        if not same and name not in found.values:
            raise UserError(
                f"'{path}' has {theirs} {json.dumps(state[theirs])}, and "
                f"'{found.path}' does not say {name}, which transformers takes "
                f"for {json.dumps(wanted[theirs])}. Write down there which of "
                "the two the model was trained with."
            )
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=state["clean_text"], **wanted
    )


def _or(value: bool | None, other: bool) -> bool:
    return other if value is None else value


def _accents(found: Settings) -> bool | None:
    value = found.values.get("strip_accents")
    if value is not None and not isinstance(value, bool):
        raise found.wrong("strip_accents", "true, false or null")
    return value


def _around(processor: Mapping[str, Any] | None) -> dict[str, str]:
    """The tokens that a post-processor puts first and last, if it has them."""
    match processor:
        case {"type": "BertProcessing", "cls": [cls, _], "sep": [sep, _]}:
            return {"cls": cls, "sep": sep}
        case {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": cls}},
                _,
                {"SpecialToken": {"id": sep}},
            ],
        }:
            return {"cls": cls, "sep": sep}
    return {}


def _tokens(
    inner: tokenizers.Tokenizer, found: Settings, roles: Mapping[str, str]
) -> list[tuple[int | None, AddedToken]]:
    """What is added: listed tokens, and roles' that the vocabulary has."""
    listed = tokenizer_files.added(found)
    known = {token.content for _, token in listed}
    known |= {
        token.content for token in inner.get_added_tokens_decoder().values()
    }
    return listed + [
        (None, AddedToken(token, special=True, normalized=False))
        for token in roles.values()
        if token not in known and inner.token_to_id(token) is not None
    ]


def _check_words(found: Settings) -> None:
    """Refuses how only transformers' tokenizers in Python cut texts."""
    if not found.flag("do_basic_tokenize", True):
        raise found.wrong("do_basic_tokenize", "true")
    kept = found.values.get("never_split") or []
    special = {found.token(role) or ROLES[role] for role in ROLES}
    special |= {token.content for _, token in tokenizer_files.added(found)}
    if not isinstance(kept, list) or not special.issuperset(
        word for word in kept if isinstance(word, str)
    ):
        raise found.wrong(
            "never_split",
            "none but special tokens; add others to the vocabulary as tokens",
        )


def _check_pairs(
    inner: tokenizers.Tokenizer, roles: Mapping[str, str], *, where: str
) -> None:
    """Refuses a post-processor that does not make `[CLS] a [SEP] b [SEP]`."""
    if inner.post_processor is None:
        return
    a, b = (inner.encode(x, add_special_tokens=False).ids for x in ("a", "b c"))
    cls, sep = (inner.token_to_id(roles[role]) for role in ("cls", "sep"))
    first, second = [cls, *a, sep], [*b, sep]
    alone, both = inner.encode("a"), inner.encode("a", "b c")
    segments = [0] * len(first) + [1] * len(second)
    expected = (first, first + second, segments)
    if (alone.ids, both.ids, both.type_ids) != expected:
        raise UserError(
            f"{where} has a post_processor that makes {both.tokens} in the "
            f"segments {both.type_ids} of two texts, expected {roles['cls']} a "
            f"{roles['sep']} b c {roles['sep']} in the segments {segments}: "
            "it is not a BERT's."
        )


def _check_sentences(inner: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """Refuses capitals that SentenceTransformers lowers before, unseen here."""
    if not inside(folder, SENTENCES).is_file():
        return
    about = json_inside(folder, SENTENCES, what="sentence configuration")
    upper, lower = (inner.encode(text).ids for text in ("A B", "a b"))
    if about.get("do_lower_case", False) is not False and upper != lower:
        raise UserError(
            f"'{folder / SENTENCES}' has do_lower_case "
            f"{json.dumps(about['do_lower_case'])}, and the tokenizer keeps "
            "capitals: SentenceTransformers lowers texts before it. Say "
            f"do_lower_case in {tokenizer_files.CONFIG} if the model is of "
            "small letters."
        )
