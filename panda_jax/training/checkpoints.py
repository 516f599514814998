"""Orbax checkpoints of a run: what is trained, its optimizer and position.

The frozen backbone is never in one: it is loaded by id and checked by
fingerprint, so a checkpoint has the size of three prompts.
"""

import contextlib
import pathlib
import shutil
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from panda_jax.errors import StorageError, UserError, first_line
from panda_jax.io import signals
from panda_jax.parallel import distributed
from panda_jax.step.steps import TrainState

# What orbax writes beside the arrays: manifests and metadata.
_OVERHEAD = 64 * 1024
_KEPT = (
    "The last complete checkpoint and the best prompt are kept; make room and "
    "run the same command again."
)


class Checkpoints:
    """Saves in the background; the newest complete ones are kept.

    Args:
      folder: `checkpoints/` of the run folder.
      kept: how many.
    """

    def __init__(self, folder: pathlib.Path, *, kept: int = 2) -> None:
        self.folder = folder
        if jax.process_index() == 0:
            # To orbax any folder named by a number is a checkpoint, for which
            # it would pass over the real ones and remove them.
            for step in _incomplete(folder):
                _set_aside(folder / str(step), "is incomplete")
        distributed.barrier("checkpoints")
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=kept, create=True),
        )

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Begins to save; returns before the files are written.

        Args:
          state: of the run; copied to the host at once, so that the next step
            may donate its buffers.
          progress: JSON values beside it: the runs, in the order of the lanes,
            and what each tracks.

        Raises:
          StorageError: this or the last one could not be written.
        """
        state = _fetched(state)
        arrays = _as_dict(state)
        needed = _OVERHEAD + sum(array.nbytes for array in arrays.values())
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            # Asked first: on a full disk orbax fills the terminal with the
            # tracebacks of its threads.
            raise StorageError(
                f"A checkpoint of {needed} bytes does not fit in "
                f"{str(self.folder)!r}: {free} bytes are free. {_KEPT}"
            )
        step = int(np.ravel(state.step)[0])
        with self._explained():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    progress=ocp.args.JsonSave(progress),
                ),
            )
        if not saved:
            raise StorageError(
                f"The checkpoint of step {step} was not written to "
                f"{str(self.folder)!r}: another process has written a later "
                f"one. {_KEPT}"
            )

    def restore(
        self, like: TrainState
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None when there is none.

        Those that cannot be read are set aside, with a warning, where an older
        one can.

        Args:
          like: a state of the shapes and types to expect, of any number of
            lanes: a fleet may have fewer left than were saved.

        Returns:
          The state of all lanes that were saved, in the order of the runs in
          what was saved beside it; and that.

        Raises:
          UserError: none of them can be read or is of these shapes.
        """
        wrong: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, why = None, None
            try:
                found = self._restored(step, like)
            except UserError as error:
                why = str(error)
            # All go on from the same one.
            said = [each for each in distributed.gathered(why) if each]
            if not said:
                self._pass_over(wrong)
                return found
            wrong[step] = said[0]
        if wrong:
            raise UserError(next(iter(wrong.values())))
        return None

    def _pass_over(self, wrong: dict[int, str]) -> None:
        """Sets aside checkpoints that cannot be read."""
        if jax.process_index() == 0:
            for step, why in wrong.items():
                _set_aside(self.folder / str(step), why.rstrip("."))
        distributed.barrier("checkpoints set aside")
        self._manager.reload()

    def _restored(
        self, step: int, like: TrainState
    ) -> tuple[TrainState, dict[str, Any]]:
        """The checkpoint of a step.

        Raises:
          UserError: it cannot be read or is of other shapes.
        """
        try:
            progress = self._part(step, progress=ocp.args.JsonRestore())
            like = _of_lanes(_fetched(like), len(progress["runs"]))
            state = self._part(
                step, state=ocp.args.StandardRestore(_as_dict(like))
            )
        except Exception as error:  # orbax raises many kinds for a bad file
            raise UserError(
                f"The checkpoint {str(self.folder / str(step))!r} cannot be "
                f"restored: {first_line(error)}. Delete that folder to start "
                "the run again."
            ) from error
        leaves, treedef = jax.tree.flatten(like)
        for name, wanted in _as_dict(like).items():
            leaf = state.get(name)
            if np.shape(leaf) != wanted.shape:
                raise UserError(
                    f"The checkpoint {str(self.folder / str(step))!r} has an "
                    f"array {np.shape(leaf)}, expected {wanted.shape}. Delete "
                    "that folder to start the run again."
                )
            leaves[int(name)] = leaf
        return jax.tree.unflatten(treedef, leaves), progress

    def _part(self, step: int, **wanted: Any) -> Any:
        """One of the two things that a checkpoint holds."""
        found = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        return found[next(iter(wanted))]

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          StorageError: the last checkpoint could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what orbax raises on a full or read-only disk into words.

        Ctrl-C waits for it: orbax would write its threads' tracebacks.
        """
        try:
            with signals.interrupts_wait():
                yield
        except Exception as error:  # orbax passes on its backends' own kinds
            if jax.process_count() > 1:
                # Rather another process that is gone than a disk.
                raise
            raise StorageError(
                f"A checkpoint could not be written to {str(self.folder)!r}: "
                f"{first_line(error)}. {_KEPT}"
            ) from error


def _incomplete(folder: pathlib.Path) -> list[int]:
    """The steps of folders that hold no whole checkpoint."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if path.name.isdecimal()
        and path.is_dir()
        and not all((path / part).is_dir() for part in ("state", "progress"))
    )


def _set_aside(path: pathlib.Path, why: str) -> None:
    """Takes a folder out of the checkpoints; one with files is kept."""
    try:
        path.rmdir()
        where = "It was empty"
    except OSError:
        aside = path.with_name(f"unreadable-{path.name}-{time.time_ns()}")
        path.rename(aside)
        where = f"It is now {aside.name!r}"
    warnings.warn(
        f"The checkpoint {str(path)!r} is passed over: {why}. {where}; the run "
        "goes on from the one before.",
        RuntimeWarning,
        stacklevel=3,
    )


def _fetched(state: TrainState) -> TrainState:
    """On the host; what other processes hold parts of stays where it is."""
    return jax.tree.map(
        lambda x: (
            x
            if isinstance(x, jax.Array) and not x.is_fully_addressable
            else np.asarray(x)
        ),
        state,
    )


def _of_lanes(state: TrainState, count: int) -> TrainState:
    """The same with room for so many lanes; its values no longer count."""
    return jax.tree.map(
        lambda x: (
            x
            if x.shape[0] == count
            else np.empty((count, *x.shape[1:]), x.dtype)
        ),
        state,
    )


def _as_dict(state: TrainState) -> dict[str, Any]:
    """Leaves by zero-padded number: a form that no class name can break.

    Empty arrays (model-tuning's prompt of length 0) are left out: orbax
    refuses them.
    """
    return {
        f"{index:04d}": leaf
        for index, leaf in enumerate(jax.tree.leaves(state))
        if np.size(leaf)
    }
