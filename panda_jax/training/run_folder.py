"""A run's folder: one process holds it, and only what is the run's is written.

The folder's listing names what the run writes by name; `prompt/` has its own,
so that its files and their listing change at once. The weights of a tuned
backbone lie in `prompt/model/`, which makes both one exchange; `model` is a
link to them.
"""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from typing import Any

from panda_jax.config import registry
from panda_jax.errors import UserError
from panda_jax.io import claims, files, ownership
from panda_jax.io.writers import FILE_NAME as METRICS
from panda_jax.prompts import Prompt
from panda_jax.store import prompt_folders
from panda_jax.store.prompt_folders import PromptInfo, StoredPrompt, save_prompt

VERB = "train"
CHECKPOINTS = "checkpoints"
FAILED = "failed.json"
_MODEL = "model"
_LINK = f"prompt/{_MODEL}"
_FILES = ("run.json", "config.gin", "choice.json", "result.json", METRICS)
# What `interop.hf` and the tokenizers write.
_BACKBONE = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
)
# Files on their way to these names, as `files.atomic_file` calls them.
_ON_ITS_WAY = re.compile(
    rf"\.({'|'.join(map(re.escape, (*_FILES, FAILED, _MODEL)))})"
    r"\.[0-9a-f]{12}(\.\w+)?"
)


def hold(folder: pathlib.Path, held: contextlib.ExitStack) -> claims.Claim:
    """Holds the folder until `held` ends.

    Raises:
      UserError: another process holds it.
    """
    return held.enter_context(
        claims.alone(folder, done=lambda: not _is_under_way(folder))
    )


def end(folder: pathlib.Path) -> None:
    """Removes what a process left that was killed after its result was there.

    Nothing where another is at work, or the folder cannot be written to.
    """
    left = [path for path in folder.glob(".*") if _is_left(path.name)]
    if not left:
        return
    with contextlib.suppress(OSError):
        claim = claims.Claims(folder).take(claims.LOCK)
        if claim is not None:
            try:
                _sweep(folder)
            finally:
                claim.remove()


def _is_left(name: str) -> bool:
    ours = name.startswith(".panda_jax.") and name != ownership.LISTING
    return ours or _ON_ITS_WAY.fullmatch(name) is not None


def _is_under_way(folder: pathlib.Path) -> bool:
    begun, done = (folder / f"{name}.json" for name in ("run", "result"))
    return begun.exists() and not done.exists()


def begin(
    folder: pathlib.Path,
    description: dict[str, Any],
    config: str,
    *,
    overwrite: bool = False,
) -> None:
    """Makes a folder ready for its run, which has no result yet.

    What killed processes left is put right, what release 0.1 left is taken
    over, and what the run is gets written.

    Args:
      folder: held by this process, and of this run, if of any.
      description: the content of `run.json`.
      config: that of `config.gin`.
      overwrite: whatever is in the way may be replaced.

    Raises:
      UserError: files in the way, by name.
    """
    prompt = folder / "prompt"
    tunes = _tunes(description["settings"])
    for part in (prompt, folder / _MODEL):
        ownership.tidy(part, alone=True)
    _sweep(folder)
    resumed = (folder / "run.json").exists()
    if resumed:
        _adopt(folder, description["settings"])
    ownership.check(prompt, VERB, prompt_folders.FILES, overwrite=overwrite)
    grows = (METRICS, CHECKPOINTS, *((_MODEL,) if tunes else ()))
    with ownership.writing(
        folder, VERB, overwrite=overwrite, grows=grows
    ) as new:
        if not resumed:
            files.write_json(new / "run.json", description)
        # A user's notes in the settings of a run that goes on harm nobody.
        theirs = resumed and not ownership.is_free(folder, VERB, "config.gin")
        if not theirs:
            files.write_text(new / "config.gin", config)
    if tunes:
        _link_model(folder)


def lengthen(folder: pathlib.Path, description: dict[str, Any]) -> None:
    """Makes the folder that of the same run, which is to end later.

    The result goes first: a kill in between leaves a run without one, which
    either length goes on from.

    Args:
      folder: held by this process.
      description: the content of `run.json`.
    """
    (folder / "result.json").unlink(missing_ok=True)
    write_json(folder, "run.json", description)


def begin_fleet(root: pathlib.Path, names: Iterable[str]) -> None:
    """Makes sure that the checkpoints in a fleet's folder are a fleet's.

    Args:
      root: the folder.
      names: of the runs' folders in it.

    Raises:
      UserError: a folder of this name is there that no fleet made.
    """
    if any((root / name / METRICS).exists() for name in names):
        ownership.adopt(root, VERB, (), grows=(CHECKPOINTS,))
    with ownership.writing(root, VERB, grows=(CHECKPOINTS,)):
        pass


