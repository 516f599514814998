"""Backbones of the Hugging Face hub by `org/name`: its cache first."""

import pathlib
import re

from panda_jax.errors import UserError, first_line
from panda_jax.interop import hf_layouts, weights
from panda_jax.interop.tensors import INDEX, SINGLE

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PLAIN = (
    hf_layouts.CONFIG,
    hf_layouts.MODULES,
    hf_layouts.SENTENCES,
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_SAFE = (SINGLE, INDEX, "model-*-of-*.safetensors")
_TORCH = (
    weights.TORCH_SINGLE,
    weights.TORCH_INDEX,
    "pytorch_model-*-of-*.bin",
)


def is_name(name: str) -> bool:
    """Whether it may name a model of the hub, and no folder's folder is here.

    `runs/bert` beside a folder `runs` is a path that was misspelt; nobody is
    asked about it.
    """
    known = _NAME.fullmatch(name) is not None
    return known and not pathlib.Path(name).parent.is_dir()


def fetch(name: str) -> pathlib.Path:
    """The folder of a model, from the hub's cache or else from the hub.

    Only what is read here is fetched, and torch's files only where there are
    no safetensors.

    Raises:
      UserError: it is not in the cache and cannot be fetched; says why, and
        what to run where it can be.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed; pip install huggingface_hub"
        raise _absent(name, reason) from None
    reason = "it has no config.json with weights"
    for offline in (True, False):
        for files in (_SAFE, _TORCH):
            wanted = [*_PLAIN, *files]
            below = [f"{hf_layouts.ENCODER}/{each}" for each in wanted]
            try:
                found = snapshot_download(
                    name,
                    allow_patterns=wanted + below,
                    local_files_only=offline,
                )
            # Its errors, and those of what it connects by, have no common kind.
            except Exception as error:
                reason = first_line(error)
                break
            folder = hf_layouts.locate(pathlib.Path(found))
            config = (folder / hf_layouts.CONFIG).is_file()
            if config and weights.are_in(folder):
                return folder
            reason = "it has no config.json with weights"
    raise _absent(name, reason)


def _absent(name: str, reason: str) -> UserError:
    return UserError(
        f"Backbone {name!r} is neither a folder here nor whole in the hub's "
        f"cache, and cannot be fetched ({reason}). Where the hub can be "
        f"reached, run: hf download {name}"
    )
