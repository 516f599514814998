"""What makes a run this one: its id, and what holds its files together.

A run is what it uses: the settings that its method listens to, the prompts
that it starts from, and the weights, tokenizer and rows, by their hashes.
How any of it was written, and what a later release adds, makes no other run.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from panda_jax.config import registry, settings
from panda_jax.config.runs import DEFAULTS, Run
from panda_jax.errors import UserError
from panda_jax.io.files import read_json

_PARTS = ("settings", "needs", "fingerprints")
# Beyond scores and seconds of any run.
_MOST = 1e15
# The weights' and the computation's fingerprints stand for them.
_BY_FINGERPRINT = ("backbone", "dtype")
# Fingerprints that 0.1 did not take.
_LATER = ("tokenizer",)
# The settings of 0.1, whose grids' ids are of all of them. Never add one: the
# ids of grids that do not use it would change.
_FIRST = re.findall(
    r"\w+",
    """task backbone method recipe seed prompt_kind prompt_length prompt_init
    init_text init_stddev resize_source max_length target_length batch_size
    epochs steps optimizer learning_rate weight_decay clip schedule dropout
    accumulate patience eval_every eval_period train_examples eval_examples
    kd_lambda kd_beta kd_weight kd_transform transfer_metric top_k fusion
    temperature remat dtype""",
)
_FIRST_DISTILLATION = (
    "kd_lambda",
    "kd_beta",
    "kd_transform",
    "temperature",
    "transfer_metric",
)
_FIRST_UNUSED = {
    "paper": ("kd_beta", "temperature"),
    "released": ("kd_lambda", "kd_transform", "transfer_metric", "temperature"),
    "kl": ("kd_beta",),
}


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_id(
    run: Run,
    needs: Mapping[str, Any],
    fingerprints: Mapping[str, str] | None = None,
) -> str:
    """A readable name and 10 hex digits over what the run uses.

    Args:
      run: with its family's defaults filled in.
      needs: what identifies the prompts that the run starts from.
      fingerprints: of the backbone and the rows.
    """
    value = _uses(
        {
            "settings": dataclasses.asdict(run),
            "needs": dict(needs),
            "fingerprints": dict(fingerprints or {}),
        }
    )
    value[0] = registry.former(value[0])
    method = registry.former({"method": run.method})["method"]
    return f"{run.task}-{method}-s{run.seed}-{digest(value)[:10]}"


def grid_settings(run: Run) -> dict[str, Any]:
    """What a grid's id of a run, and of its fleet, is made from.

    As the run is not loaded yet: settings alone, the backbone by its name.
    """
    return {
        name: value
        for name, value in registry.former(dataclasses.asdict(run)).items()
        if name in _FIRST or value != DEFAULTS[name]
    }


def since_first(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, with those that releases after 0.1 added.

    Args:
      settings: of `run.json`; none of a result that stands alone.
    """
    later = {n: x for n, x in DEFAULTS.items() if n not in _FIRST}
    return {**later, **settings} if settings else {}


def first_trimmed(run: Run) -> Run:
    """A grid's run as 0.1 had it, without part of what it does not use.

    The ids that 0.1 gave to a grid's runs follow from this.
    """
    if run.method == "panda" and run.kd_weight != 0:
        names = _FIRST_UNUSED[run.recipe]
    else:
        names = (*_FIRST_DISTILLATION, "recipe")
        names += ("kd_weight",) if run.method != "panda" else ()
    changes = {name: DEFAULTS[name] for name in names}
    return dataclasses.replace(run, **changes)


def grid_id(run: Run, needs: Mapping[str, str]) -> str:
    """10 hex digits that a run has in every grid that asks for it.

    Args:
      run: its settings, unused ones at their default.
      needs: role -> id of a run that it needs.
    """
    return digest({**grid_settings(run), "needs": dict(needs)})[:10]


def run_hash(description: Mapping[str, Any]) -> str:
    """16 hex digits over what `run.json` says that a run is."""
    return digest([description.get("run_id"), *_parts(description)])


