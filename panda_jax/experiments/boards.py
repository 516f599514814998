"""The board of each backbone: runs that count, and gaps where others lack."""

from collections.abc import Iterable, Sequence, Set

from panda_jax.experiments import paper
from panda_jax.experiments.board import KINDS, Board, Row, ordered, plain_row
from panda_jax.experiments.outcomes import LABELS, DoneRun, Excluded
from panda_jax.experiments.results import Results

# Runs that leave a gap where a score should be.
_LOST = ("failed", "unfinished", "not begun", "unreadable", "other metric")


def make_boards(results: Results) -> list[Board]:
    """A board a backbone, those of the paper first and in its order."""
    ids = dict.fromkeys(run.backbone for run in results.runs)
    # Also one of which no run is done yet.
    ids |= dict.fromkeys(sorted(backbone for backbone, _ in results.targets))
    names = display_names(ids)
    found = []
    for backbone in ids:
        runs = [run for run in results.runs if run.backbone == backbone]
        lost = [out for out in results.left_out if out.backbone == backbone]
        wanted = {task for name, task in results.targets if name == backbone}
        found.append(_board(names[backbone], runs, lost, wanted))
    known = list(paper.read().backbones)
    known += sorted(board.backbone for board in found)
    return sorted(found, key=lambda board: known.index(board.backbone))


def _board(
    name: str,
    runs: Sequence[DoneRun],
    left_out: Sequence[Excluded],
    wanted: Set[str],
) -> Board:
    """One board; `wanted` are the targets that a grid lists."""
    sources = ("", LABELS["source"])
    gaps = [
        out
        for out in left_out
        if out.status in _LOST and out.label not in sources
    ]
    found = {run.target for run in runs if run.kind not in ("prompt", "source")}
    found |= {out.target for out in gaps if out.label != LABELS["prompt"]}
    # Runs that failed are columns too, else averages would seem whole.
    targets = ordered(found | wanted, paper.read().targets)
    if not targets:
        plain = {run.target for run in runs if run.kind == "prompt"}
        plain |= {out.target for out in gaps}
        targets = ordered(plain, paper.read().targets)
    made: dict[tuple[str, str], dict[int, float]] = {}
    cells: dict[tuple[Row, str], dict[int, float]] = {}
    for run in runs:
        if run.kind == "source" or run.target not in targets:
            seeds = made.setdefault((run.label, run.target), {})
        else:
            row = Row(run.kind, run.label, run.source)
            seeds = cells.setdefault((row, run.target), {})
        seeds[run.seed] = run.value
    kinds = {label: kind for kind, label in LABELS.items() if kind in KINDS}
    lost: dict[tuple[Row, str], set[str]] = {}
    for out in gaps:
        if out.target in targets:
            row = Row(kinds.get(out.label, "panda"), out.label, out.source)
            lost.setdefault((plain_row(row), out.target), set()).add(out.seed)
    variants = {run.label: run.variant for run in runs}
    return Board(name, targets, cells, made, lost, variants)


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """Backbone id -> its name, a folder's without what it lies in."""
    names: dict[str, str] = {}
    for backbone in ids:
        name = base = backbone.rstrip("/").rpartition("/")[2] or backbone
        number = 2
        while name in names.values():
            name, number = f"{base} ({number})", number + 1
        names[backbone] = name
    return names
