"""The report of an experiment: a pure function of its result files."""

import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from panda_jax.errors import UserError, unknown_name
from panda_jax.experiments.report import results as run_results
from panda_jax.experiments.report import tables
from panda_jax.experiments.report.board import Board, Gain, make_boards
from panda_jax.experiments.report.comparisons import Comparison, alike, compare
from panda_jax.experiments.report.results import Results, read_results
from panda_jax.experiments.tables import (
    Picture,
    Section,
    chance,
    change,
    interval,
    latex,
    markdown,
    page,
    write_csv,
)
from panda_jax.io import csv_rows, ownership
from panda_jax.io.files import PathLike, write_text
from panda_jax.transfer import pictures
from panda_jax.transfer.scores import Scores, file_names

TITLE = "Prompt transfer: results"
# What is counted among the runs that are left out, in this order.
_LOST = "failed,unfinished,not begun,unreadable,not listed,other metric,other"


def write_report(
    runs_dir: PathLike,
    out_dir: PathLike,
    *,
    scores: str | None = None,
    value: str = "best",
    confidence: float = 0.95,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Writes everything that the runs below a folder show.

    The same result files give the same bytes. What a former report wrote there
    and this one does not is removed, unless it was changed since.

    Args:
      runs_dir: a folder with run folders at any depth.
      out_dir: gets report.html, report.md, report.tex, a `.csv` of each table
        and of all runs, and heat maps with their figures beside them.
      scores: score files with commas between them, as `panda-jax score` writes
        them, for the source that each metric would have chosen.
      value: the score of a run that counts: `best`, `final` or `first_epoch`.
      confidence: of the intervals.
      overwrite: files in the way are replaced, whoever wrote them.

    Returns:
      The files, without the `.csv` beside each heat map.

    Raises:
      UserError: no run is found or none is done, a score file is bad, or files
        are in the way that no report wrote.
    """
    if not 0 < confidence < 1:
        raise UserError(
            f"confidence is {confidence}, expected a number between 0 and 1."
        )
    results = read_results(runs_dir, value=value)
    if not results.runs:
        first = results.left_out[0]
        raise UserError(
            f"None of the {len(results.left_out)} runs below "
            f"{str(runs_dir)!r} has a result: {first.folder} is "
            f"{first.status} ({first.reason})."
        )
    boards = make_boards(results)
    gains = [
        (board, board.gain(first, second))
        for board in boards
        for first in board.labels("panda")
        for second in alike(board, first, board.labels("pot"))
    ]
    gains = [(board, g) for board, g in gains if np.isfinite(g.matrix).any()]
    comparisons = compare(boards, confidence=confidence)
    scored = _read_scores(scores, boards)
    with ownership.writing(
        out_dir, "report", overwrite=overwrite, removes=True
    ) as new:
        drawn, paths = _draw(boards, gains, new)
        sections = [_summary(results, boards, comparisons)]
        for board in boards:
            name = board.backbone
            own = [gain for of, gain in gains if of is board]
            table, shown = scored.get(name, scored.get("")), drawn.get(name, ())
            sections.append(_of_backbone(board, own, table, shown))
        sections.append(_statistics(gains, comparisons, confidence))
        sections += _rest(results, boards)
        paths += _write(new, sections, results)
    return [pathlib.Path(out_dir) / path.name for path in paths]


def _read_scores(
    files: str | None, boards: Sequence[Board]
) -> dict[str, Scores]:
    """Backbone -> its scores; "" -> those that do not say of which.

    Raises:
      UserError: a file is bad, or two are of the same backbone, or one is of a
        backbone without a run.
    """
    found: dict[str, Scores] = {}
    known = [board.backbone for board in boards]
    for path in filter(None, map(str.strip, (files or "").split(","))):
        for name, table in Scores.by_backbone(path).items():
            if name in found:
                raise UserError(
                    f"{path}: a second file with scores of "
                    f"{name or 'a backbone that it does not name'}. Score all "
                    "metrics at once, or add a column 'backbone'."
                )
            if name and name not in known:
                raise unknown_name(f"backbone in {path}:", name, known)
            if not name and len(boards) > 1:
                raise UserError(
                    f"{path} does not say of which backbone its scores are, "
                    f"and there are {', '.join(known)}: add a column "
                    "'backbone'."
                )
            found[name] = table
    return found


def _draw(
    boards: Sequence[Board],
    gains: Sequence[tuple[Board, Gain]],
    folder: pathlib.Path,
) -> tuple[dict[str, list[Picture]], list[pathlib.Path]]:
    """Heat maps of PoT and PANDA's gains over it, by backbone; their files."""
    maps = []
    for board in boards:
        for label in filter(board.done, board.labels("pot")):
            rows, targets = board.of(label), board.targets
            points = [[board.cell(r, t).mean for t in targets] for r in rows]
            title = f"{label} on {board.backbone}"
            sources = [row.source for row in rows]
            maps.append((board.backbone, title, sources, targets, points))
    for board, gain in gains:
        title = f"{gain.first} minus {gain.second} on {board.backbone}"
        maps.append((board.backbone, title, *gain[2:]))
    drawn: dict[str, list[Picture]] = {}
    paths: list[pathlib.Path] = []
    stems = file_names(title for _, title, *_ in maps)
    for backbone, title, sources, targets, matrix in maps:
        name = f"heatmap_{stems[title]}.png"
        title += ", points of 100"
        path, matrix = folder / name, np.array(matrix)
        pictures.heatmap(
            path, matrix, rows=sources, columns=targets, title=title
        )
        paths.append(path)
        drawn.setdefault(backbone, []).append(Picture(name, title))
    return drawn, paths


def _write(
    folder: pathlib.Path, sections: Sequence[Section], results: Results
) -> list[pathlib.Path]:
    """The files of all sections, and the runs that count."""
    paths = [folder / "runs.csv"]
    columns = "run_id,folder,backbone,label,source,target,seed,metric,value"
    columns += ",selected_on,split,looks"
    names = columns.split(",")
    runs = [[getattr(run, name) for name in names] for run in results.runs]
    csv_rows.write_rows(paths[0], [names, *runs])
    paths += write_csv(folder, (t for part in sections for t in part.tables))
    for name, text in (
        ("report.md", markdown(TITLE, sections)),
        ("report.tex", latex(TITLE, sections)),
        ("report.html", page(TITLE, sections, folder)),
    ):
        paths.append(folder / name)
        write_text(paths[-1], text)
    return paths


def _summary(
    results: Results, boards: Sequence[Board], comparisons: Sequence[Comparison]
) -> Section:
    """What is read first: how many runs, the averages, and their cautions."""
    counts = Counter(out.status for out in results.left_out)
    lost = [
        f"{counts[name]} {name}" for name in _LOST.split(",") if counts[name]
    ]
    value = {
        "best": "best evaluation on the development split",
        "final": "last evaluation",
        "first_epoch": "evaluation after the first epoch",
    }[results.value]
    text = [
        f"{len(results.runs)} runs are done, "
        + (f"{', '.join(lost)} (named at the end)." if lost else "none lost."),
        *run_results.warnings(results.runs, results.left_out),
        f"A run's score is that of its {value}, in points of 100.",
        *(run_results.selection(results.runs) * (results.value == "best")),
        *run_results.fixed_rows(results.runs),
        *_cautions(boards),
    ]
    told = [one for one in comparisons if one.tasks == "all"]
    overall = [one for one in told if not one.backbone]
    text += map(_sentence, overall or told)
    return Section("Summary", text, [tables.averages(boards)])


def _cautions(boards: Sequence[Board]) -> Iterator[str]:
    """What the averages do not tell."""
    if any(board.is_incomplete for board in boards):
        yield (
            "Not every row has every target and seed, so that averages are of "
            "different runs. Gains and statistics compare only what both have."
        )
    for board in boards:
        if board.labels("panda") and not board.labels("control"):
            yield (
                f"{board.backbone} has no control (PANDA with weight 0): what "
                "its settings do is not told apart from what the distillation "
                "does."
            )
        for first, second in board.identical():
            yield (
                f"{first} is identical to {second} on {board.backbone} in "
                "every run that both have, as it is with equal settings: it "
                "tells nothing new."
            )
    own = sum(len(b.own_tasks(label)) for b in boards for label in b.labels())
    if own:
        yield (
            f"Cells of a task with its own prompt as source: {own}. As in the "
            "paper they are in all averages, gains and statistics; rows "
            '"other tasks only" under Statistics are without them.'
        )
    if any(board.is_uneven for board in boards):
        yield (
            "PoT and PANDA lack results of different sources, so that their "
            'averages do not compare. Those in the column "common sources" '
            "do: of each target they are over the sources that all have."
        )


def _sentence(one: Comparison) -> str:
    """A difference with what it holds for, and its caution beside it."""
    where = f" on {one.backbone}" if one.backbone else ""
    told = (
        f"{one.first} minus {one.second}{where}: "
        f"{change(one.difference, digits=2)} points"
    )
    if not math.isnan(one.p):
        told += (
            f" {interval(one.low, one.high)}, p = {chance(one.holm)} "
            f"(Holm, {one.tests} test{'s' * (one.tests != 1)}), for "
            f"{one.holds_for}"
        )
    return f"{told} ({one.caution})." if one.caution else f"{told}."


def _of_backbone(
    board: Board,
    gains: Sequence[Gain],
    scores: Scores | None,
    drawn: Sequence[Picture],
) -> Section:
    if not board.rows:
        return Section(board.backbone, ["Nothing but source prompts so far."])
    found = [tables.wide(board)]
    found += [tables.gain_table(gain, board) for gain in gains]
    found += tables.above_model_tuning(board)
    for label in board.labels("pot", "panda"):
        found += tables.choice_table(board, label, scores)
    return Section(board.backbone, (), found, drawn)


def _statistics(
    gains: Sequence[tuple[Board, Gain]],
    comparisons: Sequence[Comparison],
    confidence: float,
) -> Section:
    shown = [tables.gain_summary(gains)] if gains else []
    if comparisons:
        shown.append(tables.comparison_table(comparisons))
    text = [
        "Runs are compared in pairs of the same target and seed, and of the "
        "same source where both have one; then the mean over seeds, over "
        "sources, over targets, over backbones.",
        f"[low, high]: {100 * confidence:g}% interval. Targets and seeds are "
        "crossed, since a seed's source prompt serves all targets: both are "
        "random, by their sums of squares, with Satterthwaite's degrees of "
        "freedom. Sources and backbones are these. With fewer than 3 seeds, "
        "or targets, it holds for these alone, as its line says; with fewer "
        "of both there is none.",
        "Holm: p corrected for the comparisons of the same backbone; of "
        f"{len(comparisons)} in this report, in as many families as there are "
        "backbones (and all, and other tasks only).",
    ]
    if any(one.tasks == "other" for one in comparisons):
        text.append(
            "Other tasks only: without sources of the target's own name; "
            "corrected among themselves."
        )
    told = [one for one in comparisons if one.tasks == "all"]
    text += [
        f"{one.first} - {one.second} on {one.backbone or 'all'} has the very "
        f"differences of {one.first} - {one.same_as}: Holm counts them once."
        for one in told
        if one.same_as
    ]
    text += [
        f"{one.first} - {one.second} on {one.backbone}: {len(one.unpaired)} "
        f"runs have no partner: {', '.join(one.unpaired[:8])}"
        + (", ..." if len(one.unpaired) > 8 else ".")
        for one in told
        if one.unpaired and one.backbone
    ]
    return Section("Statistics", text, shown)


def _rest(results: Results, boards: Sequence[Board]) -> Iterable[Section]:
    """The published numbers, source prompts, and what was left out."""
    beside = list(tables.beside_tables(boards))
    none = (
        "No cell is in both: the paper has BERT-large to BERT-tiny (bert-large "
        "... bert-tiny here) on its nine targets."
    )
    text = [] if beside else [none]
    yield Section("Beside the published numbers", text, beside)
    made = list(tables.source_prompts(boards))
    if made:
        yield Section("Source prompts", (), made)
    lost = results.left_out
    text = [] if lost else ["None: every run that was found counts."]
    yield Section("Left out", text, [tables.left_out(lost)] * bool(lost))
