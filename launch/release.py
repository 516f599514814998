#!/usr/bin/env python3
"""Builds what a tag releases, if all files agree that it is that version.

python3 launch/release.py v0.2.0 --out_dir=dist
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent


def disagreement(tag: str, root: pathlib.Path) -> str | None:
    """Why `tag` cannot be released from the checkout `root`, or None."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    version = project["version"]
    if tag != f"v{version}":
        return f"the tag is {tag}, pyproject.toml says {version}"
    changes = (root / "CHANGELOG.md").read_text()
    found = re.findall(r"^## (\S+) \((.*)\)$", changes, re.MULTILINE)
    if not found or found[0][0] != version:
        return f"CHANGELOG.md does not begin with a section of {version}"
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", found[0][1]):
        return f"CHANGELOG.md has no date for {version}"
    cited = (root / "CITATION.cff").read_text()
    if f"\nversion: {version}\n" not in cited:
        return f"CITATION.cff does not name {version}"
    return None


def main() -> None:
    """Checks, then builds an sdist and a wheel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag")
    parser.add_argument("--out_dir", default="dist", type=pathlib.Path)
    arguments = parser.parse_args()
    wrong = disagreement(arguments.tag, ROOT)
    if wrong:
        sys.exit(f"Nothing is released: {wrong}.")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = pathlib.Path(folder) / "bin" / "python"
        for command in (
            ("pip", "install", "--quiet", "build>=1.2,<2"),
            ("build", "--outdir", str(arguments.out_dir), "."),
        ):
            done = subprocess.run([str(python), "-m", *command], cwd=ROOT)
            if done.returncode:
                sys.exit(done.returncode)


if __name__ == "__main__":
    main()
