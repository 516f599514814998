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
import yaml  # orbax brings it
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
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
)
WITH_THEM = (
    ".ci",
    ".github",
    "benchmarks",
    "constraints",
    "docs",
    "launch",
    "tests",
)
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")
# Needed by tensorflow-datasets, which does not declare it.
NOT_IMPORTED = {"importlib-resources"}
# Releases named by their year or that do not break: no bound is known.
UNBOUNDED = {"packaging"}
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
RECORDED = sorted((CHECKOUT / "constraints").glob("py*.txt"))
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def required(*extras: str) -> dict[str, Requirement]:
    """Name -> requirement of the package, or of extras of it alone."""
    lines = PROJECT["dependencies"] if not extras else []
    for extra in extras:
        lines = lines + PROJECT["optional-dependencies"][extra]
    found = {
        canonicalize_name(each.name): each for each in map(Requirement, lines)
    }
    found.pop("panda-jax", None)  # an extra of itself
    return found


def pinned(path: pathlib.Path) -> dict[str, Version]:
    """Name -> version of a file of constraints."""
    return {
        canonicalize_name(name): Version(version)
        for line in path.read_text().splitlines()
        if not line.startswith("#")
        for name, version in [line.split("==")]
    }


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
    for name in (*PACKAGED, *WITH_THEM):
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
        if requirement.name == "panda-jax":
            continue
        signs = {part.operator for part in requirement.specifier}
        assert signs & {">=", "=="}, f"{line}: from which version on?"
        if requirement.name not in UNBOUNDED:
            assert signs & {"<", "=="}, f"{line}: up to which version?"
    urls = metadata.get_all("Project-URL", [])
    assert urls
    assert all(", https://" in url for url in urls)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_versions_are_of_the_ranges(path):
    """Each dependency of each extra, and nothing that only one machine has."""
    found = pinned(path)
    everything = required() | required(*PROJECT["optional-dependencies"])
    for name, requirement in everything.items():
        assert name in found, f"{name} is not recorded: run launch/pin.py"
        assert found[name] in requirement.specifier, str(requirement)
    assert found["jax"] == found["jaxlib"]
    text = path.read_text()
    assert not [version for version in found.values() if version.local]
    assert not re.search(r"://|^-|^\S*/| @ ", text, re.MULTILINE)
    assert text.splitlines()[1:] == sorted(text.splitlines()[1:])


def test_each_python_that_is_named_has_recorded_versions():
    named = re.findall(
        r":: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"])
    )
    files = [f"py{version.replace('.', '')}" for version in named]
    assert [path.stem for path in RECORDED] == files
    workflow = (CHECKOUT / ".github/workflows/tests.yml").read_text()
    assert f"python: {str(named).replace(chr(39), chr(34))}" in workflow
    pin = (CHECKOUT / "launch" / "pin.py").read_text()
    assert str(tuple(named)).replace("'", '"') in pin


def imports(folder: pathlib.Path) -> set[str]:
    """The modules that a folder's files import, ours and Python's aside."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Import):
                found |= {a.name.split(".")[0] for a in node.names}
    return found - {*sys.stdlib_module_names, "panda_jax"}


# Used where they are there: `tokenizers` brings the first.
OPTIONAL = {"huggingface_hub", "pyarrow"}


def test_what_is_imported_is_required_and_the_other_way_round(source):
    modules = imports(source / "panda_jax") | imports(source / "tasks")
    assert modules >= OPTIONAL
    modules -= OPTIONAL
    wanted = {*required(), *required("data")}
    homes = importlib.metadata.packages_distributions()
    for name in sorted(modules):
        found = {canonicalize_name(home) for home in homes[name]}
        assert found & wanted, f"{name} comes with {found}"
    provided = {canonicalize_name(h) for name in modules for h in homes[name]}
    assert wanted - provided == NOT_IMPORTED


def test_the_extra_data_is_imported_where_a_token_cache_is_filled():
    """Elsewhere an import would make everybody install TensorFlow."""
    heavy = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"}
    users = {
        path.relative_to(CHECKOUT).as_posix()
        for folder in ("panda_jax", "tasks")
        for path in (CHECKOUT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
        if name.split(".")[0] in heavy
    }
    filling = ("registry", "features", "vocabulary", "from_tfds")
    assert users == {
        "panda_jax/data/token_cache.py",
        *(f"tasks/{name}.py" for name in filling),
    }


def test_the_lowest_versions_are_those_of_the_ranges():
    """Which were installed together and tested; see CONTRIBUTING.md."""
    wanted = required() | required("data")
    lowest = {
        name: Version(bound.version)
        for name, each in wanted.items()
        for bound in each.specifier
        if bound.operator == ">="
    }
    # Jax's other half comes with it.
    found = pinned(CHECKOUT / "tests" / "lowest_versions.txt")
    assert found == lowest | {"jaxlib": lowest["jax"]}


def test_workflows_are_sound():
    """Their schema, actions by commit, permissions, no injected text."""
    folder = CHECKOUT / ".github" / "workflows"
    beside = shutil.which("zizmor", path=pathlib.Path(sys.executable).parent)
    zizmor = beside or shutil.which("zizmor")
    assert zizmor, "pip install zizmor"
    done = subprocess.run(
        [zizmor, "--offline", "--strict-collection", "--no-progress", folder],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_scripts_that_are_there(path):
    """What is tested there can be run here by the same command."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    scripts = []
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            scripts += re.findall(
                r"(?:python3 )?(launch/\w+\.py|\.ci/run)", step.get("run", "")
            )
    assert scripts
    for script in scripts:
        assert (CHECKOUT / script).is_file(), script


@pytest.mark.parametrize(
    ("tag", "changes", "cited", "why"),
    [
        ("v1.2.0", "## 1.2.0 (2027-01-31)\n", "1.2.0", None),
        ("1.2.0", "## 1.2.0 (2027-01-31)\n", "1.2.0", "the tag is 1.2.0"),
        ("v1.3.0", "## 1.3.0 (2027-01-31)\n", "1.3.0", "pyproject.toml says"),
        ("v1.2.0", "## 1.1.0 (2027-01-31)\n", "1.2.0", "does not begin"),
        ("v1.2.0", "## 1.2.0 (unreleased)\n", "1.2.0", "no date"),
        ("v1.2.0", "## 1.2.0 (2027-01-31)\n", "1.1.0", "CITATION.cff"),
    ],
)
def test_a_tag_must_be_what_every_file_says(
    tmp_path, monkeypatch, tag, changes, cited, why
):
    monkeypatch.syspath_prepend(CHECKOUT / "launch")
    import release

    project = '[project]\nname = "panda-jax"\nversion = "1.2.0"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{changes}")
    (tmp_path / "CITATION.cff").write_text(f"title: x\nversion: {cited}\n")
    found = release.disagreement(tag, tmp_path)
    assert found is None if why is None else why in (found or "")
