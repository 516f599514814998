import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from panda_jax import errors
from panda_jax.transfer import scores


def _scores(M: int = 4, N: int = 3) -> scores.Scores:
    rng = np.random.default_rng(0)
    names = [f"task{i}" for i in range(M)]
    values = {m: rng.normal(size=(M, N)) for m in ("panda", "e_avg")}
    return scores.Scores(tuple(names), tuple(names[:N]), values)


@pytest.fixture
def small() -> scores.Scores:
    matrix = np.array([[1.0, 0.2], [0.5, 1.0], [math.nan, 0.9], [0.7, 0.2]])
    return scores.Scores(
        ("a", "b", "c", "d"), ("a", "b"), {"on": matrix, "flip": -matrix}
    )


def test_top(small):
    assert small.top("a") == [("d", 0.7), ("b", 0.5)]
    assert small.top("b") == [("c", 0.9), ("a", 0.2), ("d", 0.2)]
    assert small.top("b", k=1) == [("c", 0.9)]
    assert small.top("b", metric="flip", k=2) == [("a", -0.2), ("d", -0.2)]
    assert small.top("a", include_self=True, k=None)[0] == ("a", 1.0)


def test_unknown_names(small):
    with pytest.raises(errors.UserError, match="Unknown target 'c'.*a, b"):
        small.top("c")
    for call in (
        lambda: small.top("a", metric="onn"),
        lambda: small.matrix_csv("x.csv", "onn"),
        lambda: small.heatmap("x.png", "onn"),
    ):
        with pytest.raises(errors.UserError, match="Did you mean 'on'"):
            call()


def test_refuses_wrong_shapes_and_double_names():
    with pytest.raises(ValueError, match=r"shape \(2, 1\), expected \(1, 2\)"):
        scores.Scores(("a",), ("b", "c"), {"on": np.zeros((2, 1))})
    with pytest.raises(ValueError, match="unique"):
        scores.Scores(("a", "a"), ("b",), {"on": np.zeros((2, 1))})


def test_csv_round_trip_is_exact(tmp_path, small):
    for original in (small, _scores()):
        original.to_csv(tmp_path / "s.csv")
        read = scores.Scores.from_csv(tmp_path / "s.csv")
        assert read.sources == original.sources
        assert read.targets == original.targets
        assert list(read.values) == list(original.values)
        for metric, matrix in original.values.items():
            np.testing.assert_array_equal(read.values[metric], matrix)
    text = (tmp_path / "s.csv").read_text()
    assert text.startswith("source,target,metric,score\ntask0,task0,panda,0.1")


