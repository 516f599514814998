"""What is released: the wheel, the sdist, and what they say of themselves."""

import ast
import email
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if not (CHECKOUT / "pyproject.toml").is_file():
    pytest.skip("installed without the checkout", allow_module_level=True)
# Folder of the checkout -> its place in the wheel.
PACKAGED = {
    "panda_jax": "panda_jax",
    "tasks": "panda_jax/tasks",
    "gin": "panda_jax/gin",
}
BESIDE = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
)
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")
# Needed by tensorflow-datasets, which does not declare it.
NOT_IMPORTED = {"importlib-resources"}


def files(folder: pathlib.Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A copy: a build leaves files beside its sources."""
    folder = tmp_path_factory.mktemp("release") / "source"
    folder.mkdir()
    for name in (*PACKAGED, "benchmarks", "docs", "launch", "tests"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=LEFT_OUT)
    for name in BESIDE:
        shutil.copy(CHECKOUT / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(source) -> pathlib.Path:
    """A folder with the wheel and the sdist, built without a network."""
    before = files(source)
    out = source.parent / "dist"
    out.mkdir()
    code = (
        "from setuptools import build_meta as build\n"
        f"out = {str(out)!r}\n"
        "build.build_sdist(out)\n"
        "build.build_wheel(out)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages`" not in done.stdout + done.stderr
    for name in files(source) - before:
        (source / name).unlink()
    return out


@pytest.fixture(scope="module")
def wheel(built) -> dict[str, bytes]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    (name,) = (name for name in wheel if name.endswith("/METADATA"))
    return email.message_from_bytes(wheel[name])


def test_the_wheel_holds_the_package_and_nothing_else(source, wheel):
    expected = {
        f"{place}/{name}"
        for folder, place in PACKAGED.items()
        for name in files(source / folder)
    }
    found = {name for name in wheel if ".dist-info/" not in name}
    assert found == expected
    assert "panda_jax/py.typed" in found
    assert "panda_jax/gin/runs/demo.gin" in found
    about = {name.split(".dist-info/")[1] for name in set(wheel) - found}
    assert about == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }
    assert b"Apache License" in next(
        text for name, text in wheel.items() if name.endswith("/LICENSE")
    )


def test_the_sdist_is_the_checkout(source, built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {m.name.split("/", 1)[1] for m in archive if m.isfile()}
    made = {name for name in names if ".egg-info/" in name}
    assert names - made == files(source) | {"PKG-INFO", "setup.cfg"}


def test_versions_and_ranges_are_stated(metadata):
    version = metadata["Version"]
    changes = (CHECKOUT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+) \(", changes, re.MULTILINE)[0] == version
    cite = (CHECKOUT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in cite
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        signs = {part.operator for part in requirement.specifier}
        assert signs & {">=", "=="}, f"{line}: from which version on?"


def test_what_is_imported_is_required_and_the_other_way_round(source):
    project = tomllib.loads((source / "pyproject.toml").read_text())
    required = {
        canonicalize_name(Requirement(line).name)
        for line in project["project"]["dependencies"]
    }
    modules = set()
    for folder in ("panda_jax", "tasks"):
        for path in (source / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    modules.add((node.module or "").split(".")[0])
                elif isinstance(node, ast.Import):
                    modules |= {a.name.split(".")[0] for a in node.names}
    modules -= {*sys.stdlib_module_names, "panda_jax"}
    homes = importlib.metadata.packages_distributions()
    for name in sorted(modules):
        found = {canonicalize_name(home) for home in homes[name]}
        assert found & required, f"{name} comes with {found}"
    provided = {canonicalize_name(h) for name in modules for h in homes[name]}
    assert required - provided == NOT_IMPORTED


def test_the_lowest_versions_are_those_of_the_ranges():
    """Which were installed together and tested; see CONTRIBUTING.md."""
    pinned = {
        canonicalize_name(name): Version(version)
        for line in (CHECKOUT / "tests" / "lowest_versions.txt")
        .read_text()
        .splitlines()
        if not line.startswith("#")
        for name, version in [line.split("==")]
    }
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    required = map(Requirement, project["project"]["dependencies"])
    lowest = {
        canonicalize_name(each.name): Version(bound.version)
        for each in required
        for bound in each.specifier
        if bound.operator == ">="
    }
    # Jax's other half comes with it.
    assert pinned == lowest | {"jaxlib": lowest["jax"]}
