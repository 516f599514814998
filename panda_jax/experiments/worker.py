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
        self.news = News(ledger, quiet=quiet or not self.main)
        self.attempts = Attempts(ledger, options, self.news.say)
        self.claim: Claim | None = None
        # Fleet -> what its claim says, of those at work when last looked at.
        self.held: dict[str, dict[str, Any]] = {}

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
        if self.main:
            # One that began meanwhile knew less, and removed some.
            ledger.link_prompts(ledger.plan.runs, checked=True)
            self._look_at_claims()
            self.news.progress("nothing is left to do", self.held.values())
        counts = ledger.counts()
        failed = {
            run.name: ledger.failures[run.id]
            for run in ledger.plan.runs
            if run.id in ledger.failures
        }
        # Of a mesh only process 0 knows what became of it.
        told = [counts["total"], counts["done"], failed]
        return Summary(*distributed.from_main(told))

    def _look_at_claims(self) -> None:
        self.held = self.claims.all(self.ledger.open)

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
        self.ledger.hear()
        found = self._claimed()
        if found is None:
            # Those that were at work may have fallen silent, or given up.
            self._look_at_claims()
            found = self._claimed()
        if found is not None:
            return found
        if not any(self.ledger.left(group) for group in self.groups):
            return None
        self.news.waiting(self.held.values())
        return {"group": None}

    def _claimed(self) -> dict[str, Any] | None:
        """Claims a fleet; not those that others were last seen to work on."""
        ledger = self.ledger
        for number in self.order:
            group = self.groups[number]
            if group.name not in ledger.open or group.name in self.held:
                continue
            left = ledger.left(group)
            needs = [need for run in left for need in ledger.needed(run)]
            if any(ledger.state(need) == "todo" for need in needs):
                continue
            self.claim = self.claims.take(
                group.name, doing=group.about, on_lost=_interruption()
            )
            if self.claim is None:
                continue
            ledger.claimed(group)
            left = self._without_doomed(group)
            if left:
                return {"group": number, "runs": [run.id for run in left]}
            if not ledger.left(group):
                ledger.end(group)
            self._release()
        return None

    def _without_doomed(self, group: Group) -> list[Planned]:
        """What is left of a fleet; records runs whose needs have failed."""
        ledger, left = self.ledger, []
        known = {n for run in ledger.left(group) for n in run.needs.values()}
        needed = [ledger.plan.by_id[id_] for id_ in sorted(known)]
        ledger.look_again(n for n in needed if ledger.state(n) == "failed")
        for run in ledger.left(group):
            needs = ledger.needed(run)
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
            self._look_at_claims()
            self.news.progress(group.about, self.held.values())
            names = [run.name for run in todo]
            ledger.log(owner, "begin", fleet=group.name, runs=names)
        began, compiled = time.monotonic(), programs()
        found = self.attempts.make(group, todo)
        if not self.main:
            return
        for run in todo:
            outcome = found[run.lane]
            if isinstance(outcome, Exception):
                ledger.fail(run, outcome)
                self.news.say(f"failed: {run.name}: {outcome}")
            else:
                ledger.succeed(run, outcome.result)
        ledger.end(group)
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
