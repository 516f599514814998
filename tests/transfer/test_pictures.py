"""What pictures show, read from their artists and the data beside them."""

import csv
import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from panda_jax import errors
from panda_jax.transfer import pictures


def names(letter: str, count: int) -> list[str]:
    return [f"{letter}{i}" for i in range(count)]


def shown(axes) -> dict[tuple[int, int], str]:
    """(row, column) -> the number printed there."""
    return {
        (round(text.get_position()[1]), round(text.get_position()[0])): (
            text.get_text()
        )
        for text in axes.texts
    }


def labels(ticks) -> list[str]:
    return [tick.get_text() for tick in ticks]


def read(path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def seen(axis) -> list:
    """The names of the ticks that lie within the axis."""
    low, high = sorted(axis.get_view_interval())
    ticks = axis.get_major_ticks()
    return [
        text
        for tick in ticks
        if low <= tick.get_loc() <= high
        for text in (tick.label1, tick.label2)
    ]


def within(figure) -> bool:
    """Whether every text lies in what is saved of the figure."""
    renderer = figure.canvas.get_renderer()
    saved = figure.get_tightbbox(renderer)
    texts = [
        text
        for axes in figure.axes
        for text in (*seen(axes.xaxis), *seen(axes.yaxis), *axes.texts)
    ]
    boxes = [
        text.get_window_extent(renderer).transformed(
            figure.dpi_scale_trans.inverted()
        )
        for text in (*texts, figure._suptitle)
        if text is not None and text.get_text() and text.get_visible()
    ]
    return all(
        box.x0 >= saved.x0 - 0.01
        and box.x1 <= saved.x1 + 0.01
        and box.y0 >= saved.y0 - 0.01
        and box.y1 <= saved.y1 + 0.01
        for box in boxes
    )


def test_heatmap_prints_values_where_they_belong(tmp_path):
    matrix = np.array([[0.123, math.nan], [-0.001, 1.0], [math.inf, 0.5]])
    rows, columns = names("s", 3), names("t", 2)
    figure = pictures.heatmap(
        tmp_path / "h.png", matrix, rows=rows, columns=columns, title="on"
    )
    axes = figure.axes[0]
    assert shown(axes) == {
        (0, 0): "0.12",
        (0, 1): "–",
        (1, 0): "0.00",
        (1, 1): "1.00",
        (2, 0): "inf",
        (2, 1): "0.50",
    }
    assert labels(axes.get_yticklabels()) == rows
    assert labels(axes.get_xticklabels()) == columns
    assert figure._suptitle.get_text() == "on"
    image = axes.images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-0.001, 1.0)
    assert image.get_cmap().name == "cividis"
    assert [
        math.isfinite(v) for v in image.get_array().filled(np.nan).flat
    ] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert read(tmp_path / "h_data.csv") == [
        ["source", *columns],
        ["s0", "0.123", "nan"],
        ["s1", "-0.001", "1.0"],
        ["s2", "inf", "0.5"],
    ]


def test_close_values_get_a_third_digit(tmp_path):
    figure = pictures.heatmap(
        tmp_path / "h.png",
        np.array([[0.951, 0.954]]),
        rows=["s"],
        columns=["a", "b"],
        data=False,
    )
    assert shown(figure.axes[0]) == {(0, 0): "0.951", (0, 1): "0.954"}
    assert [path.name for path in tmp_path.iterdir()] == ["h.png"]


def blocks() -> tuple[np.ndarray, list[str]]:
    """Six names in two groups, one from each in turn."""
    group = np.arange(6) % 2
    matrix = np.where(group[:, None] == group, 0.9, 0.1)
    np.fill_diagonal(matrix, 1.0)
    return matrix, names("p", 6)