def test_csv_of_others(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(
        "\ufeffscore,metric,source,target,note\n"
        '0.5,on,"a, b",t, \n1,on,c,t,x\n2,on,c,u,x\n',
        encoding="utf-8",
    )
    read = scores.Scores.from_csv(path)
    assert read.sources == ("a, b", "c")
    assert read.targets == ("t", "u")
    np.testing.assert_array_equal(read.values["on"], [[0.5, math.nan], [1, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"s\.csv:1: got the columns \[\]"),
        ("source,target,score\na,b,1\n", r"s\.csv:1: .*source,target,metric"),
        ("source,target,metric,score\n", "no scores"),
        ("source,target,metric,score\na,b,on,x\n", r"s\.csv:2: score is 'x'"),
        ("source,target,metric,score\na,b,on\n", r"s\.csv:2: got 3 cells"),
        ("source,target,metric,score\n\n", "no scores"),
        ("source,target,metric,score\na,,on,1\n", r"s\.csv:2: .*names for"),
        (
            "source,target,metric,score\na,b,on,1\na,b,on,2\n",
            r"s\.csv:3: a second on score",
        ),
        ('source,target,metric,score\na,b,"on,1\n', r"s\.csv:\d: "),
    ],
)
def test_malformed_csv_names_file_and_line(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(errors.UserError, match=message):
        scores.Scores.from_csv(tmp_path / "s.csv")


def test_csv_of_several_backbones(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(
        "source,target,metric,score,backbone\n"
        "a,t,on,1,small\nb,t,on,2,small\na,t,on,3,large\n"
    )
    found = scores.Scores.by_backbone(path)
    assert list(found) == ["small", "large"]
    assert found["small"].values["on"].tolist() == [[1.0], [2.0]]
    assert found["large"].sources == ("a",)
    path.write_text("source,target,metric,score,backbone\na,t,on,1,\n")
    with pytest.raises(errors.UserError, match=r"s\.csv:2: .*backbone"):
        scores.Scores.by_backbone(path)
    path.write_text("source,target,metric,score\na,t,on,1\n")
    assert list(scores.Scores.by_backbone(path)) == [""]


def test_unreadable_csv(tmp_path):
    with pytest.raises(errors.UserError, match=r"none\.csv' cannot be read"):
        scores.Scores.from_csv(tmp_path / "none.csv")
    (tmp_path / "s.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.UserError, match="cannot be read"):
        scores.Scores.from_csv(tmp_path / "s.csv")


def test_matrix_csv(tmp_path, small):
    small.matrix_csv(tmp_path / "m.csv", "on")
    assert (tmp_path / "m.csv").read_text() == (
        "source,a,b\na,1.0,0.2\nb,0.5,1.0\nc,nan,0.9\nd,0.7,0.2\n"
    )


@pytest.mark.parametrize(("M", "N"), [(3, 1), (21, 21)])
def test_heatmap(tmp_path, M, N):
    _scores(M, N).heatmap(tmp_path / "h.png", "e_avg", title="E_avg")
    pixels = matplotlib.image.imread(tmp_path / "h.png")
    height, width, _ = pixels.shape
    # At 150 dpi a printed value needs about 50 x 25 pixels.
    assert height > 30 * M
    assert width > 60 * N
    colours = {tuple(c) for c in pixels[::3, ::3, :3].reshape(-1, 3).round(2)}
    assert len(colours) >= M * N / 2


def test_heatmap_draws_missing_scores_grey(tmp_path):
    for name, value in (("with", math.nan), ("without", 0.5)):
        matrix = np.array([[0.1, 0.9], [value, 0.3]])
        one = scores.Scores(("a", "b"), ("c", "d"), {"on": matrix})
        one.heatmap(tmp_path / f"{name}.png")
    grey = {
        name: np.all(
            np.abs(matplotlib.image.imread(tmp_path / name)[..., :3] - 0.8)
            < 0.005,
            axis=-1,
        ).sum()
        for name in ("with.png", "without.png")
    }
    assert grey["with.png"] > 1000
    assert grey["without.png"] < 100


def test_heatmap_of_nothing_but_missing_scores(tmp_path):
    matrix = np.full((2, 1), math.nan)
    scores.Scores(("a", "b"), ("c",), {"on": matrix}).heatmap(
        tmp_path / "h.png"
    )
    assert (tmp_path / "h.png").stat().st_size > 1000


def test_heatmap_leaves_the_scores_beside_it(tmp_path, small):
    small.to_csv(tmp_path / "scores.csv")
    before = (tmp_path / "scores.csv").read_text()
    small.heatmap(tmp_path / "scores.png")
    assert (tmp_path / "scores.csv").read_text() == before


def test_clustermap(tmp_path, small):
    small.clustermap(tmp_path / "c.png", "flip", title="flipped")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "c_data.csv").read_text().splitlines()
    assert lines[0] == "source,a,b"
    assert "c,nan,-0.9" in lines
    with pytest.raises(errors.UserError, match="Did you mean 'on'"):
        small.clustermap(tmp_path / "c.png", "onn")


def test_write(tmp_path):
    names = ("e/avg", "E avg", "../up")
    values = {name: np.eye(2) for name in names}
    one = scores.Scores(("a", "b"), ("a", "b"), values)
    paths = one.write(tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {".panda_jax.json", *(path.name for path in paths)}
    assert [path.name for path in paths] == [
        "scores.csv",
        "matrix_e_avg.csv",
        "heatmap_e_avg.png",
        "matrix_e_avg_2.csv",
        "heatmap_e_avg_2.png",
        "matrix_.._up.csv",
        "heatmap_.._up.png",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_imports_matplotlib_only_to_draw(tmp_path):
    code = (
        "import sys\n"
        "from panda_jax.transfer import scores\n"
        "bad = {m.split('.')[0] for m in sys.modules}\n"
        "assert not bad & {'matplotlib', 'tensorflow', 'seqio', 'jax'}, bad\n"
        "import numpy as np\n"
        "one = scores.Scores(('a',), ('b',), {'on': np.ones((1, 1))})\n"
        "one.heatmap(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "h.png")], check=True
    )
