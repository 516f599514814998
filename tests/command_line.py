"""The command line as a user meets it, in this process."""

from panda_jax import cli


def mistake(capsys, *argv: str) -> str:
    """A command that must end with exit code 2 and one message."""
    capsys.readouterr()
    assert cli.main(list(argv)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    messages = [x for x in error.splitlines() if x.startswith("panda-jax:")]
    assert len(messages) == 1, error
    return messages[0]