def test_clustermap_puts_like_names_together(tmp_path):
    matrix, rows = blocks()
    figure = pictures.clustermap(
        tmp_path / "c.png", matrix[:, ::-1], rows=rows, columns=rows[::-1]
    )
    heat = figure.axes[0]
    order = labels(heat.get_yticklabels())
    assert [int(name[1]) % 2 for name in order] in (
        [0, 0, 0, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
    )
    assert labels(heat.get_xticklabels()) == order
    data = read(tmp_path / "c_data.csv")
    assert data[0] == ["source", *order]
    assert [row[0] for row in data[1:]] == order
    # Columns came backwards: the numbers must have gone with the names.
    at = [rows.index(name) for name in order]
    for line, name in zip(data[1:], order, strict=True):
        wanted = matrix[rows.index(name), at]
        assert [float(cell) for cell in line[1:]] == wanted.tolist()
    numbers = shown(heat)
    for (m, n), text in numbers.items():
        assert float(text) == float(data[1 + m][1 + n])


def test_clustermap_s_tree_is_one_minus_similarity(tmp_path):
    matrix, rows = blocks()
    figure = pictures.clustermap(
        tmp_path / "c.png", matrix, rows=rows, columns=rows
    )
    heat, _, beside, above = figure.axes
    assert len(beside.lines) == len(above.lines) == 5
    heights = sorted(max(line.get_ydata()) for line in above.lines)
    np.testing.assert_allclose(heights, [0.1, 0.1, 0.1, 0.1, 0.9])
    assert sorted(max(line.get_xdata()) for line in beside.lines) == heights
    # Each leaf ends at the middle of its row or column.
    leaves = {
        float(x)
        for line in above.lines
        for x, y in zip(*line.get_data(), strict=True)
        if y == 0
    }
    assert leaves == set(range(6))
    assert beside.get_ylim() == heat.get_ylim()
    assert above.get_xlim() == heat.get_xlim()
    assert beside.get_xlim()[0] > beside.get_xlim()[1]  # the root outside


def test_clustermap_of_other_targets_orders_rows_only(tmp_path):
    matrix = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, math.nan]])
    figure = pictures.clustermap(
        tmp_path / "c.png", matrix, rows=names("s", 4), columns=["b", "a"]
    )
    heat = figure.axes[0]
    assert labels(heat.get_xticklabels()) == ["b", "a"]
    order = labels(heat.get_yticklabels())
    assert abs(order.index("s0") - order.index("s2")) == 1
    assert abs(order.index("s1") - order.index("s3")) == 1
    assert len(figure.axes) == 3  # no tree above


@pytest.mark.parametrize(
    "matrix",
    [
        np.full((1, 1), 0.5),
        np.full((1, 3), 0.5),
        np.full((3, 1), 0.5),
        np.full((3, 3), math.nan),
        np.array([[1, math.nan], [-math.inf, 1]]),
    ],
)
def test_clustermap_of_little_or_nothing(tmp_path, matrix):
    M, N = matrix.shape
    for columns in (names("s", N), names("t", N)):
        figure = pictures.clustermap(
            tmp_path / "c.png", matrix, rows=names("s", M), columns=columns
        )
        heat = figure.axes[0]
        assert sorted(labels(heat.get_yticklabels())) == names("s", M)
        assert len(shown(heat)) == M * N


def test_long_names_are_not_cut_off(tmp_path):
    long = ["a prompt of a rather long name, and more of it " * 2, "b", "c"]
    matrix = np.eye(3)
    title = "a title that is longer than any picture of three by three " * 3
    for draw in (pictures.heatmap, pictures.clustermap):
        figure = draw(
            tmp_path / "x.png", matrix, rows=long, columns=long, title=title
        )
        assert within(figure)
        height, width, _ = matplotlib.image.imread(tmp_path / "x.png").shape
        box = figure.get_tightbbox(figure.canvas.get_renderer())
        assert width >= 150 * box.width - 1
        assert height >= 150 * box.height - 1


