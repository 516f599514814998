"""Prompts from and to other projects' files, by the name of the format."""

import dataclasses
import pathlib
import re

import numpy as np

from panda_jax import models
from panda_jax.config.registry import EXPORTS, IMPORTS
from panda_jax.errors import UserError, unknown_name
from panda_jax.interop import (
    npy,
    panda_release,
    peft,
    peft_layout,
    prompthub,
    t5x,
)
from panda_jax.io import ownership
from panda_jax.io.files import PathLike, write_text
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config
from panda_jax.prompts import Prompt, prompt_shape
from panda_jax.store import cards
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import (
    INFO,
    PromptBank,
    PromptInfo,
    StoredPrompt,
    check_backbone,
    load_prompt,
    write_prompt,
)
from panda_jax.tasks import specs
from panda_jax.types import Params

_VERB = "export"

# File names that say nothing: the folder's name says more.
_NAMELESS = re.compile(
    r"pytorch_model|adapter_model|task_prompt|prompt|\d+|checkpoint_\d+"
    r"|(numpy_)?checkpoints|(en|de)coder(\.prompt)+|state|default"
)


def import_prompt(
    format: str,
    path: PathLike,
    *,
    backbone: Backbone | None = None,
    task: str | None = None,
    task_index: int | None = None,
) -> StoredPrompt:
    """Reads a prompt that another project wrote.

    Args:
      format: `npy` (google-research/prompt-tuning), `t5x` (a checkpoint of
        its runs), `peft` (a folder of Hugging Face PEFT, or one of ours),
        `prompthub` (thunlp's PromptHub and OpenPrompt), `panda` (the released
        PANDA code).
      path: of the file or folder.
      backbone: that the prompt was trained on.  Files of `panda` and `t5x`
        and folders of ours prove it; of the others it is taken as given, and
        the sizes must fit.  None, which `panda` does not take, leaves the
        prompt unbound: it can be stored, exported and compared, not used.
        Prompts of causal language models are always so.
      task: that it was trained on; by default what the folder says, or the
        name of the file or folder.
      task_index: of a file with the prompts of several tasks, as PEFT's
        MULTITASK_PROMPT_TUNING: which, from 0.

    Returns:
      The prompt, fp32, which `save_prompt` stores.

    Raises:
      UserError: an unknown format; a file that is missing, damaged, hostile
        or holds something else; a prompt of another backbone, by name and
        number; or an index where there is one prompt, or none where there are
        several.
    """
    if format not in IMPORTS:
        raise unknown_name("import format", format, IMPORTS)
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"{str(path)!r} does not exist; expected the file or folder of a "
            f"prompt in the format {format!r}."
        )
    ours = format == "peft" and (path / INFO).exists()
    if task_index is not None and (ours or format != "peft"):
        reason = peft.one_prompt(task_index)
        raise UserError(f"The prompt {str(path)!r}: {reason}.")
    if ours:
        loaded = load_prompt(path)
        stored = StoredPrompt(loaded.prompt, loaded.info)
    else:
        stored = _read(format, path, backbone, task_index)
    if backbone is not None:
        stored = _bound(stored, backbone, path)
        if format == "t5x" and isinstance(backbone.config, T5Config):
            t5x.check_weights(path, backbone.config, backbone.params)
    if task is not None:
        _check_outputs(stored.prompt, task)
        info = dataclasses.replace(stored.info, task=task)
        stored = StoredPrompt(stored.prompt, info)
    return stored


