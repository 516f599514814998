"""What a Hugging Face folder says about its tokenizer beside the vocabulary.

Settings lie in `tokenizer_config.json`, and of old in `special_tokens_map.json`
and `added_tokens.json`.  What would change ids is honoured by whoever reads the
vocabulary, or refused by name: here what both families have in common.
"""

import dataclasses
import operator
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from panda_jax.errors import UserError
from panda_jax.interop.folders import inside, json_inside

WHOLE, CONFIG = "tokenizer.json", "tokenizer_config.json"
_MAP, _ADDED = "special_tokens_map.json", "added_tokens.json"
_WHAT = "tokenizer configuration"
# Of 250,000 pieces with their scores, as mT5's, it has 16 MiB.
_MOST_VOCABULARY = 1 << 26
# Lists of special tokens beside those that have a role.
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_CLASS = "tokenizer_class"
# Settings of which another value makes other ids than are made here.
_PLAIN: dict[str, tuple[Any, str]] = {
    "split_special_tokens": (False, "special tokens stay whole"),
    "truncation_side": ("right", "texts are cut at their end"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A folder's settings.

    Attributes:
      folder: whose.
      values: by name, as `tokenizer_config.json` has them.
      stated: whether there is such a file.
    """

    folder: pathlib.Path
    values: Mapping[str, Any]
    stated: bool

    @property
    def path(self) -> str:
        """Of the file, for messages."""
        return str(self.folder / CONFIG)

    @property
    def made_for(self) -> str | None:
        """The class of transformers that the tokenizer is of, if it says so."""
        found = self.values.get(_CLASS)
        if found is not None and not isinstance(found, str):
            raise self.wrong(_CLASS, "the name of a class")
        return found

    def wrong(self, name: str, expected: str) -> UserError:
        """The error for a setting that cannot be."""
        return UserError(
            f"The tokenizer configuration '{self.path}' has {name} "
            f"{self.values.get(name)!r}, expected {expected}."
        )

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false; `UserError` otherwise."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def token(self, role: str) -> str | None:
        """The token of a role (`cls`, ...), None where nothing is said."""
        token = _token(self.values.get(f"{role}_token"), special=True)
        if token is None and self.values.get(f"{role}_token") is not None:
            raise self.wrong(f"{role}_token", "a text")
        return token and token.content


def settings(folder: pathlib.Path) -> Settings:
    """Reads a folder's, and refuses those that no tokenizer here has.

    Raises:
      UserError: a file is broken, or a setting would make other ids.
    """
    stated = inside(folder, CONFIG).is_file()
    values = json_inside(folder, CONFIG, what=_WHAT) if stated else {}
    if "added_tokens_decoder" not in values:
        # As transformers reads them: the older files count where the newer
        # one does not list the tokens.
        if inside(folder, _MAP).is_file():
            values = {**values, **json_inside(folder, _MAP, what=_WHAT)}
        if inside(folder, _ADDED).is_file():
            values = {**values, _ADDED: json_inside(folder, _ADDED, what=_WHAT)}
    found = Settings(folder, values, stated)
    for name, (plain, why) in _PLAIN.items():
        if values.get(name, plain) != plain:
            raise found.wrong(name, f"{plain!r}: {why}")
    return found


def whole(path: pathlib.Path) -> tokenizers.Tokenizer:
    """What `tokenizer.json` defines, of any kind; without padding and cutting.

    Raises:
      UserError: it is broken, or cuts texts at their beginning.
    """
    text = read_text(path)
    try:
        found = tokenizers.Tokenizer.from_str(text)
        found.encode("Is this known: \u2603?")  # some fail only now
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"The tokenizer file '{path}' is broken: {error}. Copy "
            "it again from the model it belongs to."
        ) from None
    if found.truncation and found.truncation["direction"] != "right":
        raise UserError(
            f"The tokenizer file '{path}' has truncation's direction "
            f"{found.truncation['direction']!r}, expected 'right': texts are "
            "cut at their end."
        )
    found.no_truncation()
    found.no_padding()
    return found


def added(found: Settings) -> list[tuple[int | None, AddedToken]]:
    """The tokens that are added to a vocabulary: id, where one is said.

    Raises:
      UserError: one is no token.
    """
    listed = []
    for name in _LISTS:
        each = found.values.get(name) or []
        if not isinstance(each, list | dict):
            raise found.wrong(name, "a list of tokens")
        each = each.values() if isinstance(each, dict) else each
        listed += [(name, None, value) for value in each]
    special = {_content(value) for _, _, value in listed}
    special |= {
        _content(value)
        for name, value in found.values.items()
        if name.endswith("_token")
    }
    numbered = found.values.get("added_tokens_decoder") or {}
    former = found.values.get(_ADDED) or {}
    try:
        pairs = [(int(i), value) for i, value in numbered.items()]
        pairs += [(operator.index(i), text) for text, i in former.items()]
    except (AttributeError, TypeError, ValueError):
        raise found.wrong("added_tokens_decoder", "tokens by id") from None
    tokens = []
    for i, value in sorted(pairs, key=lambda pair: pair[0]):
        token = _token(value, special=_content(value) in special)
        if token is None:
            raise found.wrong("added_tokens_decoder", f"a token of id {i}")
        tokens.append((i, token))
    known = {token.content for _, token in tokens}
    for name, i, value in listed:
        token = _token(value, special=True)
        if token is None:
            raise found.wrong(name, "a list of tokens")
        if token.content not in known:
            tokens.append((i, token))
    return tokens


def add(
    inner: tokenizers.Tokenizer,
    tokens: Iterable[tuple[int | None, AddedToken]],
    *,
    where: str,
) -> None:
    """Adds tokens that a tokenizer does not have, or has otherwise.

    Raises:
      UserError: one would have another id than is said.
    """
    has = {
        token.content: _shown(token)
        for token in inner.get_added_tokens_decoder().values()
    }
    for i, token in tokens:
        if has.get(token.content) != _shown(token):
            # One that is there changes how it is found.
            inner.add_tokens([token])
        got = inner.token_to_id(token.content)
        if i is not None and got != i:
            raise UserError(
                f"{where}: the added token {token.content!r} has the id {i} by "
                f"its configuration, and {got} by its vocabulary. Save the "
                "tokenizer again with the library that made it."
            )


def read_text(path: pathlib.Path) -> str:
    """A tokenizer's file; `UserError` where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The tokenizer file '{path}' cannot be read: {error}."
        ) from None


def _shown(token: AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, name) for name in _FLAGS)


