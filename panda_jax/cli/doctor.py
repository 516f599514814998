"""Looks over an installation and says what is wrong and how to mend it.

Nothing here is needed to train.  What may hang, crash or take seconds
(TensorFlow, the accelerator's driver) is tried in another process.
"""

import concurrent.futures
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from panda_jax.errors import UserError
from panda_jax.io.files import PathLike, cache_folder
from panda_jax.parallel import cluster

_GIB = 1 << 30
_TESTED_PYTHONS = ("3.11", "3.12")
# What the extra `data` brings.
_DATA = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio")
_CORE = ("jax", "flax", "optax", "orbax-checkpoint")

_JAX_PROBE = """
import jax
kinds = [d.device_kind for d in jax.local_devices()]
names = ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds))
print(f"{jax.default_backend()}: {names}")
"""
_TENSORFLOW_PROBE = """
import tensorflow, tensorflow_text, tensorflow_datasets, seqio
print(
    f"tensorflow {tensorflow.__version__}, "
    f"tensorflow-text {tensorflow_text.__version__}, "
    f"seqio {seqio.__version__}"
)
"""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
      name: what, in a word or two.
      ok: True well, False broken, None worth knowing.
      found: what there is.
      fix: how to mend it; empty where there is nothing to mend.
    """

    name: str
    ok: bool | None
    found: str
    fix: str = ""


def diagnose(*, data_dir: PathLike | None = None) -> list[Check]:
    """Makes all checks; takes about as long as importing TensorFlow.

    Args:
      data_dir: the folder of the task files; None for `PANDA_DATA_DIR`.

    Returns:
      One `Check` or more for each topic.  A check that itself fails is
      reported as broken, never raised.
    """
    environment = os.environ
    topics: dict[str, Callable[[], list[Check]]] = {
        "python": _python,
        "packages": _packages,
        "devices": _devices,
        "tensorflow": _tensorflow,
        "tokenizers": _tokenizers,
        "minilm-l6": _minilm,
        "data": lambda: _data(data_dir or environment.get("PANDA_DATA_DIR")),
        "cache folder": _cache,
        "disk": _disk,
        "memory": _memory,
        "distributed": lambda: _distributed(environment),
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = pool.map(_guarded, topics, topics.values())
        return [check for checks in done for check in checks]


def report(checks: list[Check]) -> str:
    """The checks as aligned plain text, with the fixes and a summary."""
    marks = {True: "ok", None: "note", False: "FAIL"}
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(
            f"{marks[check.ok]:4}  {check.name:{width}}  {check.found}"
        )
        if check.fix:
            lines.append(f"{'':4}  {'':{width}}  -> {check.fix}")
    broken = sum(check.ok is False for check in checks)
    lines.append(
        f"{broken} of {len(checks)} checks failed."
        if broken
        else "Everything that panda-jax needs is in place."
    )
    return "\n".join(lines)


def _guarded(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    try:
        return look()
    except Exception as error:
        # Whatever a broken installation raises is itself the finding.
        found = f"{type(error).__name__}: {error}"
        fix = "reinstall with: pip install --force-reinstall panda-jax"
        return [Check(name, False, found, fix)]


def _python() -> list[Check]:
    version = platform.python_version()
    tested = version.rpartition(".")[0] in _TESTED_PYTHONS
    fix = f"tested on Python {', '.join(_TESTED_PYTHONS)}"
    found = f"{version} ({sys.executable})"
    return [Check("python", tested or None, found, "" if tested else fix)]


def _packages() -> list[Check]:
    """The installed versions against the ranges that the package declares."""
    from packaging.requirements import Requirement

    checks, versions = [], {}
    for text in importlib.metadata.requires("panda-jax") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        extra = False
        if marker is not None and not marker.evaluate({"extra": ""}):
            if not marker.evaluate({"extra": "data"}):
                continue
            extra = True
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if extra:
                continue
            found = "is not installed"
            checks.append(Check(requirement.name, False, found, fix))
            continue
        versions[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}, tested with {requirement.specifier}"
            checks.append(Check(requirement.name, None, found, fix))
    core = [f"{name} {versions.get(name)}" for name in _CORE]
    return [Check("packages", True, ", ".join(core)), *checks]


def _probe(code: str, *, timeout: float) -> tuple[bool, str]:
    """Runs Python code apart; whether it worked and its last line."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **quiet},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout:.0f} s"
    worked = done.returncode == 0
    lines = (done.stdout if worked else done.stderr).strip().splitlines()
    return worked, lines[-1] if lines else f"exit status {done.returncode}"


def _devices() -> list[Check]:
    worked, found = _probe(_JAX_PROBE, timeout=120)
    if not worked:
        fix = (
            "end other programs that hold the device, check XLA_FLAGS and "
            "JAX_PLATFORMS, and try JAX_PLATFORMS=cpu"
        )
        return [Check("devices", False, found, fix)]
    if found.startswith("cpu"):
        unused = {
            "tpu": any(pathlib.Path("/dev").glob("accel*")),
            "cuda12": shutil.which("nvidia-smi") is not None,
        }
        for extra, present in unused.items():
            if present:
                fix = f"pip install 'panda-jax[{extra}]' to use the accelerator"
                return [Check("devices", None, found, fix)]
    return [Check("devices", True, found)]


