"""Claims: at most one holds each, whoever dies, sleeps or comes late."""

import json
import os
import subprocess
import sys
import threading
import time
import warnings

import pytest

from panda_jax import UserError
from panda_jax.io import claims, files
from panda_jax.io.claims import Claims, parse_shard


def said(folder, name="fleet"):
    """The content of the claim that counts."""
    last = max((folder / name).iterdir(), key=lambda p: int(p.name))
    return json.loads((last / "claim.json").read_text())


def rewrite(folder, **changes):
    last = max((folder / "fleet").iterdir(), key=lambda p: int(p.name))
    value = said(folder) | changes
    (last / "claim.json").write_text(json.dumps(value))


@pytest.fixture
def silent(monkeypatch):
    """Claims that give no sign of life."""
    monkeypatch.setattr(claims.Claim, "_live", lambda self: None)


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_holds_a_claim_until_it_gives_it_up(tmp_path):
    ours, theirs = Claims(tmp_path), Claims(tmp_path)
    with ours.take("fleet", doing="cb") as claim:
        assert not claim.lost
        assert theirs.take("fleet") is None
        assert ours.take("fleet") is None
        assert theirs.holder("fleet")["doing"] == "cb"
        assert list(theirs.all()) == ["fleet"]
        other = theirs.take("another")
        assert other is not None
        other.release()
    assert ours.holder("fleet") is None
    assert theirs.all() == {}
    again = theirs.take("fleet")
    assert again is not None
    assert said(tmp_path)["owner"] == theirs.owner
    again.release()


@pytest.mark.parametrize("before", ["nobody", "released", "stale"])
def test_of_many_at_once_one_takes_it(tmp_path, before, silent, clock):
    if before != "nobody":
        first = Claims(tmp_path).take("fleet")
        if before == "released":
            first.release()
    for _ in range(5):
        rivals = [Claims(tmp_path, stale=120) for _ in range(8)]
        for each in rivals:
            each.holder("fleet")  # from here on they count
        clock[0] += 121
        start, taken = threading.Barrier(len(rivals)), []

        def race(each, start=start, taken=taken):
            start.wait()
            found = each.take("fleet")
            if found is not None:
                taken.append(found)

        threads = [threading.Thread(target=race, args=(r,)) for r in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        if before != "stale":
            taken[0].release()


@pytest.fixture
def clock(monkeypatch):
    """A list with the seconds that this process has counted."""
    seconds = [0.0]
    monkeypatch.setattr(claims, "_now", lambda: seconds[0])
    return seconds


def test_silence_is_counted_by_the_observer(tmp_path, silent, clock):
    assert Claims(tmp_path).take("fleet") is not None
    # Whatever the clocks of others say.
    rewrite(tmp_path, at="1970-01-01T00:00:00Z", since="1970-01-01T00:00:00Z")
    late = Claims(tmp_path, stale=120)
    clock[0] += 1000
    assert late.take("fleet") is None
    clock[0] += 100
    rewrite(tmp_path, beat=1)
    assert late.take("fleet") is None
    clock[0] += 100
    assert late.take("fleet") is None
    clock[0] += 30
    taken = late.take("fleet")
    assert taken is not None
    assert said(tmp_path)["owner"] == late.owner


def test_a_holder_that_speaks_seldom_is_waited_for(tmp_path, silent, clock):
    """Its signs of life come by its own seconds, whatever ours are."""
    assert Claims(tmp_path, stale=1000).take("fleet") is not None
    hasty = Claims(tmp_path, stale=1)
    assert hasty.take("fleet") is None
    clock[0] += 999
    assert hasty.take("fleet") is None
    clock[0] += 2
    assert hasty.take("fleet") is not None
    patient = Claims(tmp_path, stale=1000)
    assert patient.take("fleet") is None
    clock[0] += 999
    assert patient.take("fleet") is None
    # As an earlier version wrote it.
    rewrite(tmp_path, stale=None)
    assert hasty.take("fleet") is None
    clock[0] += 2
    assert hasty.take("fleet") is not None


def test_a_holder_gives_signs_of_life(tmp_path):
    holder, other = Claims(tmp_path, stale=0.8), Claims(tmp_path, stale=0.8)
    with holder.take("fleet"):
        end = time.monotonic() + 1.7
        while time.monotonic() < end:
            assert other.take("fleet") is None
            time.sleep(0.05)
        assert said(tmp_path)["beat"] > 5


def test_the_dead_of_this_machine_are_not_waited_for(tmp_path, silent):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
    )
    Claims(tmp_path).take("fleet")
    other = Claims(tmp_path)
    # A process with its number, but another.
    rewrite(tmp_path, process_began="1")
    assert other.holder("fleet") is None or not os.path.exists("/proc")
    rewrite(tmp_path, pid=int(done.stdout))
    assert other.holder("fleet") is None
    rewrite(tmp_path, machine="another")
    assert other.holder("fleet") is not None


