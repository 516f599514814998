"""Ctrl-C while others' code is at work in threads."""

import signal

import pytest

from panda_jax.io import signals


@pytest.fixture(autouse=True)
def _sigint_is_heard():
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_an_interruption_waits_for_the_end_of_the_block():
    done = []

    def block():
        with signals.interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append("after")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_is_heard_at_once():
    done = []

    def block():
        with signals.interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append("after one")
            signal.raise_signal(signal.SIGINT)
            done.append("after two")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["after one"]


def test_what_the_block_raises_goes_on_when_nobody_interrupts():
    with pytest.raises(ValueError, match="theirs"), signals.interrupts_wait():
        raise ValueError("theirs")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_interruptions_are_ignored_they_stay_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.interrupts_wait():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
