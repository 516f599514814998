"""One process at work on a grid: the next fleet that nobody has claimed."""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from panda_jax import distributed
from panda_jax.claims import Claim, Claims
from panda_jax.errors import UserError
from panda_jax.experiments.attempts import Attempts, programs
from panda_jax.experiments.ledger import Ledger
from panda_jax.experiments.news import News
from panda_jax.experiments.planned import Group, Planned


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a grid.

    Attributes:
      total: how many runs it has.
      done: how many of them have a result.
      failed: name -> reason, of the others.
    """

    total: int
    done: int
    failed: dict[str, str]


class Worker:
    """Claims fleets, trains them and records how it went.

    Of several processes that train each fleet together, process 0 decides,
    claims and records; the others do as it says.
    """

    def __init__(
        self,
        ledger: Ledger,
        claims: Claims,
        *,
        order: list[int],
        poll: float,
        quiet: bool,
        options: dict[str, Any],
    ) -> None:
        self.ledger = ledger
        self.claims = claims
        self.groups = ledger.plan.groups
        self.order = order
        self.poll = poll
        self.main = distributed.is_main()
        self.news = News(ledger, claims, quiet=quiet or not self.main)
        self.attempts = Attempts(ledger, options, self.news.say)
        self.claim: Claim | None = None

    def run(self) -> Summary:
        """Works until nothing is left to do."""
        ledger = self.ledger
        if self.main:
            ledger.write_plan()
            ledger.link_prompts(ledger.plan.runs)
        while True:
            step = distributed.from_main(self._next() if self.main else None)
            if step is None:
                break
            if step["group"] is None:
                time.sleep(self.poll)
                continue
            group, claim = self.groups[step["group"]], self.claim
            todo = [ledger.plan.by_id[id_] for id_ in step["runs"]]
            try:
                try:
                    self._work(group, todo)
                finally:
                    self._release()
            except KeyboardInterrupt:
                if claim is None or not claim.lost:
                    raise
                self.news.say(
                    f"silent for too long: another does {group.about}"
                )
        ledger.look(ledger.plan.runs)
        if self.main:
            self._tidy()
            self.news.progress("nothing is left to do")
        counts = ledger.counts()
        failed = {
            run.name: ledger.failures[run.id]
            for run in ledger.plan.runs
            if run.id in ledger.failures
        }
        return Summary(counts["total"], counts["done"], failed)

    def _tidy(self) -> None:
        """Makes up for what a kill came before: links, and room."""
        self.ledger.link_prompts(self.ledger.plan.runs)
        for group in self.groups:
            # Another may have begun to try again what failed.
            if self.claims.holder(group.name) is None:
                self.ledger.drop_checkpoints(group.name)

    def _release(self) -> None:
        if self.claim is not None:
            self.claim.release()
            self.claim = None

    def _next(self) -> dict[str, Any] | None:
        """Claims a fleet that can begin.

        Returns:
          Its number and the runs to make; no number where others are at work
          on all that is left; None where nothing is left.
        """
        ledger = self.ledger
        ledger.look(ledger.plan.runs)
        for number in self.order:
            group = self.groups[number]
            left = ledger.left(group)
            needs = [need for run in left for need in ledger.needed(run)]
            if not left or any(ledger.state(need) == "todo" for need in needs):
                continue
            self.claim = self.claims.take(
                group.name, doing=group.about, on_lost=_interruption()
            )
            if self.claim is None:
                continue
            # Another may have made them before the claim was ours.
            ledger.look(group.runs)
            ledger.fetch(group.runs)
            left = self._without_doomed(group)
            if left:
                return {"group": number, "runs": [run.id for run in left]}
            self._release()
        if not any(ledger.left(group) for group in self.groups):
            return None
        self.news.waiting()
        return {"group": None}

    def _without_doomed(self, group: Group) -> list[Planned]:
        """What is left of a fleet; records runs whose needs have failed."""
        ledger, left = self.ledger, []
        for run in ledger.left(group):
            needs = ledger.needed(run)
            ledger.look_again(n for n in needs if ledger.state(n) == "failed")
            states = {need.name: ledger.state(need) for need in needs}
            failed = [name for name, it in states.items() if it == "failed"]
            if failed:
                ledger.begin_again([run])
                error = UserError(f"needs {' and '.join(failed)}, which failed")
                ledger.fail(run, error)
            elif "todo" not in states.values():
                left.append(run)
        return left

    def _work(self, group: Group, todo: list[Planned]) -> None:
        """Makes what is left of a fleet, and records how it went."""
        ledger, owner = self.ledger, self.claims.owner
        if self.main:
            self.news.progress(group.about)
            names = [run.name for run in todo]
            ledger.log(owner, "begin", fleet=group.name, runs=names)
        began, compiled = time.monotonic(), programs()
        found = self.attempts.make(group, todo)
        if not self.main:
            return
        for run in todo:
            error = found[run.lane]
            if isinstance(error, Exception):
                ledger.fail(run, error)
                self.news.say(f"failed: {run.name}: {error}")
        ledger.look(todo)
        ledger.link_prompts(todo)
        if not ledger.left(group):
            ledger.drop_checkpoints(group.name)
        ledger.log(
            owner,
            "end",
            fleet=group.name,
            done=[r.name for r in todo if ledger.state(r) == "done"],
            failed=[r.name for r in todo if ledger.state(r) == "failed"],
            seconds=round(time.monotonic() - began, 1),
            compiled=programs() - compiled,
        )


def _interruption() -> Callable[[], object] | None:
    """What ends this process's work on a fleet that is now another's."""
    main = threading.main_thread()
    if threading.current_thread() is not main or jax.process_count() > 1:
        return None

    def ended(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A signal ends what it waits for, too. Not SIGINT, which programs that a
    # script starts in the background ignore.
    signal.signal(signal.SIGUSR2, ended)
    return lambda: signal.pthread_kill(main.ident or 0, signal.SIGUSR2)