def test_what_died_between_folder_and_file_is_followed(tmp_path, clock):
    (tmp_path / "fleet" / "0").mkdir(parents=True)
    other = Claims(tmp_path, stale=120)
    assert other.take("fleet") is None
    clock[0] += 121
    taken = other.take("fleet")
    assert taken is not None
    taken.release()


def test_who_was_silent_learns_that_another_took_over(tmp_path):
    slow, quick = Claims(tmp_path, stale=0.2), Claims(tmp_path)
    told = threading.Event()
    claim = slow.take("fleet", on_lost=told.set)
    # As if it had been asleep, and found stale.
    (tmp_path / "fleet" / "1").mkdir()
    assert told.wait(10)
    assert claim.lost
    claim.release()
    assert not (tmp_path / "fleet" / "1" / "claim.json").exists()
    assert quick.holder("fleet") is not None, "the new holder's, not released"


def test_a_disk_that_is_full_for_a_while_costs_no_claim(tmp_path, monkeypatch):
    real, failures = claims.write_json, []

    def full(path, value, **options):
        if len(failures) < 2 and value["beat"]:
            failures.append(path)
            raise OSError(28, "No space left on device")
        real(path, value, **options)

    monkeypatch.setattr(claims, "write_json", full)
    with Claims(tmp_path, stale=0.2).take("fleet") as claim:
        wait_for(lambda: len(failures) == 2 and said(tmp_path)["beat"] > 2)
        assert not claim.lost


@pytest.mark.parametrize(
    ("text", "found"),
    [(None, (0, 1)), ("0/2", (0, 2)), ("1/2", (1, 2)), ("2/2", (0, 2))],
)
def test_shards_count_from_0_or_from_1(text, found):
    assert parse_shard(text) == found


@pytest.mark.parametrize(
    "text", ["", "1", "3/2", "0/0", "a/b", "-1/2", "1/2/3"]
)
def test_no_shard(text):
    with pytest.raises(UserError, match="expected i/n"):
        parse_shard(text)


def test_silence_takes_time(tmp_path):
    with pytest.raises(UserError, match="stale_seconds is 0"):
        Claims(tmp_path, stale=0)


# A run's folder.


def never() -> bool:
    return False


def test_a_run_s_folder_is_held_by_one(tmp_path):
    with (
        claims.alone(tmp_path, done=never),
        pytest.raises(
            UserError,
            match=rf"held by process {os.getpid()} on .*, at work since 2",
        ),
        claims.alone(tmp_path, done=never),
    ):
        pass
    with claims.alone(tmp_path, done=never):
        (tmp_path / "run.json").touch()
    assert (tmp_path / claims.LOCK).exists(), "a latecomer may be at the door"
    with claims.alone(tmp_path, done=lambda: True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        claims.alone(tmp_path / "a" / "b", done=never),
    ):
        raise ZeroDivisionError
    assert list(tmp_path.rglob("b")) == []
    (tmp_path / "c").mkdir()
    with claims.alone(tmp_path / "c", done=never):
        pass
    assert list((tmp_path / "c").iterdir()) == []


