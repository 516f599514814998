"""Which pairs of transformers and PEFT run what is exported, as tried.

`peft_pairs.json` is written by `launch/try_peft.py`, and is all that the cards
and docs/exchange.md know of versions.
"""

import dataclasses
import functools
import importlib.resources
import json

FILE = "peft_pairs.json"
GENERATE = "generate"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one form of prompt.

    Attributes:
      result: `same` (as panda_jax, within the tolerance of the file);
        `segments` (only where every `token_type_ids` is 0, for they are
        dropped); `no prompt` (as if there were none); `differs`; `raises`.
      at: `loading` or `use`, where it raises.
      error: its type and first line.
    """

    result: str
    at: str = ""
    error: str = ""

    @property
    def runs(self) -> bool:
        """Whether the prompt is what it is here, perhaps for some inputs."""
        return self.result in ("same", "segments")

    @property
    def words(self) -> str:
        """For a table."""
        if self.result == "raises":
            verb = "does not load" if self.at == "loading" else "loads, raises"
            return f"{verb}: {self.error}"
        return {
            "same": "as panda_jax",
            "segments": "as panda_jax only where all token_type_ids are 0",
            "no prompt": "as if there were no prompt",
            "differs": "something else",
        }[self.result]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One pair of versions, and form -> outcome with PEFT and without."""

    transformers: str
    peft: str
    with_peft: dict[str, Outcome]
    without_peft: dict[str, Outcome]


def form(kind: str, task_type: str, *, generate: bool = False) -> str:
    """The name of a form, as `deep SEQ_CLS`."""
    return " ".join([kind, task_type, *([GENERATE] if generate else [])])


@functools.cache
def pairs() -> tuple[Pair, ...]:
    """All that were tried, oldest first."""
    file = importlib.resources.files("panda_jax.interop") / FILE
    return tuple(
        Pair(
            pair["transformers"],
            pair["peft"],
            _outcomes(pair["with_peft"]),
            _outcomes(pair["without_peft"]),
        )
        for pair in json.loads(file.read_text())["pairs"]
    )


def find(transformers: str, peft: str) -> Pair | None:
    """The pair of these versions, if it was tried."""
    for pair in pairs():
        if (pair.transformers, pair.peft) == (transformers, peft):
            return pair
    return None


def grouped(form: str) -> list[tuple[list[str], list[str], Outcome]]:
    """Versions of transformers and of PEFT that do the same with a form.

    Each pair is in one of them; there are none of a form that was not tried.
    """
    single: dict[tuple[str, Outcome], list[str]] = {}
    for pair in pairs():
        if form not in pair.with_peft:
            continue
        key = (pair.transformers, pair.with_peft[form])
        single.setdefault(key, []).append(pair.peft)
    merged: dict[tuple[tuple[str, ...], Outcome], list[str]] = {}
    for (version, outcome), found in single.items():
        merged.setdefault((tuple(found), outcome), []).append(version)
    return [
        (versions, list(found), outcome)
        for (found, outcome), versions in merged.items()
    ]


def _outcomes(raw: dict[str, dict[str, str]]) -> dict[str, Outcome]:
    return {form: Outcome(**outcome) for form, outcome in raw.items()}