def export_prompt(
    format: str,
    prompt: StoredPrompt,
    out_dir: PathLike,
    *,
    base_model: str | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a prompt for another project.

    Args:
      format: `npy` (shallow prompts without a head: `TASK.npy`) or `peft` (a
        prompt folder, which is one of PEFT, with a model card).
      prompt: as `load_prompt` gives it.
      out_dir: the folder; an earlier export there is replaced.
      base_model: for the card: the backbone's name on the Hugging Face Hub.
      overwrite: files in the way are replaced, whoever wrote them.

    Returns:
      The file or folder that was written.

    Raises:
      UserError: an unknown format, one that cannot hold this prompt, or files
        in the way that are no unchanged export.
    """
    if format not in EXPORTS:
        raise unknown_name("export format", format, EXPORTS)
    cards.check_base_model(base_model)
    folder = pathlib.Path(out_dir).expanduser()
    _check_exportable(prompt)
    if format == "peft":
        with ownership.replacing(folder, _VERB, overwrite=overwrite) as new:
            _write_shared(new, prompt, base_model)
        return folder
    vectors, head = prompt.prompt.vectors, prompt.prompt.head
    task = prompt.info.task
    if prompt.prompt.kind == "deep" or head:
        what = "a head" if head else f"the shape {list(vectors.shape)}"
        raise UserError(
            f"The prompt of task {task!r} has {what}; a .npy file holds "
            "shallow vectors [P, D] alone. Export it as peft."
        )
    plain = re.fullmatch(r"\w[\w.-]*", task)
    name = f"{task if plain else 'prompt'}.npy"
    with ownership.writing(folder, _VERB, overwrite=overwrite) as new:
        npy.write(new / name, vectors)
    return folder / name


def export_bank(
    bank: PromptBank,
    out_dir: PathLike,
    *,
    base_model: str | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a bank as a folder to share: all of it, or nothing.

    Every prompt is exported as `peft` to a folder of its name, and a README.md
    lists them; the folder is a bank wherever it is copied to.

    Args:
      bank: whose prompts; one is in memory at a time.
      out_dir: the folder; as for `export_prompt`.
      base_model: for the cards: the name on the Hugging Face Hub of the
        backbone, of which there may be only one.
      overwrite: as for `export_prompt`; and what only an earlier export has
        is removed.

    Returns:
      The folder.

    Raises:
      UserError: as `export_prompt`, of the first prompt that has a fault.
    """
    cards.check_base_model(base_model)
    folder = pathlib.Path(out_dir).expanduser()
    with ownership.replacing(folder, _VERB, overwrite=overwrite) as new:
        written = {}
        for name in bank.names:
            stored = bank.read(name)
            try:
                _check_exportable(stored)
                _write_shared(new / name, stored, base_model)
            except UserError as error:
                raise UserError(f"Prompt {name!r}: {error}") from None
            written[name] = stored.info
        page = cards.index(written, base_model=base_model)
        write_text(new / cards.FILE, page)
    return folder


def _write_shared(
    folder: pathlib.Path, stored: StoredPrompt, base_model: str | None
) -> None:
    """A prompt folder with its card."""
    # Where the backbone lies here says nothing to others.
    info = dataclasses.replace(stored.info, backbone_folder=None)
    folder.mkdir(exist_ok=True)
    stored = write_prompt(folder, stored.prompt, info)
    text = cards.card(stored, base_model=base_model)
    write_text(folder / cards.FILE, text)


def _check_exportable(stored: StoredPrompt) -> None:
    if stored.prompt.length == 0:
        raise UserError(
            f"The prompt of task {stored.info.task!r} is the head of a "
            "model-tuned backbone: there is no prompt to export."
        )


def _read(
    format: str,
    path: pathlib.Path,
    backbone: Backbone | None,
    task_index: int | None,
) -> StoredPrompt:
    """The prompt of a foreign file, not bound to a backbone yet."""
    task_type = named = None
    if format == "panda":
        config, params = _encoder(backbone)
        prompt = panda_release.read(path, config=config, params=params)
    elif format == "peft":
        prompt, task_type, named = peft.read_folder(path, task_index=task_index)
    elif format == "t5x":
        vectors, stack = t5x.read_prompt(path)
        prompt = Prompt(vectors, {})
        task_type = {
            "encoder": peft_layout.SEQ_2_SEQ,
            "decoder": peft_layout.CAUSAL,
        }[stack]
    else:
        vectors = (npy if format == "npy" else prompthub).read(path)
        prompt = Prompt(vectors, {})
    info = PromptInfo(
        task=_task_of(path),
        backbone=named,
        fingerprint=None,
        kind=prompt.kind,
        method=f"import-{format}",
        task_type=task_type,
    )
    return StoredPrompt(prompt, info)


def _encoder(backbone: Backbone | None) -> tuple[BertConfig, Params]:
    """The backbone that a checkpoint of the released PANDA code needs."""
    if backbone is None:
        raise UserError(
            "The released PANDA checkpoints are held against the BERT that "
            "they are of: give it (--backbone=DIR)."
        )
    if not isinstance(backbone.config, BertConfig):
        raise UserError(
            f"The released PANDA checkpoints are of BERT, {backbone.id!r} "
            "is a text-to-text backbone: give the BERT that they are of."
        )
    return backbone.config, backbone.params


def _bound(
    stored: StoredPrompt, backbone: Backbone, path: pathlib.Path
) -> StoredPrompt:
    """The prompt of this backbone; refuses one that cannot be or is not."""
    prompt, info = stored.prompt, stored.info
    if info.fingerprint is not None:
        check_backbone(
            info,
            backbone.fingerprint,
            backbone.id,
            backbone.tokenizer.identity,
        )
        return stored
    task_type = _task_type(stored, backbone, path)
    if task_type == peft_layout.SEQ_2_SEQ and prompt.kind == "deep":
        layers = models.prompt_layers(backbone.config)
        prompt = dataclasses.replace(prompt, vectors=prompt.vectors[:layers])
    _check_fits(prompt, path, backbone)
    info = dataclasses.replace(
        info,
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        backbone_folder=backbone.folder,
        tokenizer_fingerprint=backbone.tokenizer.identity,
        task_type=task_type,
    )
    return StoredPrompt(prompt, info)


def _task_type(
    stored: StoredPrompt, backbone: Backbone, path: pathlib.Path
) -> str | None:
    """PEFT's task type of a prompt that is to be of this backbone.

    A text-to-text prompt may have none. Vectors before the input of a T5's
    encoder are the same to PEFT whether its decoder is there or not.

    Raises:
      UserError: the prompt is of another family of models.
    """
    said, prompt = stored.info.task_type, stored.prompt
    undecided = said in (None, peft_layout.TASKLESS)
    if backbone.text_to_text:
        headless = said == peft_layout.HEADLESS and prompt.kind == "shallow"
        if said == peft_layout.TASKLESS or headless:
            return peft_layout.SEQ_2_SEQ
    elif undecided and not prompt.head:
        # Without a task type it would be a text-to-text prompt.
        return peft_layout.HEADLESS
    if said == peft_layout.CAUSAL:
        raise UserError(
            f"The prompt {str(path)!r} is one of a causal language model "
            f"({said}), and backbone {backbone.id!r} is none: without "
            "--backbone it can be stored, exported and compared."
        )
    fits = (said == peft_layout.SEQ_2_SEQ) == backbone.text_to_text
    if not undecided and not fits:
        raise UserError(
            f"The prompt {str(path)!r} has PEFT's task_type {said!r}, "
            f"which does not fit backbone {backbone.id!r}: encoders take the "
            f"others and text-to-text backbones {peft_layout.SEQ_2_SEQ!r}."
        )
    return said


def _check_fits(prompt: Prompt, path: pathlib.Path, backbone: Backbone) -> None:
    """Refuses vectors of other sizes than the backbone's, by name."""
    config = backbone.config
    expected = prompt_shape(
        prompt.kind,
        prompt.length,
        layers=models.prompt_layers(config),
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
    )
    names = {
        "deep": ("layers", "", "", "heads", "head width"),
        "shallow": ("", "width"),
    }[prompt.kind]
    for name, got, wanted in zip(
        names, prompt.vectors.shape, expected, strict=True
    ):
        if got != wanted:
            raise UserError(
                f"The prompt {str(path)!r} has {name} {got}, backbone "
                f"{backbone.id!r} has {wanted}: give the backbone that it was "
                "trained on (--backbone)."
            )
    if prompt.head and backbone.text_to_text:
        raise UserError(
            f"The prompt {str(path)!r} has a head, backbone {backbone.id!r} "
            "is text-to-text and takes none: give the backbone that it was "
            "trained on (--backbone)."
        )


def _check_outputs(prompt: Prompt, task: str) -> None:
    """Refuses a head of another number of outputs than the named task's."""
    if not prompt.head or task not in specs.names():
        return
    found, spec = np.shape(prompt.head["bias"])[0], specs.get(task)
    if found != spec.outputs:
        raise UserError(
            f"The prompt's head has {found} outputs, task {task!r} needs "
            f"{spec.outputs}: name the task that it was trained on (--task)."
        )


def _task_of(path: pathlib.Path) -> str:
    """The name of the file, or of the folder where the file's says nothing."""
    path = path.resolve()
    name = path.name if path.is_dir() else path.stem
    for folder in path.parents[:3]:
        if not _NAMELESS.fullmatch(name):
            break
        name = folder.name
    return name