def test_one_that_was_killed_is_followed_at_once(tmp_path):
    code = (
        "import os, signal, sys; from panda_jax.io import claims\n"
        "with claims.alone(sys.argv[1], done=bool):\n"
        "    open(sys.argv[1] + '/run.json', 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)])
        assert claims.Claims(tmp_path).last(claims.LOCK) >= 0
    naps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims.time, "sleep", naps.append)
        with claims.alone(tmp_path, done=never):
            pass
    assert naps == []


def elsewhere(tmp_path, **changes) -> None:
    """A holder of another machine."""
    place = tmp_path / claims.LOCK / "0"
    place.mkdir(parents=True, exist_ok=True)
    said = {
        "owner": "x",
        "host": "far",
        "pid": 7,
        "machine": "another",
        "since": "2026-01-01T00:00:00Z",
        "stale": 120.0,
        "beat": 0,
        **changes,
    }
    (place / "claim.json").write_text(json.dumps(said))


def test_what_was_killed_while_it_wrote_is_swept(tmp_path):
    """And nothing of who is at work."""
    killed = (
        "import os, signal, sys\n"
        "from panda_jax.io.claims import Claims\n"
        "claim = Claims(sys.argv[1]).take('fleet')\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "claim.release()\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path)])
    assert done.returncode == -9
    (left,) = tmp_path.rglob(".*")
    assert left.parent == tmp_path / "fleet" / "0"
    with files.atomic_file(left.with_name("claim.json")) as written:
        Claims(tmp_path).sweep()
        assert list(tmp_path.rglob(".*")) == [written]
        written.write_text("{}")
    assert not list(tmp_path.rglob(".*"))
    Claims(tmp_path / "none").sweep()


def test_one_of_another_machine_is_watched(tmp_path, clock, monkeypatch):
    elsewhere(tmp_path)

    def beats(seconds):
        clock[0] += seconds
        if clock[0] > 20:
            elsewhere(tmp_path, beat=1)

    monkeypatch.setattr(claims.time, "sleep", beats)
    with (
        pytest.warns(RuntimeWarning, match="process 7 on far: waiting up to"),
        pytest.raises(UserError, match="held by process 7 on far"),
        claims.alone(tmp_path, done=never),
    ):
        pass
    assert 20 < clock[0] < 25


@pytest.mark.parametrize("written", [True, False])
def test_one_that_is_silent_is_followed(tmp_path, clock, monkeypatch, written):
    """Also one that was killed before it could say anything."""
    elsewhere(tmp_path)
    if not written:
        (tmp_path / claims.LOCK / "0" / "claim.json").unlink()

    def passes(seconds):
        clock[0] += seconds

    monkeypatch.setattr(claims.time, "sleep", passes)
    with (
        warnings.catch_warnings(action="ignore"),
        claims.alone(tmp_path, done=never) as claim,
    ):
        assert claims.Claims(tmp_path).last(claims.LOCK) == 1
        assert not claim.lost
    assert 120 <= clock[0] < 125


def test_a_claim_that_could_not_be_written_is_none(tmp_path, monkeypatch):
    def fails(*unused, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(claims, "write_json", fails)
        with pytest.raises(KeyboardInterrupt):
            Claims(tmp_path).take("fleet")
    assert Claims(tmp_path).take("fleet") is not None


def test_a_claim_that_ends_takes_no_later_one_with_it(tmp_path, monkeypatch):
    """Another process may take the folder as soon as it is free."""
    rename, taken = os.rename, []

    def raced(old, new):
        assert claims.Claims(tmp_path).take(claims.LOCK) is None
        rename(old, new)
        taken.append(claims.Claims(tmp_path).take(claims.LOCK))

    monkeypatch.setattr(os, "rename", raced)
    with claims.alone(tmp_path, done=lambda: True):
        pass
    (after,) = taken
    assert after is not None
    said = claims.Claims(tmp_path).holder(claims.LOCK)
    assert said is not None
    assert said["owner"] == after._claims.owner
    after.release()
