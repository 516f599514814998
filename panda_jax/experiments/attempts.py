"""Makes the runs of one fleet of a grid: each gets a result or a reason."""

import dataclasses
import errno
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from panda_jax import distributed, fleet, runs
from panda_jax.backbone import Backbone, load_backbone
from panda_jax.errors import InterruptedRun, StorageError, UserError
from panda_jax.experiments.ledger import Ledger
from panda_jax.experiments.planned import Group, Planned
from panda_jax.lane import TrainResult
from panda_jax.store import StoredPrompt, load_prompt
from panda_jax.training import train_fleet

# What no other run would escape either.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
Outcome = TrainResult | Exception


class Attempts:
    """Trains fleets, and keeps the backbone from one to the next.

    Args:
      ledger: of the grid.
      options: further arguments of `train_fleet`.
      say: takes a line for people.
    """

    def __init__(
        self,
        ledger: Ledger,
        options: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._options = options
        self._say = say
        self._kept: tuple[Any, Backbone] | None = None

    def make(self, group: Group, todo: list[Planned]) -> dict[str, Outcome]:
        """Trains some runs of a fleet.

        Returns:
          By lane, a result or why there is none.

        Raises:
          InterruptedRun: asked to end, and saved.
          OSError, StorageError: a full disk, which the other runs would meet
            too.
          UserError: in one of several processes that train together: it lacks
            what the others have.
        """
        folder = self._ledger.out / "runs" / group.name
        if distributed.is_main():
            self._ledger.begin_again(todo)
        lanes, wrong = {}, {}
        prompts: dict[str, StoredPrompt] = {}
        for run in todo:
            try:
                lanes[run.lane] = self._given(run, prompts)
            except UserError as error:
                wrong[run.lane] = str(error)
        found: dict[str, Outcome] = {}
        # All train the same lanes: those whose prompts each of them can read.
        for said in distributed.gathered(wrong):
            for lane, why in said.items():
                lanes.pop(lane, None)
                found.setdefault(lane, UserError(why))
        if lanes:
            found |= self._trained(folder, todo[0], lanes)
        return found

    def _given(
        self, run: Planned, prompts: dict[str, StoredPrompt]
    ) -> dict[str, Any]:
        """The arguments of a run, with the prompts that it needs.

        Args:
          run: that is to be made.
          prompts: by id, those that others of its fleet need too; added to.
        """
        settings = dataclasses.asdict(runs.trimmed(run.run))
        del settings["backbone"]
        for role, need in run.needs.items():
            if need not in prompts:
                made = self._ledger.plan.by_id[need]
                prompts[need] = load_prompt(self._ledger.out / made.folder)
            settings[role] = prompts[need]
        return settings

    def _trained(
        self, folder: pathlib.Path, like: Planned, lanes: dict[str, Any]
    ) -> dict[str, Outcome]:
        """Trains lanes together, or, where that fails, one after another.

        What fails all of them at once need not be every lane's fault, and each
        is to have its own reason.
        """
        if distributed.is_main():
            self._ledger.own_checkpoints(like.fleet, list(lanes))
        distributed.barrier("fleet")  # None reads what is being removed.
        try:
            return dict(
                train_fleet(
                    self._backbone(like),
                    lanes,
                    out_dir=folder,
                    claimed=True,
                    **self._options,
                )
            )
        except InterruptedRun:
            raise
        except Exception as error:
            disk = isinstance(error, StorageError) or (
                isinstance(error, OSError) and error.errno in _DISK
            )
            # One of several processes that fails so has rather lost another.
            lost = jax.process_count() > 1 and not isinstance(error, UserError)
            # Nor may one that fails alone go on to lanes of its own.
            if disk or lost or not distributed.all_failed():
                raise
            if len(lanes) == 1:
                return dict.fromkeys(lanes, error)
        self._say(f"{like.fleet} fails as a fleet: one run after another")
        found: dict[str, Outcome] = {}
        for name, lane in lanes.items():
            found |= self._trained(folder, like, {name: lane})
        return found

    def _backbone(self, run: Planned) -> Backbone:
        settings = run.run
        dtype = "float32" if settings.method == "finetune" else settings.dtype
        wanted = settings.backbone, dtype
        if self._kept is None or self._kept[0] != wanted:
            self._kept = None  # room for the next
            loaded = load_backbone(settings.backbone, dtype=dtype)
            self._kept = wanted, loaded
        return self._kept[1]


def programs() -> int:
    """How many training steps this process has compiled so far."""
    # Only jit's wrapper in C++ knows.
    return fleet.run_steps._cache_size()  # pyright: ignore