def test_big_matrices_have_no_names_and_fit(tmp_path):
    many = pictures.MOST + 1
    figure = pictures.heatmap(
        tmp_path / "h.png",
        np.zeros((many, 2)),
        rows=names("s", many),
        columns=["a", "b"],
        data=False,
    )
    assert not figure.axes[0].texts
    assert labels(figure.axes[0].get_xticklabels()) == ["a", "b"]
    assert max(pictures._size(names("s", 10**5), names("t", 10**5))) < 400
    with pytest.raises(errors.UserError, match="at most 150"):
        pictures.clustermap(
            tmp_path / "c.png",
            np.zeros((many, 2)),
            rows=names("s", many),
            columns=["a", "b"],
        )


def test_scatter(tmp_path, rng):
    score, gain = rng.normal(size=(2, 8, 5))
    gain += score
    score[3, 0] = math.nan
    sources, targets = names("s", 8), [*names("t", 4), "s1"]
    figure = pictures.scatter(
        tmp_path / "s.png",
        score,
        gain,
        sources=sources,
        targets=targets,
        score_name="panda",
        title="bert",
    )
    assert [axes.get_title() for axes in figure.axes] == targets
    rhos = []
    for n, axes in enumerate(figure.axes):
        known = np.isfinite(score[:, n])
        rho = stats.spearmanr(score[known, n], gain[known, n])[0]
        rhos.append(rho)
        points = np.concatenate([c.get_offsets() for c in axes.collections])
        assert len(points) == known.sum()
        legend = labels(axes.get_legend().get_texts())
        assert legend[0] == f"ρ = {rho:.2f} (n = {known.sum()})"
        assert legend[1:] == (["itself"] if targets[n] == "s1" else [])
        best = {
            np.nanargmax(score[:, n]),
            np.argmax(np.where(known, gain[:, n], -9)),
        }
        assert {text.get_text() for text in axes.texts} == {
            sources[m] for m in best
        }
    own = figure.axes[4].collections[1].get_offsets()
    np.testing.assert_allclose(own, [[score[1, 4], gain[1, 4]]])
    assert figure._suptitle.get_text() == (
        f"bert: mean ρ = {np.mean(rhos):.2f} over 5 targets"
    )
    assert within(figure)
    data = read(tmp_path / "s_data.csv")
    assert data[0] == ["source", "target", "score", "gain"]
    assert len(data) == 1 + 8 * 5
    assert data[1] == ["s0", "t0", str(score[0, 0]), str(gain[0, 0])]
    assert data[4][2] == "nan"


def test_scatter_where_no_rho_is_defined(tmp_path):
    score = np.array([[1.0, 1.0, math.nan], [1.0, 2.0, 1.0]])
    figure = pictures.scatter(
        tmp_path / "s.png",
        score,
        np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]]),
        sources=["a", "b"],
        targets=["t", "u", "v"],
    )
    legends = [labels(axes.get_legend().get_texts())[0] for axes in figure.axes]
    assert legends == [
        "ρ = undefined (n = 2)",
        "ρ = -1.00 (n = 2)",
        "ρ = undefined (n = 1)",
    ]
    assert figure._suptitle.get_text() == "mean ρ = -1.00 over 1 targets"
    nothing = pictures.scatter(
        tmp_path / "s.png",
        np.full((1, 1), math.nan),
        np.ones((1, 1)),
        sources=["a"],
        targets=["a"],
    )
    assert nothing._suptitle.get_text() == "mean ρ = undefined over 0 targets"
    with pytest.raises(errors.UserError, match="151 targets, expected at most"):
        pictures.scatter(
            tmp_path / "s.png",
            np.ones((1, 151)),
            np.ones((1, 151)),
            sources=["a"],
            targets=names("t", 151),
        )


def test_no_pyplot_and_other_formats(tmp_path):
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from panda_jax.transfer import pictures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "for draw in (pictures.heatmap, pictures.clustermap):\n"
        "    draw(sys.argv[1], np.eye(2), rows='ab', columns='ab')\n"
        "pictures.scatter(sys.argv[1], np.eye(2), np.eye(2), sources='ab',"
        " targets='ab')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    path = tmp_path / "folder" / "x.svg"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert "<svg" in path.read_text()
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "x.svg",
        "x_data.csv",
    ]
