"""Settings by their annotations: the one check of types."""

import dataclasses
from typing import Annotated, Literal

import pytest

from panda_jax import UserError, fields
from panda_jax.fields import File, Group, OneOf, Path, PathOrUrl

NAMES = ["one"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Some settings."""

    size: Annotated[int, Group.DATA, "How many."] = 1
    rate: Annotated[float | None, Group.TRAINING, "How fast."] = None
    where: Annotated[Path, "Where."] = "."
    plain: bool = False

    def __post_init__(self) -> None:
        fields.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small(Base):
    """More of them."""

    how: Annotated[Literal["a", "b"] | None, "How."] = None
    open: Annotated[str, OneOf(NAMES)] = "one"
    files: Annotated[File | None, "Which."] = None
    bucket: PathOrUrl | None = None
    several: tuple[str, ...] = ()
    size: Annotated[int, Group.RUN, "How many at most."] = 2


def test_what_an_annotation_says():
    found = fields.of(Small)
    assert list(found)[:6] == [
        "how", "open", "files", "bucket", "several", "size",
    ]  # fmt: skip
    assert found["size"].help == "How many at most."
    assert found["size"].group is Group.RUN
    assert found["size"].default == 2
    assert found["rate"].words == "float | None"
    assert found["how"].choices == ("a", "b")
    assert found["how"].words == "str | None"
    assert found["files"].path.shown == "FILE"
    assert found["plain"].path is None
    assert found["plain"].group is None
    assert found["several"].kinds == {tuple}


@pytest.mark.parametrize(
    ("value", "options", "right"),
    [
        (1, (int,), True),
        (True, (int,), False),
        (1, (bool,), False),
        (1, (float,), True),
        (2**53, (float,), False),
        (1.0, (int,), False),
        (None, (int, type(None)), True),
        (None, (int,), False),
        ([1, 2], (list[int],), True),
        ([1, "2"], (list[int],), False),
        ({"a": 1.5, "b": 2}, (dict[str, float],), True),
        ({"a": "1"}, (dict[str, float],), False),
        ({"a": [1]}, (dict,), True),
        ((1,), (tuple[str, ...],), True),
        ([1], (tuple[str, ...],), False),
        ("x", (Literal["a"],), True),
        ("x", (Annotated[str, "words"] | None,), True),
        (3, (Annotated[str, "words"] | None,), False),
    ],
)
def test_one_check_of_types(value, options, right):
    assert fields.fits(value, *options) is right


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": 1.5}, "size is 1.5, expected a value of type int"),
        ({"size": True}, "size is True, expected a value of type int"),
        ({"rate": "1"}, "rate is '1', expected a value of type float | None"),
        ({"rate": float("nan")}, "rate is nan, expected a finite number"),
        ({"rate": 10**400}, "rate is inf, expected a finite number"),
        ({"size": object()}, "size is not set: a gin file asks for it"),
        ({"how": "c"}, "Unknown how 'c'. Known: a, b."),
        ({"how": 3}, "how is 3, expected a value of type str | None"),
        ({"open": "onne"}, "Unknown open 'onne'. Did you mean 'one'?"),
        ({"where": "gs://b/x"}, "where is 'gs://b/x', expected a path"),
        ({"files": "a, s3://b/x"}, "files is 'a, s3://b/x', expected a path"),
    ],
)
def test_settings_that_are_refused(given, words):
    with pytest.raises(UserError) as error:
        Small(**given)
    assert str(error.value).startswith(words)


def test_settings_that_are_taken():
    found = Small(rate=1, bucket="gs://b/x", how="b")
    assert (type(found.rate), found.rate) == (float, 1.0)
    NAMES.append("two")
    assert Small(open="two").open == "two"