def unusual(
    inner: tokenizers.Tokenizer, usual: Collection[str]
) -> list[list[Any]]:
    """The added tokens but for usual ones, found as special ones are."""
    plain = _shown(AddedToken("x", special=True, normalized=False))
    return sorted(
        [token.content, *_shown(token)]
        for token in inner.get_added_tokens_decoder().values()
        if token.content not in usual or _shown(token) != plain
    )


def listed(folder: pathlib.Path) -> list[str]:
    """The tokens that a folder's `tokenizer.json`, if any, has added."""
    if not inside(folder, WHOLE).is_file():
        return []
    about = json_inside(
        folder, WHOLE, what="tokenizer file", most=_MOST_VOCABULARY
    )
    tokens = about.get("added_tokens")
    found = map(_content, tokens if isinstance(tokens, list) else [])
    return [content for content in found if content is not None]


def _content(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _token(value: Any, *, special: bool) -> AddedToken | None:
    """The token that JSON describes: its text, or its text and flags."""
    content = _content(value)
    if not content:
        return None
    flags = {"special": special, "normalized": not special}
    if isinstance(value, Mapping):
        said = {name: value[name] for name in _FLAGS if name in value}
        if not all(isinstance(flag, bool) for flag in said.values()):
            return None
        flags |= said
    return AddedToken(content, **flags)
