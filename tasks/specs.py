"""Every task by its id, in plain Python; users add theirs with `register`."""

from panda_jax.tasks.spec import TaskSpec
from panda_jax.tasks.table_offline import OFFLINE
from panda_jax.tasks.table_texts import GLUE, SUPER_GLUE
from panda_jax.tasks.table_tokens import TOKEN_TASKS

from panda_jax.errors import UserError, unknown_name

_SPECS: dict[str, TaskSpec] = {}


def register(spec: TaskSpec) -> TaskSpec:
    """Adds a task; registering an equal specification again does nothing.

    Raises:
      UserError: another task has the name, or the specification contradicts
        itself.
    """
    where = f"Task {spec.name!r}"
    for wrong, what in (
        (
            spec.kind in ("classification", "tags")
            and len(spec.labels) < (2 if spec.kind == "classification" else 1),
            f"is a {spec.kind} task with {len(spec.labels)} labels; "
            "classification takes at least 2, tags at least 1",
        ),
        (
            spec.kind in ("regression", "span") and spec.labels,
            f"is a {spec.kind} task with {len(spec.labels)} labels; it takes "
            "none",
        ),
        (
            (spec.kind == "choice") != bool(spec.choices),
            f"is a {spec.kind} task with the choices {list(spec.choices)}; "
            "they are what kind choice takes, and no other",
        ),
    ):
        if wrong:
            raise UserError(f"{where} {what}.")
    if not spec.metrics:
        raise UserError(f"{where} names no metric, expected at least one.")
    wrong = set(spec.label_values.values()) - set(spec.labels)
    if wrong:
        raise UserError(
            f"{where} maps file labels to {sorted(wrong)}, which are not "
            f"among its labels {list(spec.labels)}."
        )
    there = _SPECS.get(spec.name, spec)
    # Rows of the user's own may come again, and be others.
    if there != spec and not spec.reader == there.reader == "own":
        raise UserError(
            f"{where} is registered already with another specification; "
            "choose another name."
        )
    _SPECS[spec.name] = spec
    return spec


def get(name: str) -> TaskSpec:
    """The task called `name`.

    Raises:
      UserError: there is none; says the nearest names.
    """
    if name not in _SPECS:
        raise unknown_name("task", name, _SPECS)
    return _SPECS[name]


def of_registry(name: str) -> tuple[str, bool]:
    """The task of a SeqIO entry, and whether that is its text-to-text view.

    Raises:
      UserError: a mixture, which no run trains on, or no task at all.
    """
    if name in MIXTURES:
        raise UserError(
            f"{name!r} is a mixture of {len(MIXTURES[name])} tasks; a run "
            f"trains on one of them. Choose from: {', '.join(MIXTURES[name])}."
        )
    base = name.removesuffix("_text")
    if name not in _SPECS and base in _SPECS:
        return base, True
    return get(name).name, False


def names() -> list[str]:
    """All task ids, in the order of registration."""
    return list(_SPECS)


# Text-to-text tasks trained together, for a source prompt of many tasks.
MIXTURES = {
    "glue_text": tuple(spec.name for spec in GLUE),
    "super_glue_text": tuple(spec.name for spec in SUPER_GLUE),
    "sources_text": tuple(
        spec.name for spec in (*SUPER_GLUE, *GLUE, *TOKEN_TASKS) if spec.source
    ),
}

for _spec in (*SUPER_GLUE, *GLUE, *TOKEN_TASKS, *OFFLINE):
    register(_spec)
