#!/usr/bin/env python3
"""Records, for each Python, versions that the package is installed with.

    pip install uv==0.13.9
    python3 launch/pin.py              # what is recorded stays where it can
    python3 launch/pin.py --upgrade    # the newest that pyproject.toml allows

Writes constraints of pip, `constraints/py311.txt` and its like, with every
dependency of every extra.  The resolver, uv, is needed here and nowhere else.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import start

UV = "0.13.9"
PYTHONS = ("3.11", "3.12")
# libtpu's wheels are for this one and newer.
PLATFORM = "x86_64-manylinux_2_31"
# Older than the newest on purpose.
HELD_BACK = (
    # 5.24 renamed BERT's argument `past_key_values`, by which PEFT 0.21 knows
    # a model that takes prefixes: deep prompts that are exported for BERT run
    # through PEFT with 5.23 only.
    "transformers==5.23.0",
    "peft==0.21.2",
)
# seqeval's build asks for it without a bound, and fails with 10.
BUILD = "setuptools_scm<10"


def pins(python: str, known: pathlib.Path, *, upgrade: bool) -> list[str]:
    """`name==version` of all that any extra needs on a Python.

    Args:
      python: `"3.12"`.
      known: the file with the versions that are preferred, if it is there.
      upgrade: the newest versions instead.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = pathlib.Path(folder) / "wanted.in"
        wanted.write_text("\n".join((start.REFERENCE, BUILD)) + "\n")
        held = pathlib.Path(folder) / "held.txt"
        held.write_text("\n".join(HELD_BACK) + "\n")
        found = pathlib.Path(folder) / "found.txt"
        if known.is_file():
            found.write_text(known.read_text())
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet"]
        command += ["--no-config", "--no-header", "--no-annotate"]
        command += ["--python-version", python, "--python-platform", PLATFORM]
        command += ["--constraints", str(held), "--output-file", str(found)]
        command += ["--all-extras", "--upgrade"][: 1 + upgrade]
        command += [str(start.ROOT / "pyproject.toml"), str(wanted)]
        subprocess.run(command, check=True)
        return [*found.read_text().splitlines(), start.WEIGHTS]


def main() -> None:
    """Writes a file for each Python."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--upgrade", action="store_true")
    upgrade = parser.parse_args().upgrade
    version = subprocess.run(
        [sys.executable, "-m", "uv", "--version"],
        capture_output=True,
        text=True,
    ).stdout.split()
    if version[1:2] != [UV]:
        sys.exit(f"uv {UV} is needed. Run: pip install uv=={UV}")
    start.RECORDED.mkdir(exist_ok=True)
    for python in PYTHONS:
        path = start.RECORDED / f"py{python.replace('.', '')}.txt"
        found = pins(python, path, upgrade=upgrade)
        header = (
            f"# Of Python {python}: made by launch/pin.py from pyproject.toml."
        )
        path.write_text("\n".join([header, *sorted(set(found))]) + "\n")
        print(f"{path.relative_to(start.ROOT)}: {len(found)} packages")


if __name__ == "__main__":
    main()
