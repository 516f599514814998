"""From a grid to its runs: each once, after what it needs."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from panda_jax import identity, runs
from panda_jax.experiments.grid import Grid, former_words
from panda_jax.experiments.planned import Plan, Planned
from panda_jax.runs import Run


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


class _Chain:
    """The runs of one backbone and seed."""

    def __init__(self, grid: Grid, backbone: str, seed: int) -> None:
        self.grid = grid
        self.backbone = backbone
        self.seed = seed

    def _run(
        self, role: str, task: str, recipe: str = "paper", **swept: Any
    ) -> Run:
        words = {role, task, self.backbone}
        panda = role in ("panda", "control")
        if panda:
            words |= {"panda", recipe}
        words |= former_words(words)
        settings = self.grid.settings_of(words) | swept
        if role == "control":
            settings["kd_weight"] = 0.0
        run = runs.make_run(
            task=task,
            backbone=self.backbone,
            method={"source": "prompt", "control": "panda"}.get(role, role),
            recipe=recipe,
            seed=self.seed,
            **settings,
        )
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
        sources = {}
        for task in self.grid.sources:
            sources[task] = Planned.of("source", self._run("source", task))
            yield sources[task]
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
            teacher = Planned.of(
                "pot", self._run("pot", target), source=task, needs=needs
            )
            yield teacher
            for run in taught:
                more = {"teacher": teacher}
                if run.weighs_by_similarity:
                    more["target_prompt"] = own
                yield Planned.of(
                    "panda", run, source=task, needs={**needs, **more}
                )
