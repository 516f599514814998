"""Files that are whole or absent, whoever else writes at the time."""

import contextlib
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from panda_jax.io import files, ownership


def test_threads_that_write_leave_the_umask_as_it_was(tmp_path):
    def write(number):
        for turn in range(50):
            files.write_text(tmp_path / f"{number}-{turn}", "x")
            place = tmp_path / f"f{number}"
            with ownership.replacing(place, "import") as folder:
                (folder / "y").write_text("y")

    before = os.umask(0o027)
    try:
        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = os.umask(0o027)
    finally:
        os.umask(before)
    assert after == 0o027
    assert not list(tmp_path.glob(".*"))


def test_a_file_and_a_folder_are_on_the_disk_before_they_are_there(
    tmp_path, monkeypatch
):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or real(fd))
    files.write_text(tmp_path / "a", "a")
    assert len(synced) == 1
    with files.atomic_file(tmp_path / "b", durable=False) as temporary:
        temporary.write_text("b")
    assert len(synced) == 1
    with ownership.replacing(tmp_path / "c", "import") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "one").write_text("1")
        (folder / "two").write_text("2")
    assert len(synced) == 4  # and the listing


def test_two_that_sweep_at_once_do_not_trip_over_each_other(
    tmp_path, monkeypatch
):
    """One takes a leftover away between the other's look and its lock."""
    path = tmp_path / "out"
    name = f".out.{files._machine()}"
    for end in ("00000000", "11111111", "22222222"):
        (tmp_path / f"{name}{end}").mkdir()
    locked = files.locked

    @contextlib.contextmanager
    def raced(folder, **options):
        if folder.name.endswith("00000000"):  # gone before the lock
            folder.rmdir()
        with locked(folder, **options) as had:
            if folder.name.endswith("11111111"):  # and after it
                folder.rmdir()
            yield had

    monkeypatch.setattr(files, "locked", raced)
    assert [left.name for left in files.abandoned(path)] == [f"{name}22222222"]


def test_two_that_put_a_folder_back_at_once_do_so_once(tmp_path, monkeypatch):
    inner = tmp_path / ".out.old.x" / "out"
    inner.mkdir(parents=True)
    replace = os.replace

    def raced(old, new):
        replace(old, new)  # the other process
        replace(old, new)

    monkeypatch.setattr(os, "replace", raced)
    assert list(files.displaced(tmp_path / "out")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_swept_before_its_lock_is_made_again(
    tmp_path, monkeypatch
):
    """Who sweeps cannot tell it from one that a killed process left."""
    locked, swept = files.locked, []

    @contextlib.contextmanager
    def raced(folder, **options):
        if len(swept) < 2:
            swept.append(folder)
        if len(swept) == 1:  # gone before it is opened
            folder.rmdir()
        with locked(folder, **options) as had:
            if len(swept) == 2 and folder == swept[1]:  # and after that
                folder.rmdir()
            yield had

    monkeypatch.setattr(files, "locked", raced)
    with files.staged(tmp_path / "out") as new:
        (new / "a").write_text("x")
        assert new not in swept
    assert not list(tmp_path.iterdir())


def test_ctrl_c_between_a_folder_and_its_number_leaves_none(
    tmp_path, monkeypatch
):
    made = pathlib.Path.mkdir

    def interrupted(path, *options, **more):
        made(path, *options, **more)
        if path.name.startswith(".out."):
            raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "mkdir", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        files.staged(tmp_path / "out"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_was_writing_goes_and_no_other(tmp_path):
    """The system lets go of its lock, wherever the kill came."""
    write = (
        "import os, signal, sys; from panda_jax.io import files\n"
        "with files.atomic_file(sys.argv[1]) as new:\n"
        "    new.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "progress.json"
    subprocess.run([sys.executable, "-c", write, path], check=False)
    (left,) = tmp_path.iterdir()
    with files.atomic_file(path) as under_way:
        files.remove_abandoned(tmp_path, suffix=".json")
        assert list(tmp_path.iterdir()) == [under_way]
        under_way.write_text("{}")
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    other = tmp_path / f".x.json.{'0' * 12}.json"  # of another machine
    other.touch()
    files.remove_abandoned(tmp_path, suffix=".json")
    assert other.exists()
    assert left != path


def test_a_file_that_is_swept_before_its_lock_is_made_again(
    tmp_path, monkeypatch
):
    lock, swept = files._lock, []

    def raced(handle, *, wait):
        if not swept:
            swept.extend(tmp_path.glob(".*"))
            swept[0].unlink()
        return lock(handle, wait=wait)

    monkeypatch.setattr(files, "_lock", raced)
    files.write_text(tmp_path / "a", "whole")
    assert len(swept) == 1
    assert (tmp_path / "a").read_text() == "whole"
