"""The verbs' flags, by their annotations: paths, help, types."""

import dataclasses
import re
from typing import Annotated

import pytest

from panda_jax import UserError, fields
from panda_jax.cli import arguments, flags
from panda_jax.cli.default_folder import default_folder
from panda_jax.fields import File, Group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later(arguments.Train):
    """With a flag that a later release brings."""

    notes: Annotated[File | None, Group.DATA, "A file of notes."] = None


def test_a_new_flag_that_is_a_path_is_one_everywhere(tmp_path, monkeypatch):
    """Its annotation is all that says so."""
    with pytest.raises(UserError, match="notes is 'gs://b/n', expected a path"):
        Later(task="cb", notes="gs://b/n")
    setting = fields.of(Later)["notes"]
    assert flags.metavar(setting) == "FILE"
    assert flags.convert(setting, "None") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n").touch()
    spelt = [
        default_folder(Later(task="cb", notes=text))
        for text in ("n", "./n", str(tmp_path / "n"), "m")
    ]
    assert len(set(spelt[:3])) == 1
    assert spelt[3] != spelt[0]


@pytest.mark.parametrize("verb", arguments.VERBS)
def test_what_sounds_like_a_path_is_marked(verb):
    for name, setting in flags.settings(verb).items():
        named = re.search(r"(dir|file|folder|path)$", name)
        told = re.match(r"(The |A )?(folder|file|bank)\b", setting.help, re.I)
        assert setting.path is not None or not (named or told), name


@pytest.mark.parametrize("verb", arguments.VERBS)
def test_the_line_of_every_flag_stands_alone(verb):
    """A sentence, in words that are the field's or that it explains."""
    private = r"\b(lanes?|claims?|ceiling|truth|registry|knobs?|None)\b"
    for name, setting in flags.settings(verb).items():
        said = setting.help
        assert re.match(r"[A-Z]|i/n|deep:", said), (name, said)
        assert said.endswith("."), (name, said)
        assert setting.group is not None, name
        assert not re.search(private, said), (name, said)
        if setting.default is None and {int, float} & setting.kinds:
            default = r"By default|in place of|Has no effect"
            assert re.search(default, said), (name, said)


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("3", (int,), 3),
        ("3", (float,), 3.0),
        ("3", (str,), "3"),
        ("None", (str,), "None"),
        ("None", (str, type(None)), None),
        ("nan", (str,), "nan"),
        ("a,b", (tuple[str, ...],), "a,b"),
        ("{}", (dict, type(None)), "{}"),
    ],
)
def test_a_text_is_read_as_its_type(text, options, value):
    setting = fields.Setting("it", 0, options, ())
    found = flags.convert(setting, text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["", "x", "1.5", "None", "True", "1,2"])
def test_a_text_of_another_type_is_refused(text):
    setting = fields.Setting("it", 0, (int,), ())
    with pytest.raises(UserError, match=f"--it={text}: expected .* type int"):
        flags.convert(setting, text)
