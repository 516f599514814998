"""Claims: at most one holds each, whoever dies, sleeps or comes late."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from panda_jax import UserError, claims
from panda_jax.claims import Claims, parse_shard


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

    def full(path, value):
        if len(failures) < 2 and value["beat"]:
            failures.append(path)
            raise OSError(28, "No space left on device")
        real(path, value)

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
