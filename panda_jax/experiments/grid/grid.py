"""A grid of runs as settings, and the runs that follow from it.

`Grid` is what a user writes. `expand` says which runs it asks for, each with
its id, what it needs, its folder and its fleet; `listing` prints them, and
`described` and `read_list` say how `grid.json` holds them.

This module must stay light (no JAX): `panda-jax --help` reads it.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from panda_jax.config import registry, runs
from panda_jax.config.registry import METHODS, RECIPES
from panda_jax.config.runs import Run, backbone_name
from panda_jax.errors import UserError, unknown_name
from panda_jax.fields import check
from panda_jax.io.files import parse_json, read_json
from panda_jax.tasks import own, specs
from panda_jax.tasks.spec import ALL_SPLITS
from panda_jax.training import identity

# A grid's list of its runs, in its folder.
GRID = "grid.json"
# A fleet holds runs of one stage; none needs a run of its own or a later one.
STAGES = ("prompt", "pot", "panda", "finetune")
# What lanes of a fleet may differ in (`assembly.check_alike`).
LANES = (
    "method", "seed", "learning_rate", "weight_decay", "schedule", "patience",
    "prompt_init", "init_text", "init_stddev", "resize_source", "kd_lambda",
    "kd_beta", "kd_weight", "kd_transform", "transfer_metric", "top_k",
    "fusion",
)  # fmt: skip
# What the loop around the step reads, and the step does not.
_LOOP = ("epochs", "steps", "eval_every", "eval_period", "eval_examples")
# Why a grid has a run.
ROLES = ("source", "prompt", "pot", "panda", "control", "finetune")
# What a task of one's own rows says of them, beside its files.
_OWN = ["text", "label", "kind", "labels"]
# What a grid is made of, so that no setting may say it.
AXES = ("task", "backbone", "method", "recipe", "seed")
_SETTINGS = [
    field.name for field in dataclasses.fields(Run) if field.name not in AXES
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Every source x target x seed by every method; also gin's `grid`.

    Lists are tuples, or text with commas; mappings are dicts, or JSON.

    Attributes:
      sources: tasks that a source prompt is trained on.
      targets: tasks that are transferred to, from every source.
      backbones: ids or folders.
      methods: of the targets' runs: prompt, pot, panda, finetune, and control
        (PANDA's settings with weight 0). What these need is made too.
      recipes: of panda: paper, released, kl.
      seeds: each makes the whole chain anew, its source prompts included.
      settings: of every run: what `train` takes, such as epochs.
      overrides: words -> settings of the runs that all words describe, those
        of more words win: {"panda": {...}, "source mnli": {...}}. Words are
        methods (control listens to panda's too), source, the tasks trained on,
        backbones, recipes.
      sweep: settings of panda, each with the values to try, in all
        combinations: {"kd_lambda": (0.3, 1.0)}.
      own_tasks: tasks of rows of your own, by the name that sources and
        targets then have for them: {"reviews": {"train_file": "r.csv", "text":
        "review", "label": "stars"}}; also validation_file, test_file, kind and
        labels, as `train` has them.
    """

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ("minilm-l6",)
    methods: tuple[str, ...] = ("prompt", "pot", "panda", "control", "finetune")
    recipes: tuple[str, ...] = ("paper",)
    seeds: tuple[int, ...] = (0,)
    settings: dict | None = None
    overrides: dict | None = None
    sweep: dict | None = None
    own_tasks: dict | None = None

    def __post_init__(self) -> None:
        names = "sources", "targets", "backbones", "methods", "recipes"
        given = {x: _listed(getattr(self, x)) for x in (*names, "seeds")}
        if isinstance(given["seeds"], tuple):
            given["seeds"] = tuple(map(_number, given["seeds"]))
        for name in ("settings", "overrides", "sweep", "own_tasks"):
            given[name] = _mapping(name, getattr(self, name))
        for name in registry.FORMER:
            given[f"{name}s"] = _present(name, given[f"{name}s"])
        vars(self).update(given)
        check(self)
        of_text = (
            backbone_name(name) if isinstance(name, str) else name
            for name in self.backbones
        )
        vars(self)["backbones"] = tuple(of_text)
        for name in names:
            _check_names(name, getattr(self, name), str)
        _check_names("seeds", self.seeds, int)
        self._add_own_tasks()
        self._check_lists()
        self._check_settings()

    def _add_own_tasks(self) -> None:
        for name, said in (self.own_tasks or {}).items():
            known = [f"{split}_file" for split in ALL_SPLITS] + _OWN
            if not isinstance(said, dict) or not {*said} <= {*known}:
                raise UserError(
                    f"own_tasks[{name!r}] is {said!r}, expected a mapping of "
                    f"{', '.join(known)}."
                )
            rows = {x: said.get(f"{x}_file") for x in ALL_SPLITS}
            about = {x: said.get(x) for x in _OWN}
            own.add(rows, name=name, **about)

    def _check_lists(self) -> None:
        if not self.sources and not self.targets:
            raise UserError(
                "The grid has neither sources nor targets: give "
                "--sources=a,b and --targets=c,d, or a --gin_file."
            )
        for name in ("backbones", "recipes", "seeds"):
            if not getattr(self, name):
                raise UserError(f"The grid has no {name}: give at least one.")
        for task in (*self.sources, *self.targets):
            specs.of_registry(task)
        for what, values, known in (
            ("method", self.methods, (*METHODS, "control")),
            ("recipe", self.recipes, RECIPES),
        ):
            for value in values:
                if value not in known:
                    raise unknown_name(what, value, known)
        transfers = {"pot", "panda"} & set(self.methods)
        if self.targets and transfers and not self.sources:
            raise UserError(
                f"The methods {', '.join(sorted(transfers))} need sources: "
                "give --sources=a,b, or leave them out of --methods."
            )

    def _check_settings(self) -> None:
        _check_names_of("settings", self.settings or {})
        words = {*ROLES, *self.recipes, *self.backbones}
        words |= {*self.sources, *self.targets}
        words |= former_words(words)
        for key, settings in (self.overrides or {}).items():
            if not isinstance(key, str) or not key.split():
                raise UserError(
                    f"overrides has the key {key!r}, expected words such as "
                    "'panda' or 'source mnli'; settings are those of all runs."
                )
            for word in words_of(key):
                if word not in words:
                    raise unknown_name("word in overrides", word, words)
            _check_names_of(f"overrides[{key!r}]", settings)
        _check_names_of("sweep", self.sweep or {})
        for name, values in (self.sweep or {}).items():
            if not isinstance(values, list | tuple) or not values:
                raise UserError(
                    f"sweep[{name!r}] is {values!r}, expected a tuple of the "
                    "values to try."
                )

    def settings_of(self, words: set[str]) -> dict[str, Any]:
        """The settings of a run that the words describe.

        Raises:
          UserError: overrides of as many words set the same thing otherwise.
        """
        said: dict[str, list[tuple[int, str, Any]]] = {}
        for key, settings in (self.overrides or {}).items():
            own = words_of(key)
            for name, value in settings.items() if set(own) <= words else ():
                said.setdefault(name, []).append((len(own), key, value))
        found = dict(self.settings or {})
        for name, each in said.items():
            most = max(count for count, _, _ in each)
            (_, one, value), *others = (e for e in each if e[0] == most)
            for _, other, differing in others:
                if differing != value:
                    both = dict.fromkeys([*one.split(), *other.split()])
                    raise UserError(
                        f"overrides[{one!r}] and overrides[{other!r}] set "
                        f"{name} to {value!r} and {differing!r} for the same "
                        f"runs: say which in overrides[{' '.join(both)!r}]."
                    )
            found[name] = value
        return found


