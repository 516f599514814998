"""Soft prompts of thunlp's PromptHub and OpenPrompt, from torch files.

Su et al., 2022 (arXiv 2111.06719) released theirs in three forms: a bare
tensor [P, D]; a checkpoint `{"model": tensor, "optimizer": ...}`; and state
dictionaries in which the prompt is called `...embeddings.prompt_embeddings
.weight`, or, by OpenPrompt's template, `...template.soft_embeds`.
"""

import re

import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop import torch_files
from panda_jax.interop.peft import in_fp32
from panda_jax.io.files import PathLike

_NAMES = re.compile(
    r"(.*[./])?(soft_embeds|soft_prompt|prompt_embeddings)(\.weight)?"
)
# An optimizer's moments have the prompt's shape.
_OPTIMIZER = re.compile(r"(optimizer|scheduler)/.*")


def read(path: PathLike) -> np.ndarray:
    """A shallow prompt [P, D], fp32.

    It is the file's only matrix, whatever that is called, or else the one
    that has a soft prompt's name: `soft_embeds`, `soft_prompt` or
    `prompt_embeddings` at the end, with or without `.weight`.

    Raises:
      UserError: as `torch_files.read`; or the file has no such matrix, or
        several; or its numbers are no finite floats.
    """
    tensors = torch_files.read(path)
    matrices = {
        name: array
        for name, array in tensors.items()
        if array.ndim == 2 and not _OPTIMIZER.fullmatch(name)
    }
    named = {n: a for n, a in matrices.items() if _NAMES.fullmatch(n)}
    found = matrices if len(matrices) == 1 else named
    try:
        if len(found) != 1:
            shapes = {n: list(a.shape) for n, a in [*tensors.items()][:5]}
            raise UserError(
                f"{len(found)} of its {len(tensors)} tensors can be the "
                "prompt, expected one: the only matrix, or one whose name "
                "ends in soft_embeds, soft_prompt or prompt_embeddings; got "
                f"{shapes}"
            )
        (array,) = in_fp32(found).values()
    except UserError as error:
        raise UserError(f"The prompt file {str(path)!r}: {error}.") from None
    return array