def same_run(
    folder: pathlib.Path, description: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The description in a folder, if it has one, which is of the same run.

    Raises:
      UserError: `run.json` there describes other settings, another backbone
        or other data; names what differs.
    """
    there = read_description(folder)
    if there is None:
        return None
    old, new = _flat(there), _flat(description)
    changes = [
        f"{name}: {old.get(name, DEFAULTS.get(name))!r} there, "
        f"{new.get(name, DEFAULTS.get(name))!r} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
        and not (name in _LATER and name not in old)
    ]
    if changes:
        raise UserError(
            f"The model_dir {str(folder)!r} holds another run: "
            f"{'; '.join(changes)}. Choose another --model_dir, or delete "
            "that folder."
        )
    return there


def shorter_run(
    folder: pathlib.Path, description: Mapping[str, Any], *, epoch: int
) -> dict[str, Any] | None:
    """The description in a folder of the same run, if that is to end earlier.

    None where there is none, or no checkpoint that one could go on from.

    Args:
      folder: of the run.
      description: of the run that is asked for.
      epoch: steps of one.

    Raises:
      UserError: `run.json` there is none.
    """
    there = read_description(folder)
    if there is None or not (folder / "checkpoints").is_dir():
        return None
    old, new = _flat(there), _flat(description)
    changed = {n for n in {**old, **new} if old.get(n) != new.get(n)}
    if not changed or not changed <= {"steps", "epochs"}:
        return None
    ends = [
        Run(
            task="-", steps=flat.get("steps"), epochs=flat.get("epochs")
        ).total_steps(epoch)
        for flat in (old, new)
    ]
    return there if ends[0] < ends[1] else None


def longer(
    there: Mapping[str, Any], description: Mapping[str, Any]
) -> dict[str, Any]:
    """The description of a run that goes on where a shorter one ended.

    It names what it was: its checkpoint goes by that, and prompts that it had
    made for it stay what they were.
    """
    was = {name: there["settings"].get(name) for name in ("steps", "epochs")}
    before = {"run_id": there.get("run_id"), **was}
    return {**description, "went_on": [before, *former(there)]}


def former(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a run was while it was to end earlier: name, steps and epochs."""
    found = description.get("went_on")
    return [
        each
        for each in (found if isinstance(found, list) else [])
        if isinstance(each, dict)
        and isinstance(each.get("run_id"), str)
        and all(
            isinstance(each.get(n), int | None) for n in ("steps", "epochs")
        )
    ]


def read_description(folder: pathlib.Path) -> dict[str, Any] | None:
    """A run folder's `run.json`, or None without one.

    Raises:
      UserError: it is none, or was changed since it was written.
    """
    path = folder / "run.json"
    if not path.exists():
        return None
    there = read_json(path, what="run description")
    if any(not isinstance(there.get(part, {}), dict) for part in _PARTS):
        raise UserError(
            f"The run description {str(path)!r} is none: expected objects for "
            f"{', '.join(_PARTS)}. Choose another --model_dir, or delete that "
            "folder."
        )
    if there.get("hash", run_hash(there)) != run_hash(there):
        raise UserError(
            f"The run description {str(path)!r} was changed after it was "
            "written: it does not hash to what it says. Restore it, or choose "
            "another --model_dir."
        )
    return there


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """The run's `result.json`, or None while it is not done."""
    path = folder / "result.json"
    if not path.exists():
        return None
    return read_json(path, what="result file")


def done_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """The result of the run that a folder's `run.json` describes.

    Raises:
      UserError: something that a run says at its end is missing or of another
        kind, or the result is of another run.
    """
    result = read_result(folder)
    if result is None:
        return None
    scores = [result.get(name) for name in ("best", "first_epoch", "final")]
    numbers = [x.get("value") if isinstance(x, dict) else None for x in scores]
    numbers.append(result.get("seconds"))
    # Python's ints have no end, and JSON's NaN is below nothing.
    if not all(
        isinstance(x, int | float) and abs(x) < _MOST for x in numbers
    ) or not {
        "task",
        "method",
        "seed",
        "metric",
        "steps",
    } <= set(result):
        raise UserError(
            f"The result file {str(folder / 'result.json')!r} is not what a "
            "run leaves: delete it to make the result again."
        )
    there = read_description(folder)
    if there is None:
        raise UserError(
            f"{str(folder)!r} has a result.json and no run.json that says "
            "what run it is of: choose another --model_dir, or restore the "
            "whole folder."
        )
    check_result(result, there, where=str(folder))
    return result


def check_result(
    result: Mapping[str, Any], description: Mapping[str, Any], *, where: str
) -> None:
    """Refuses a result that is not of the run beside it.

    Args:
      result: the content of `result.json`.
      description: the content of `run.json`.
      where: the folder, for the message.

    Raises:
      UserError: names both runs.
    """
    made, named = result.get("run_id"), description.get("run_id")
    # Results of 0.1 carry no hash.
    hashes = result.get("run_hash"), run_hash(description)
    if made != named or hashes[0] not in (None, hashes[1]):
        raise UserError(
            f"{where}: result.json is of run {made} ({hashes[0]}), run.json "
            f"describes {named} ({hashes[1]}). One of them is another run's: "
            "restore the folder, or choose another."
        )


def check_planned(
    folder: pathlib.Path, run: Run, result: Mapping[str, Any]
) -> None:
    """Refuses a result in a grid's folder that is not of the run it is for.

    Args:
      folder: of the run.
      run: as the grid asks for it, its family's defaults not filled in.
      result: the content of the folder's `result.json`.

    Raises:
      UserError: it is another's; says what differs.
    """
    description = read_description(folder)
    if description is not None:
        check_result(result, description, where=str(folder))
    asked = settings.trimmed(dataclasses.asdict(run), DEFAULTS)
    # What nobody asked for is filled in by the family.
    always = ("task", "method", "seed")
    if description is None:  # a result says only so much of itself
        said = {name: result[name] for name in always if name in result}
    else:
        said = _parts(description)[0]
    said = registry.present(said)
    names = [
        name
        for name, value in asked.items()
        if name in said
        and name != "backbone"
        and (name in always or value != DEFAULTS[name])
    ]
    unlike = [
        f"{name}: {said[name]!r} there, {asked[name]!r} asked for"
        for name in names
        if said[name] != asked[name]
    ]
    if unlike:
        raise UserError(
            f"{str(folder)!r} holds the result of another run than the grid "
            f"has there: {'; '.join(unlike)}. Take it away, or restore it."
        )


def check_prompt(
    result: Mapping[str, Any], info: Mapping[str, Any], *, where: str
) -> None:
    """Refuses a prompt that is not the one whose score a result states.

    Args:
      result: the content of `result.json`.
      info: the content of `panda.json`.
      where: the run's folder, for the message.

    Raises:
      UserError: says what differs.
    """
    stated = {"content_hash": result.get("prompt_hash")}
    if stated["content_hash"] is None:
        # Results of 0.1 carry no hash: what both say must agree.
        stated = {
            "task": result.get("task"),
            "method": result.get("method"),
            "seed": result.get("seed"),
            "scores": (result.get("best") or {}).get("scores"),
        }
    stated, info = registry.present(stated), registry.present(info)
    unlike = [
        f"{name} {info.get(name)!r}, the result says {value!r}"
        for name, value in stated.items()
        if value is not None and info.get(name) != value
    ]
    if unlike:
        raise UserError(
            f"The prompt in {where!r} is not the one that its result.json is "
            f"of: {'; '.join(unlike)}. Restore it, or choose another folder."
        )


def _parts(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = (description.get(part) for part in _PARTS)
    return [dict(part) if isinstance(part, dict) else {} for part in parts]


def _uses(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings, needs and fingerprints, as far as the run makes use of them."""
    given, needs, fingerprints = _parts(description)
    given = registry.present(given)
    if isinstance(given.get("method"), str):
        several = any(name.startswith("source ") for name in needs)
        given = settings.used(given, DEFAULTS, several=several)
    if given.get("method") == "panda" and given.get("kd_weight") == 0:
        needs = {}  # The control takes none, given or not.
    if fingerprints:
        given = {n: x for n, x in given.items() if n not in _BY_FINGERPRINT}
    needs = {name: need for name, need in needs.items() if need is not None}
    return [given, needs, fingerprints]


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    return {n: x for part in _uses(description) for n, x in part.items()}
