"""Heat maps, clustered heat maps and scatters of scores, with their figures.

Matplotlib takes half a second to import, so that it is imported to draw; its
pyplot keeps global state and wants a display, so figures are made without it.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from panda_jax.errors import UserError
from panda_jax.io import csv_rows
from panda_jax.io.files import PathLike, atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More names and numbers than this on a side cannot be read, and Matplotlib
# draws no picture of more than 65,535 pixels.
MOST = 150


def data_path(path: PathLike) -> pathlib.Path:
    """Where the data of a picture lie: `x_data.csv` beside `x.png`.

    Not `x.csv`: `scores.png` may well lie beside `scores.csv`, the scores.
    """
    path = pathlib.Path(path)
    return path.with_name(f"{path.stem}_data.csv")


def heatmap(
    path: PathLike,
    matrix: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    data: bool = True,
) -> "Figure":
    """Draws a matrix, sources down and targets across, values printed.

    The colour scale spans the finite values; a cell without one is grey. A
    side of more than `MOST` is drawn without its names and numbers.

    Args:
      path: a `.png`, or another format that Matplotlib writes.
      matrix: [M, N].
      rows: M names.
      columns: N names.
      title: above the picture.
      data: whether the matrix is written beside it, as `PATH_data.csv`.

    Returns:
      The figure.
    """
    figure = _figure(_size(rows, columns))
    axes = figure.add_subplot()
    image = _cells(axes, matrix)
    figure.colorbar(image, ax=axes)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    _name_ticks(axes, rows, columns, ha="left")
    axes.set_xlabel("target")
    axes.set_ylabel("source")
    _save(figure, path, title)
    if data:
        _write_matrix(path, matrix, rows, columns)
    return figure


def clustermap(
    path: PathLike,
    matrix: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> "Figure":
    """Draws a heat map whose like rows stand side by side, with their tree.

    Average linkage. Where rows and columns have the same names, both are
    ordered, by distance = the greatest value - value (1 - similarity for a
    similarity that is 1 on itself; the mean of both directions). Else rows are
    ordered, by Euclidean distance over the columns that both have. What is not
    finite is as far as the farthest.

    The matrix in the order drawn is written beside it, as `PATH_data.csv`.

    Args:
      path: a `.png`, or another format that Matplotlib writes.
      matrix: [M, N].
      rows: M names.
      columns: N names.
      title: above the picture.

    Returns:
      The figure.

    Raises:
      UserError: more than `MOST` rows or columns.
    """
    if max(matrix.shape) > MOST:
        raise UserError(
            f"A clustered heat map of {len(rows)} x {len(columns)}, expected "
            f"at most {MOST} a side: draw the best sources, or a plain heat "
            "map."
        )
    square = sorted(rows) == sorted(columns)
    if square:
        columns_at = [list(columns).index(name) for name in rows]
        matrix, columns = matrix[:, columns_at], rows
    tree = _tree(_distances(matrix, square=square))
    order = tree["leaves"] if tree else list(range(len(rows)))
    across = order if square else list(range(len(columns)))
    matrix = matrix[np.ix_(order, across)]
    rows = [rows[i] for i in order]
    columns = [columns[i] for i in across]
    width, height = _size(rows, columns)
    above = 1.0 if square else 0.02
    figure = _figure((width + 1.2, height + above))
    grid = figure.add_gridspec(
        2,
        3,
        width_ratios=(1.2, width - 1, 0.25),
        height_ratios=(above, height),
    )
    axes = figure.add_subplot(grid[1, 1])
    image = _cells(axes, matrix)
    figure.colorbar(image, cax=figure.add_subplot(grid[1, 2]))
    axes.tick_params(left=False, labelleft=False, right=True, labelright=True)
    _name_ticks(axes, rows, columns, ha="right")
    if tree:
        _branches(figure.add_subplot(grid[1, 0], sharey=axes), tree, up=False)
        if square:
            _branches(figure.add_subplot(grid[0, 1], sharex=axes), tree)
    _save(figure, path, title)
    _write_matrix(path, matrix, rows, columns)
    return figure


def scatter(
    path: PathLike,
    score: np.ndarray,
    gain: np.ndarray,
    *,
    sources: Sequence[str],
    targets: Sequence[str],
    score_name: str = "score",
    gain_name: str = "gain",
    title: str = "",
) -> "Figure":
    """Draws what sources did against their score: a panel a target.

    Each panel's legend has Spearman's rho (ties: average ranks) over the n
    sources with both; the title has its mean over the targets where it is
    defined. The target's own source is a square, and the best by score and the
    best by gain are named. The points are written beside the picture, as
    `source,target,score,gain` in `PATH_data.csv`.

    Args:
      path: a `.png`, or another format that Matplotlib writes.
      score: [M, N]; higher = more transferable.
      gain: [M, N] what the transfers brought; higher = better.
      sources: M names.
      targets: N names.
      score_name: under the panels.
      gain_name: left of them.
      title: above the picture.

    Returns:
      The figure.

    Raises:
      UserError: more than `MOST` targets.
    """
    if len(targets) > MOST:
        raise UserError(
            f"A scatter of {len(targets)} targets, expected at most {MOST}; "
            "choose some."
        )
    across = min(len(targets), 4)
    down = math.ceil(len(targets) / across)
    figure = _figure((0.6 + 2.7 * across, 0.9 + 2.5 * down))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    rhos = []
    for n, target in enumerate(targets):
        rho = _points(panels[n], score[:, n], gain[:, n], sources, target)
        rhos.append(rho)
    for empty in panels[len(targets) :]:
        empty.remove()
    figure.supxlabel(score_name, fontsize=9)
    figure.supylabel(gain_name, fontsize=9)
    known = [rho for rho in rhos if not math.isnan(rho)]
    mean = f"{np.mean(known):z.2f}" if known else "undefined"
    overall = f"mean ρ = {mean} over {len(known)} targets"
    _save(figure, path, f"{title}: {overall}" if title else overall)
    csv_rows.write_rows(
        data_path(path),
        [
            ("source", "target", "score", "gain"),
            *(
                (source, target, float(score[m, n]), float(gain[m, n]))
                for n, target in enumerate(targets)
                for m, source in enumerate(sources)
            ),
        ],
    )
    return figure


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _size(rows: Sequence[str], columns: Sequence[str]) -> tuple[float, float]:
    """Inches, so that names and numbers have room."""
    M, N = (min(len(names), MOST) for names in (rows, columns))
    aside, above = (
        0.09 * max(map(len, names), default=0) if len(names) <= MOST else 0.0
        for names in (rows, columns)
    )
    return 1.8 + aside + 0.55 * N, 1.2 + 0.7 * above + 0.32 * M


def _cells(axes: "Axes", matrix: np.ndarray) -> Any:
    """The coloured cells and the numbers in them."""
    from matplotlib import colormaps

    finite = matrix[np.isfinite(matrix)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    # cividis reads the same with and without colour blindness.
    colours = colormaps["cividis"].with_extremes(bad="0.8")
    shown = np.ma.masked_invalid(matrix)
    image = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto")
    if max(matrix.shape) > MOST:
        return image
    middle = low / 2 + high / 2
    digits = 2 if high - low >= 0.1 else 3
    for (m, n), value in np.ndenumerate(matrix):
        dark = math.isfinite(value) and value < middle
        axes.text(
            n,
            m,
            "–" if math.isnan(value) else f"{value:z.{digits}f}",
            color="white" if dark else "black",
            ha="center",
            va="center",
            fontsize=8,
        )
    return image


def _name_ticks(
    axes: "Axes", rows: Sequence[str], columns: Sequence[str], *, ha: Any
) -> None:
    if len(columns) <= MOST:
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha=ha)
    if len(rows) <= MOST:
        axes.set_yticks(range(len(rows)), rows)


def _distances(matrix: np.ndarray, *, square: bool) -> np.ndarray:
    """[M, M], 0 on the diagonal, symmetric, finite."""
    known = np.isfinite(matrix)
    filled = np.where(known, matrix, 0.0)
    with np.errstate(invalid="ignore"):
        if square:
            top = filled.max(where=known, initial=-np.inf)
            apart = np.where(known, top - filled, np.nan)
            apart = (apart + apart.T) / 2
        else:
            both = known[:, None] & known
            squares = np.square(filled[:, None] - filled) * both
            apart = np.sqrt(squares.sum(2) / both.sum(2) * matrix.shape[1])
    far = apart[np.isfinite(apart)].max(initial=0.0)
    apart = np.where(np.isfinite(apart), apart, far)
    np.fill_diagonal(apart, 0.0)
    return apart


def _tree(distances: np.ndarray) -> dict[str, Any] | None:
    """SciPy's dendrogram, None of fewer than two."""
    if len(distances) < 2:
        return None
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    links = hierarchy.linkage(squareform(distances), "average")
    return hierarchy.dendrogram(links, no_plot=True)


