"""A small grid, and processes that run it and may be killed at any moment.

Run as a program it forks a process for each line that it reads, which costs a
fraction of starting Python and importing JAX anew.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import traceback

from panda_jax.errors import UserError
from panda_jax.experiments.grid.grid import Grid

SMALL = {
    "backbones": "random:bert-tiny",
    "sources": "toy_sentiment,toy_acceptability",
    "targets": "toy_review",
    "methods": "prompt,pot,panda,control",
    "settings": {
        "prompt_length": 4,
        "max_length": 16,
        "train_examples": 40,
        "eval_examples": 16,
        "batch_size": 8,
        "epochs": 10,
        "eval_every": 4,
    },
}
ENDED = "all is done"


class Workers:
    """Starts processes that run `SMALL`; a context manager."""

    def __enter__(self) -> "Workers":
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._parent.stdout is not None
        assert self._parent.stdout.readline() == "ready\n"
        return self

    def start(self, out_dir: pathlib.Path, **options: object) -> "Worker":
        """Begins to run the grid.

        Args:
          out_dir: of the grid; what is printed goes to `out_dir/NUMBER.txt`.
          **options: of `run_grid`; and `grid`, in place of `SMALL`, and
            `mesh`, the settings of `distributed.initialize` for processes that
            train each fleet together, with a device each; and `lacks`, what
            this one cannot read: `prompts` or `data`; and `apart`, how many
            seconds it then waits for the others.
        """
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        out_dir.mkdir(exist_ok=True)
        number = len(list(out_dir.glob("*.txt")))
        output = out_dir / f"{number}.txt"
        output.touch()
        line = {"out_dir": str(out_dir), "output": str(output), **options}
        self._parent.stdin.write(json.dumps(line) + "\n")
        self._parent.stdin.flush()
        return Worker(int(self._parent.stdout.readline()), output)

    def __exit__(self, *unused: object) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(60)


class Worker:
    """A process.

    Attributes:
      pid: its number.
      output: the file that it prints to.
    """

    def __init__(self, pid: int, output: pathlib.Path) -> None:
        self.pid = pid
        self.output = output

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """Ends it without a chance to say anything."""
        os.kill(self.pid, signal.SIGKILL)


def main() -> None:
    """Forks a process for every line of standard input."""
    # What takes long to import, and starts no thread yet.
    from panda_jax.experiments.grid.runner import run_grid
    from panda_jax.parallel import cluster, distributed

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no dead behind
    print("ready", flush=True)
    for line in sys.stdin:
        options = json.loads(line)
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        file = os.open(options.pop("output"), os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        mesh = options.pop("mesh", None)
        if mesh is not None:
            # The other flags stay: random weights depend on them.
            flag = "--xla_force_host_platform_device_count=1"
            os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {flag}"
            distributed.initialize(cluster.Settings(**mesh))
        _lack(options.pop("lacks", None))
        apart = options.pop("apart", distributed.APART_SECONDS)
        distributed.APART_SECONDS = apart
        try:
            run_grid(Grid(**options.pop("grid", SMALL)), **options)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        print(ENDED, flush=True)
        os._exit(0)


def _lack(what: str | None) -> None:
    """As where a machine's disk holds less than those of the others."""
    from panda_jax.experiments.grid import runner

    def fails(*unused: object, **options: object) -> None:
        raise UserError(f"no {what} here")

    name = {"data": "train_fleet", "prompts": "load_prompt"}.get(what or "")
    if name is not None:
        setattr(runner, name, fails)


if __name__ == "__main__":
    main()