def _listed(value: Any) -> Any:
    """Text with commas, or a list, as a tuple; the rest as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _present(name: str, values: Any) -> Any:
    """Former names as this release has them; what is no list as it is."""
    if not isinstance(values, tuple):
        return values
    return tuple(registry.present({name: value})[name] for value in values)


def former_words(words: set[str]) -> set[str]:
    """What 0.1 called some of them, which overrides may say too."""
    every = [
        name for names in registry.FORMER.values() for name in names.items()
    ]
    return {old for new, old in every if new in words}


def words_of(key: str) -> list[str]:
    """The words of an override; a backbone as in the grid's list."""
    return [backbone_name(word) for word in key.split()]


def _number(value: Any) -> Any:
    """A whole number's text as a number; the rest as it is."""
    text = value if isinstance(value, str) else ""
    return int(text) if text.removeprefix("-").isdecimal() else value


def _mapping(name: str, value: Any) -> Any:
    """JSON as a dict; the rest as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        raise UserError(
            f"{name} is {value!r}, expected JSON, such as '{{\"epochs\": 2}}'."
        ) from None


def _check_names(name: str, values: tuple[Any, ...], kind: type) -> None:
    for value in values:
        if type(value) is not kind:
            raise UserError(
                f"{name} holds {value!r}, expected values of type "
                f"{kind.__name__}."
            )
        if values.count(value) > 1:
            raise UserError(f"{name} holds {value!r} twice: name it once.")


def _check_names_of(where: str, settings: Any) -> None:
    """Refuses names that no run has, or that the grid's lists decide."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} is {settings!r}, expected a dict.")
    for name in settings:
        if name in AXES:
            raise UserError(
                f"{where} sets {name!r}, which is one of the grid's lists: "
                f"give it in {name}s, or, for task, in sources and targets."
            )
        if name not in _SETTINGS:
            raise unknown_name(f"setting in {where}:", name, _SETTINGS)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run that is to be made.

    Attributes:
      id: 10 hex digits over the settings and the ids of what it needs; the
        same in every process and Python version.
      needs: role (source, teacher, target_prompt) -> id of that run.
      source: the source task of PoT and PANDA.
      roles: some of `ROLES`; one run may serve as several.
      former: the same run as 0.1 named it, where that was otherwise.
    """

    id: str
    run: Run
    needs: Mapping[str, str]
    source: str | None
    roles: tuple[str, ...]
    former: "Planned | None" = None

    @classmethod
    def of(
        cls,
        role: str,
        run: Run,
        *,
        source: str | None = None,
        needs: Mapping[str, "Planned"] | None = None,
    ) -> "Planned":
        """A run, less the settings that it does not use, and its id."""
        needs = needs or {}
        ids = {name: need.id for name, need in needs.items()}
        kept = runs.trimmed(run)
        found = cls(identity.grid_id(kept, ids), kept, ids, source, (role,))
        before = {n: (x.former or x).id for n, x in needs.items()}
        old = identity.grid_id(run, before)
        if old == found.id:
            return found
        former = cls(old, run, before, source, (role,))
        return dataclasses.replace(found, former=former)

    @property
    def kind(self) -> str:
        """Its method, with the recipe of PANDA; `control` of weight 0."""
        return self._kind(self.run.method, self.run.recipe)

    def _kind(self, method: str, recipe: str) -> str:
        if method != "panda":
            return method
        if self.run.kd_weight == 0:
            return "control"
        return "panda" if recipe == "paper" else f"panda-{recipe}"

    @property
    def stage(self) -> str:
        """One of `STAGES`."""
        alone = self.run.method == "finetune"
        return self.run.method if self.needs or alone else "prompt"

    @property
    def rows(self) -> int | None:
        """How many it learns from, each as often as it comes; None for all."""
        run, size = self.run, self.run.batch_size
        if run.steps is None and run.train_examples is None:
            return None
        return run.total_steps((run.train_examples or 0) // size or 1) * size

    @property
    def name(self) -> str:
        """A readable name that ends in the id."""
        now = {"method": self.run.method, "recipe": self.run.recipe}
        kind = self._kind(**registry.former(now))
        parts = (slug(self.run.backbone), self.run.task, kind, self.source)
        text = "-".join(part for part in parts if part)
        return f"{text}-s{self.run.seed}-{self.id}"

    @functools.cached_property
    def fleet(self) -> str:
        """The name of its fleet: stage and shared settings decide."""
        shared = {
            name: value
            for name, value in identity.grid_settings(self.run).items()
            if name not in LANES
        }
        if self.run.method == "finetune":  # a fleet of one
            shared["run"] = self.id
        text = json.dumps(shared, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        run = self.run
        stage = registry.former({"method": self.stage})["method"]
        return f"{slug(run.backbone)}-{run.task}-{stage}-{digest}"

    @property
    def lane(self) -> str:
        """Its folder in its fleet's, by which reports tell a mere source."""
        only = self.roles == ("source",)
        return f"sources/{self.name}" if only else self.name

    @property
    def folder(self) -> str:
        """Its run folder, below the grid's."""
        return f"runs/{self.fleet}/{self.lane}"

    @property
    def other_lane(self) -> str:
        """The lane of a source that is a target too, and the other way."""
        return self.name if self.lane != self.name else f"sources/{self.name}"

    def bank(self, role: str) -> str:
        """Where its prompt lies among those of role `source` or `prompt`."""
        run = self.run
        among = {"source": "sources", "prompt": "targets"}[role]
        return f"{among}/{slug(run.backbone)}/s{run.seed}/{run.task}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that are trained together, as one fleet: its name, and its runs."""

    name: str
    runs: tuple[Planned, ...]

    @property
    def stage(self) -> str:
        """One of `STAGES`."""
        return self.runs[0].stage

    @property
    def block(self) -> tuple[str, str]:
        """Its backbone and stage."""
        return self.runs[0].run.backbone, self.stage

    @property
    def about(self) -> str:
        """What it is, for people."""
        first, count = self.runs[0], len(self.runs)
        kinds = ", ".join(dict.fromkeys(run.kind for run in self.runs))
        many = "1 run" if count == 1 else f"{count} runs"
        return f"{slug(first.run.backbone)} {first.run.task}: {many} of {kinds}"

    @property
    def program(self) -> tuple[Any, ...]:
        """Equal for fleets whose training steps are one compiled program.

        Encoders give a fleet without teachers an empty place for their logits,
        so that PoT and PANDA are one program; where teachers run in the step
        (T5, large logits) they are two.
        """
        run = self.runs[0].run
        free = (*LANES, *_LOOP, "recipe")
        settings = sorted(dataclasses.asdict(run).items())
        return (
            *(item for item in settings if item[0] not in free),
            len(self.runs),
            run.method == "finetune",
            run.recipe == "kl",
            run.recipe == "released" and self.stage == "panda",
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a grid.

    Attributes:
      runs: each once, after what it needs.
      groups: the fleets, a backbone after another, each by stage.
    """

    runs: tuple[Planned, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, planned: Iterable[Planned]) -> "Plan":
        """A plan with these runs in fleets."""
        planned = tuple(planned)
        members: dict[str, list[Planned]] = {}
        for run in planned:
            members.setdefault(run.fleet, []).append(run)
        groups = [Group(name, tuple(each)) for name, each in members.items()]
        backbones = list(dict.fromkeys(run.run.backbone for run in planned))

        def place(group: Group) -> tuple[int, int]:
            backbone, stage = group.block
            return backbones.index(backbone), STAGES.index(stage)

        return cls(planned, tuple(sorted(groups, key=place)))

    def named_in(self, out: pathlib.Path) -> "Plan":
        """The plan with the names that 0.1 gave to runs begun in a folder."""
        names = {}
        for run, former in [(x, x.former) for x in self.runs if x.former]:
            former = dataclasses.replace(former, roles=run.roles)
            fleet = out / "runs" / former.fleet
            places = fleet / former.lane, fleet / former.other_lane
            if any(place.exists() for place in places):
                names[run.id] = former
        if not names:
            return self
        found = []
        for run in self.runs:
            needs = {
                role: names[id_].id if id_ in names else id_
                for role, id_ in run.needs.items()
            }
            run = names.get(run.id, run)
            found.append(dataclasses.replace(run, needs=needs))
        return Plan.of(found)

    @functools.cached_property
    def by_id(self) -> dict[str, Planned]:
        """Id -> run."""
        return {run.id: run for run in self.runs}

    @property
    def programs(self) -> int:
        """How many training steps are compiled at most; tasks may share one."""
        return len({group.program for group in self.groups})

    def dealt(self, index: int, count: int) -> list[int]:
        """The numbers of the groups in the order in which to look for work.

        Those of one backbone and stage are begun before the next, since what
        others need is to be done early; among them the own ones of the shard
        number `index` of `count` come first.
        """
        blocks = [group.block for group in self.groups]
        rank = {block: at for at, block in enumerate(dict.fromkeys(blocks))}
        return sorted(
            range(len(blocks)),
            key=lambda n: (rank[blocks[n]], n % count != index, n),
        )


def slug(backbone: str) -> str:
    """A backbone's id or folder as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", backbone).strip("-")


def expand(grid: Grid) -> Plan:
    """The runs of a grid and what they need, in fleets.

    Raises:
      UserError: a setting that no run can have.
    """
    made: dict[str, Planned] = {}
    for backbone, seed in itertools.product(grid.backbones, grid.seeds):
        for planned in _Chain(grid, backbone, seed).runs():
            known = made.get(planned.id, planned)
            roles = dict.fromkeys((*known.roles, *planned.roles))
            made[planned.id] = dataclasses.replace(known, roles=tuple(roles))
    return Plan.of(made.values())


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The runs of one backbone and seed."""

    grid: Grid
    backbone: str
    seed: int

    def _run(
        self, role: str, task: str, recipe: str = "paper", **swept: Any
    ) -> Run:
        words = {role, task, self.backbone}
        if role in ("panda", "control"):
            words |= {"panda", recipe}
        words |= former_words(words)
        settings = self.grid.settings_of(words) | swept
        if role == "control":
            settings["kd_weight"] = 0.0
        method = {"source": "prompt", "control": "panda"}.get(role, role)
        settings |= {"task": task, "backbone": self.backbone, "method": method}
        run = runs.make_run(recipe=recipe, seed=self.seed, **settings)
        return identity.first_trimmed(run)

    def _distilled(self, role: str, task: str) -> Iterator[Run]:
        """PANDA's runs on a target, but for the source, or their controls."""
        sweep = self.grid.sweep or {}
        for recipe in self.grid.recipes:
            for values in itertools.product(*sweep.values()):
                swept = dict(zip(sweep, values, strict=True))
                yield self._run(role, task, recipe, **swept)

    def runs(self) -> Iterator[Planned]:
        """Each after what it needs; some more than once."""
        sources = {
            task: Planned.of("source", self._run("source", task))
            for task in self.grid.sources
        }
        yield from sources.values()
        for target in self.grid.targets:
            yield from self._onto(target, sources)

    def _onto(
        self, target: str, sources: Mapping[str, Planned]
    ) -> Iterator[Planned]:
        methods = self.grid.methods
        own = Planned.of("prompt", self._run("prompt", target))
        taught = []
        if "panda" in methods:
            taught = list(self._distilled("panda", target))
        # Weight 0 listens to no source.
        controls = [run for run in taught if run.kd_weight == 0]
        taught = [run for run in taught if run.kd_weight != 0]
        if controls or "control" in methods:
            for run in self._distilled("control", target):
                yield Planned.of("control", run)
        weighed = any(run.weighs_by_similarity for run in taught)
        if "prompt" in methods or weighed:
            yield own
        if "finetune" in methods:
            yield Planned.of("finetune", self._run("finetune", target))
        if "pot" not in methods and not taught:
            return
        for task, source in sources.items():
            needs = {"source": source}
            pot = self._run("pot", target)
            teacher = Planned.of("pot", pot, source=task, needs=needs)
            yield teacher
            needs = {**needs, "teacher": teacher}
            for run in taught:
                more = (
                    {"target_prompt": own} if run.weighs_by_similarity else {}
                )
                needed = {**needs, **more}
                yield Planned.of("panda", run, source=task, needs=needed)


def listing(grid: Grid) -> str:
    """A line a run and role, with ids and needs; the counts are last.

    Raises:
      UserError: a setting that no run can have.
    """
    plan = expand(grid)
    lines = []
    for group in plan.groups:
        for run, role in ((r, role) for r in group.runs for role in r.roles):
            needs = "".join(f" {name}={id_}" for name, id_ in run.needs.items())
            first = run.roles[0]
            also = "" if role == first else f" (the {first} run above)"
            lines.append(f"{role:8s} {run.name}{needs}{also}")
    return "\n".join([*lines, "", *_counts(grid, plan)])


def _counts(grid: Grid, plan: Plan) -> list[str]:
    """A table of backbones and roles, and what it takes."""
    roles = [r for r in ROLES if any(r in run.roles for run in plan.runs)]
    asked = Counter(
        (run.run.backbone, role) for run in plan.runs for role in run.roles
    )
    seeds = len(grid.seeds)
    width = max(len(slug(name)) for name in (*grid.backbones, "backbone"))
    head = "".join(f"{role:>9s}" for role in roles)
    lines = [f"Runs a seed ({seeds} in all):", f"{'backbone':{width}s}{head}"]
    for backbone in grid.backbones:
        row = "".join(f"{asked[backbone, r] / seeds:9g}" for r in roles)
        lines.append(f"{slug(backbone):{width}s}{row}")
    total, once = sum(asked.values()), len(plan.runs)
    lines.append(f"In all {total} runs.")
    if total != once:
        lines.append(
            f"{total - once} of them are also another's (same settings, same "
            f"id, marked above), so that {once} are trained."
        )
    stages = Counter(group.stage for group in plan.groups)
    each = ", ".join(f"{stages[s]} {s}" for s in STAGES if stages[s])
    lines.append(
        f"{len(plan.groups)} fleets ({each}), the largest of "
        f"{max(len(group.runs) for group in plan.groups)} runs; "
        f"at most {plan.programs} training steps to compile."
    )
    return lines


def described(run: Planned) -> dict[str, Any]:
    """A run as `grid.json` has it."""
    names = "id", "name", "folder", "fleet", "roles"
    found = {name: getattr(run, name) for name in names}
    found |= {"backbone": run.run.backbone, "task": run.run.task}
    found |= {"kind": run.kind, "source": run.source, "seed": run.run.seed}
    return {**found, "needs": dict(run.needs)}


def read_list(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The runs of a folder's `grid.json`, as `described` has them.

    Raises:
      UserError: the list is not what a grid writes.
    """
    names = ("kind", "backbone", "task", "folder", "name")
    try:
        found = []
        for run in read_json(folder / GRID)["runs"]:
            wanted = (*names, "roles", "source", "seed")
            found.append({name: run[name] for name in wanted})
            if not all(isinstance(run[name], str) for name in names):
                raise TypeError
        return found
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"The file {str(folder / GRID)!r} is no list of a grid's runs: run "
            "panda-jax grid again, or remove it."
        ) from None