def write_json(folder: pathlib.Path, name: str, value: Any) -> None:
    """Writes a file of the run's to its folder.

    Raises:
      UserError: one of this name is there that is not the run's.
    """
    with ownership.writing(folder, VERB) as new:
        files.write_json(new / name, value)


def keep(
    folder: pathlib.Path,
    prompt: Prompt,
    info: PromptInfo,
    *,
    model: Callable[[pathlib.Path], None] | None = None,
    overwrite: bool = False,
) -> StoredPrompt:
    """Replaces the run's prompt, and its tuned backbone with it.

    Args:
      folder: of the run.
      prompt: as `save_prompt` takes it.
      info: likewise.
      model: writes the backbone's files to a folder.
      overwrite: as in `begin`.
    """

    def more(new: pathlib.Path) -> None:
        if model is not None:
            model(new / _MODEL)

    stored = save_prompt(
        folder / "prompt",
        prompt,
        info,
        by=VERB,
        overwrite=overwrite,
        more=more,
    )
    if model is not None and not (folder / _MODEL).is_symlink():
        # No links on this disk: a copy, which a kill may leave behind by one.
        with ownership.replacing(
            folder / _MODEL, VERB, overwrite=overwrite
        ) as new:
            model(new)
    return stored


def clear(folder: pathlib.Path) -> None:
    """Removes what a run left that is to begin anew; the user's files stay."""
    if not (folder / ownership.LISTING).exists():
        with contextlib.suppress(UserError):
            settings = files.read_json(folder / "run.json").get("settings")
            if isinstance(settings, dict) and "method" in settings:
                _adopt(folder, settings)
    for inner in sorted(folder.glob("*/run.json")):  # that it needed
        clear(inner.parent)
    for part in ("prompt", *((_MODEL,) if _is_real(folder / _MODEL) else ())):
        ownership.remove(folder / part, VERB)
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    shutil.rmtree(folder / claims.LOCK, ignore_errors=True)
    ownership.remove(folder, VERB)


def _sweep(folder: pathlib.Path) -> None:
    """Removes files on their way; who holds the folder knows them for dead."""
    ownership.sweep(folder, alone=True)
    for path in folder.glob(".*"):
        if _ON_ITS_WAY.fullmatch(path.name) and not _is_real(path):
            path.unlink()


def _adopt(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Takes over a folder of this very run that has no listing yet."""
    prompt, model = folder / "prompt", folder / _MODEL
    tuned = _tunes(settings) and _is_real(model)
    ownership.adopt(
        folder,
        VERB,
        _FILES[:-1],
        grows=(METRICS, CHECKPOINTS, *((_MODEL,) if tuned else ())),
    )
    if not _is_of(prompt, settings):
        return
    ownership.adopt(prompt, VERB, prompt_folders.FILES, whole=True)
    if tuned and not (prompt / _MODEL).exists():
        with ownership.replacing(prompt, VERB) as new:
            _copy(prompt, new)
            _copy(model, new / _MODEL)


def _is_of(prompt: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Whether a prompt says that it is of a run with these settings."""
    with contextlib.suppress(UserError):
        info = prompt_folders.load_prompt(prompt).info
        said = registry.present(settings)
        return all(
            getattr(info, name) == said.get(name)
            for name in ("task", "method", "seed")
        )
    return False


def _tunes(settings: dict[str, Any]) -> bool:
    return registry.present(settings)["method"] == "finetune"


def _is_real(folder: pathlib.Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


def _copy(folder: pathlib.Path, to: pathlib.Path) -> None:
    """All files but the listing; the same on the disk where it has links."""

    def link(source: str, place: str) -> None:
        try:
            os.link(source, place)
        except OSError:
            shutil.copy2(source, place)

    but = shutil.ignore_patterns(ownership.LISTING)
    shutil.copytree(
        folder, to, copy_function=link, ignore=but, dirs_exist_ok=True
    )


def _link_model(folder: pathlib.Path) -> None:
    """Makes `model` the link, in the place of a folder that 0.1 left."""
    link = folder / _MODEL
    if link.is_symlink():
        return
    if _is_real(link) and not (folder / _LINK).exists():
        # Its prompt was never written: it is replaced by itself.
        ownership.adopt(link, VERB, _BACKBONE, whole=True)
        return
    new = link.with_name(f".{_MODEL}.{secrets.token_hex(6)}")
    try:
        new.symlink_to(_LINK, target_is_directory=True)
    except OSError:  # no links on this disk
        return
    if _is_real(link):
        files.exchange(new, link)
        ownership.tidy(link, alone=True)
    else:
        os.replace(new, link)