def _branches(axes: "Axes", tree: dict[str, Any], *, up: bool = True) -> None:
    """The tree's lines, upward from columns or leftward from rows."""
    for along, height in zip(tree["icoord"], tree["dcoord"], strict=True):
        # SciPy puts leaf i at 10 i + 5.
        leaf = (np.array(along) - 5) / 10
        x, y = (leaf, height) if up else (height, leaf)
        axes.plot(x, y, color="0.3", linewidth=0.8)
    if not up:
        axes.invert_xaxis()
    axes.set_frame_on(False)
    axes.tick_params(
        bottom=False, labelbottom=False, left=False, labelleft=False
    )


def _points(
    axes: "Axes",
    score: np.ndarray,
    gain: np.ndarray,
    sources: Sequence[str],
    target: str,
) -> float:
    """One target's panel; returns its rho, NaN where undefined."""
    # SciPy's statistics take half a second to import.
    from scipy import stats

    known = np.flatnonzero(np.isfinite(score) & np.isfinite(gain)).tolist()
    x, y = score[known], gain[known]
    rho = math.nan
    if len(known) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
        rho = float(cast(Any, stats.spearmanr(x, y)).statistic)
    value = "undefined" if math.isnan(rho) else f"{rho:z.2f}"
    own = np.array([sources[m] == target for m in known], bool)
    axes.scatter(
        x[~own],
        y[~own],
        s=18,
        color="#00538a",
        label=f"ρ = {value} (n = {len(known)})",
    )
    if own.any():
        axes.scatter(
            x[own], y[own], s=26, color="#c28100", marker="s", label="itself"
        )
    if len(known):
        for place in dict.fromkeys((int(x.argmax()), int(y.argmax()))):
            left = x[place] > (x.min() + x.max()) / 2
            axes.annotate(
                sources[known[place]],
                (x[place], y[place]),
                xytext=(-4 if left else 4, 3),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=7,
            )
    axes.set_title(target, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.margins(0.1)
    axes.legend(fontsize=7, handlelength=0.5, loc="best")
    return rho


def _save(figure: "Figure", path: PathLike, title: str) -> None:
    from matplotlib.text import Text

    if title:
        figure.suptitle(title, fontsize=10)
    for text in figure.findobj(Text):
        # Names are no formulas, whatever dollars are in them.
        text.set_parse_math(False)
    with atomic_file(path) as temporary:
        # Tight: a title or name longer than the figure is wide is not cut off.
        figure.savefig(temporary, dpi=150, bbox_inches="tight")


def _write_matrix(
    path: PathLike,
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    csv_rows.write_rows(
        data_path(path),
        [
            ["source", *columns],
            *(
                [row, *values]
                for row, values in zip(rows, matrix.tolist(), strict=True)
            ),
        ],
    )