def _tensorflow() -> list[Check]:
    if not any(map(importlib.util.find_spec, _DATA)):
        found = "not installed: token caches can be read, but not filled"
        fix = "pip install 'panda-jax[data]' to fill them"
        return [Check("tensorflow", None, found, fix)]
    worked, found = _probe(_TENSORFLOW_PROBE, timeout=180)
    names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    if "tensorflow-cpu" in names:
        found += "; tensorflow-cpu is installed beside tensorflow"
        fix = (
            "pip uninstall -y tensorflow tensorflow-cpu && pip install "
            "tensorflow"
        )
        return [Check("tensorflow", False, found, fix)]
    fix = "pip install --force-reinstall tensorflow tensorflow-text seqio"
    return [Check("tensorflow", worked, found, "" if worked else fix)]


def _tokenizers() -> list[Check]:
    checks = []
    for name in ("tokenizers", "sentencepiece"):
        try:
            version = importlib.import_module(name).__version__
        except ImportError as error:
            fix = f"pip install --force-reinstall {name}"
            checks.append(Check(name, False, str(error), fix))
        else:
            checks.append(Check(name, True, version))
    return checks + _text_vocabulary(os.environ.get("PANDA_TEXT_VOCABULARY"))


def _text_vocabulary(path: str | None) -> list[Check]:
    """T5's vocabulary, where one is named."""
    if not path:
        return []
    from panda_jax.data.text_tokenizer import TextTokenizer

    name = "PANDA_TEXT_VOCABULARY"
    try:
        pieces = TextTokenizer.from_file(path).vocab_size
    except UserError as error:
        return [Check(name, False, str(error), f"mend or unset {name}")]
    return [Check(name, True, f"{path}: {pieces} pieces")]


def _minilm() -> list[Check]:
    """The weights of `minilm-l6`: the demo needs them, training need not."""
    from panda_jax.store import backbones

    try:
        folder = backbones.minilm_folder()
    except UserError as error:
        what, _, fix = str(error).partition(" Run: ")
        return [Check("minilm-l6", False, what, fix)]
    return [Check("minilm-l6", True, str(folder))]


def _data(folder: PathLike | None) -> list[Check]:
    """Which tasks find all their files."""
    from panda_jax.tasks import readers, specs

    if not folder:
        return [
            Check(
                "data",
                None,
                "no data folder is set; the built-in tasks need none",
                "give --data_dir or set PANDA_DATA_DIR for GLUE and SuperGLUE",
            )
        ]
    root = pathlib.Path(folder)
    if not root.is_dir():
        fix = "mend --data_dir or PANDA_DATA_DIR"
        return [Check("data", False, f"{str(root)!r} is no folder", fix)]
    there, missing = [], []
    for name in specs.names():
        spec = specs.get(name)
        absent = readers.absent(spec, root)
        if absent:
            missing.append(f"{name} ({', '.join(absent)})")
        elif spec.files:
            there.append(name)
    found = f"{str(root)!r} has {', '.join(there) or 'no task'}"
    checks = [Check("data", bool(there), found)]
    if missing:
        fix = "unpack the missing tasks' distribution files there to use them"
        checks.append(Check("data", None, f"lacks {'; '.join(missing)}", fix))
    return checks


def _cache() -> list[Check]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "set PANDA_CACHE_DIR to a folder that you may write to"
        return [Check("cache folder", False, str(error), fix)]
    return [Check("cache folder", True, f"{str(folder)!r} is writable")]


def _disk() -> list[Check]:
    free = shutil.disk_usage(pathlib.Path.cwd()).free
    enough = free >= _GIB
    found = f"{free / _GIB:.1f} GiB free in the working folder"
    fix = "" if enough else "free some space or work in another folder"
    return [Check("disk", enough or None, found, fix)]


def _memory() -> list[Check]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    enough = total >= 4 * _GIB
    found = f"{total / _GIB:.1f} GiB in all, {os.cpu_count()} CPU cores"
    fix = "" if enough else "use a small backbone and a small batch"
    return [Check("memory", enough or None, found, fix)]


def _distributed(environment: Mapping[str, str]) -> list[Check]:
    """The variables that decide how many processes JAX believes in."""
    prefixes = ("JAX_", "TPU_", "MEGASCALE_", "SLURM_STEP_", "XLA_")
    names = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    values = {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(prefixes) or name in names
    }
    why = cluster.several(environment)
    found = ", ".join(f"{k}={v}" for k, v in values.items())
    found = found or "nothing set: one process"
    if why is not None:
        found = f"{found}: several processes, by {why}"
    checks = [Check("distributed", True, found)]
    try:
        given = cluster.given(cluster.Settings(), environment)
    except UserError as error:
        fix = "mend or unset the JAX_ variables"
        return [*checks, Check("distributed", False, str(error), fix)]
    if why is None and None in given.values() and any(given.values()):
        what = f"of {', '.join(cluster.VARIABLES.values())} only some are set"
        fix = "set all three, or unset them all"
        checks.append(Check("distributed", False, what, fix))
    tasks = values.get("SLURM_NTASKS", "1")
    if why is None and tasks != "1":
        what = f"SLURM has {tasks} tasks, but this is none of a step's"
        fix = "start panda-jax with srun, as launch/slurm.sbatch does"
        checks.append(Check("distributed", None, what, fix))
    if "host_platform_device_count" in values.get("XLA_FLAGS", ""):
        what = "XLA_FLAGS splits the CPU into pretended devices"
        fix = "unset XLA_FLAGS; it is for tests and slows training down"
        checks.append(Check("distributed", None, what, fix))
    return checks
