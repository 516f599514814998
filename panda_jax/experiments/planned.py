"""A grid's runs before they are made: ids, needs, folders, fleets."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from panda_jax import identity, registry, runs
from panda_jax.runs import Run

# Why a grid has a run; one run may serve as several.
ROLES = ("source", "prompt", "pot", "panda", "control", "finetune")
# A fleet holds runs of one stage; none needs a run of its own or a later one.
STAGES = ("prompt", "pot", "panda", "finetune")
# What lanes of a fleet may differ in (`assembly.check_alike`).
LANES = (
    "method",
    "seed",
    "learning_rate",
    "weight_decay",
    "schedule",
    "patience",
    "prompt_init",
    "init_text",
    "init_stddev",
    "resize_source",
    "kd_lambda",
    "kd_beta",
    "kd_weight",
    "kd_transform",
    "transfer_metric",
    "top_k",
    "fusion",
)
# What the loop around the step reads, and the step does not.
_LOOP = ("epochs", "steps", "eval_every", "eval_period", "eval_examples")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run that is to be made.

    Attributes:
      id: 10 hex digits over the settings and the ids of what it needs; the
        same in every process and Python version.
      run: its settings.
      needs: role (source, teacher, target_prompt) -> id of that run.
      source: the source task of PoT and PANDA.
      roles: some of `ROLES`.
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
        """A run with the id that follows from the rest.

        Args:
          role: one of `ROLES`.
          run: its settings; those that it does not use are left out of it.
          source: the source task of PoT and PANDA.
          needs: role (source, teacher, target_prompt) -> that run.
        """
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
        """Its folder in its fleet's.

        Reports tell a run that only made a source prompt by the folder.
        """
        only = self.roles == ("source",)
        return f"sources/{self.name}" if only else self.name

    @property
    def folder(self) -> str:
        """Its run folder, below the grid's."""
        return f"runs/{self.fleet}/{self.lane}"

    @property
    def other_lane(self) -> str:
        """Where in its fleet's a grid has it that lists its task otherwise.

        A source that becomes a target too is the same run in another folder.
        """
        return self.name if self.lane != self.name else f"sources/{self.name}"

    def bank(self, role: str) -> str:
        """Where its prompt lies among those of the role, below the grid's.

        Args:
          role: `source` or `prompt`.
        """
        run = self.run
        among = {"source": "sources", "prompt": "targets"}[role]
        return f"{among}/{slug(run.backbone)}/s{run.seed}/{run.task}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that are trained together, as one fleet.

    Attributes:
      name: of the fleet.
      runs: at least one.
    """

    name: str
    runs: tuple[Planned, ...]

    @property
    def stage(self) -> str:
        """One of `STAGES`."""
        return self.runs[0].stage

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
        shared = {
            name: value
            for name, value in dataclasses.asdict(run).items()
            if name not in (*LANES, *_LOOP, "recipe")
        }
        return (
            *sorted(shared.items()),
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
        groups.sort(
            key=lambda group: (
                backbones.index(group.runs[0].run.backbone),
                STAGES.index(group.stage),
            )
        )
        return cls(planned, tuple(groups))

    def named_in(self, out: pathlib.Path) -> "Plan":
        """The plan with the names that 0.1 gave to runs which it has begun.

        Args:
          out: the grid's folder.
        """
        names = {}
        for run in self.runs:
            former = run.former
            if former is None:
                continue
            former = dataclasses.replace(former, roles=run.roles)
            fleet = out / "runs" / former.fleet
            places = fleet / former.lane, fleet / former.other_lane
            if any(place.exists() for place in places):
                names[run.id] = former
        if not names:
            return self
        return Plan.of(
            dataclasses.replace(
                names.get(run.id, run),
                needs={
                    role: names[id_].id if id_ in names else id_
                    for role, id_ in run.needs.items()
                },
            )
            for run in self.runs
        )

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
        others need is to be done early; among them a shard's own come first.

        Args:
          index: of the shard.
          count: of the shards.
        """
        blocks = [(g.runs[0].run.backbone, g.stage) for g in self.groups]
        rank = {block: at for at, block in enumerate(dict.fromkeys(blocks))}
        return sorted(
            range(len(blocks)),
            key=lambda n: (rank[blocks[n]], n % count != index, n),
        )


def slug(backbone: str) -> str:
    """A backbone's id or folder as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", backbone).strip("-")
