"""The layout in which Hugging Face PEFT keeps prompts: files, names, shapes.

A shallow prompt is PEFT's PROMPT_TUNING, `prompt_embeddings` [P, D].  A deep
prompt is its PREFIX_TUNING, `prompt_embeddings` [P, L * 2 * D], which PEFT
views as [P, L * 2, H, K] with the keys of a layer just before its values.
The head is the `classifier` of a `*ForSequenceClassification` model, [C, D].

The errors here do not name the folder: whoever knows it adds it.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop import tensors as tensor_files
from panda_jax.prompts import Prompt

VECTORS = "prompt_embeddings"
KERNEL = "base_model.classifier.weight"
BIAS = "base_model.classifier.bias"

_TYPES = {"deep": "PREFIX_TUNING", "shallow": "PROMPT_TUNING"}


def to_tensors(prompt: Prompt) -> dict[str, np.ndarray]:
    """The tensors of PEFT's adapter file, fp32 and contiguous."""
    vectors = np.asarray(prompt.vectors, np.float32)
    if prompt.kind == "deep":
        vectors = np.moveaxis(vectors, 2, 0)
        P, L, two, H, K = vectors.shape
        vectors = vectors.reshape(P, L * two * H * K)
    tensors = {VECTORS: vectors}
    if prompt.head:
        tensors[KERNEL] = np.asarray(prompt.head["kernel"], np.float32).T
        tensors[BIAS] = np.asarray(prompt.head["bias"], np.float32)
    # safetensors writes the memory as it lies, whatever the strides say.
    return {name: np.ascontiguousarray(t) for name, t in tensors.items()}


def from_tensors(
    tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> Prompt:
    """The inverse of `to_tensors`.

    Args:
      tensors: the content of PEFT's adapter file.
      shape: the shape that the prompt's vectors must have, [L, 2, P, H, K] or
        [P, D] (see `vectors_shape`).

    Raises:
      UserError: a tensor is missing, unknown, or of another shape.
    """
    head_names = {KERNEL, BIAS} & set(tensors)
    expected = {VECTORS, KERNEL, BIAS} if head_names else {VECTORS}
    if set(tensors) != expected:
        raise UserError(
            f"got the tensors {sorted(tensors)}, expected {sorted(expected)}"
        )
    deep = len(shape) == 5
    L, two, P, H, K = shape if deep else (1, 1, shape[0], 1, shape[1])
    D = H * K
    _check_shape(VECTORS, tensors[VECTORS], (P, L * two * D))
    vectors = tensors[VECTORS]
    if deep:
        vectors = np.moveaxis(vectors.reshape(P, L, two, H, K), 0, 2)
    head = {}
    if head_names:
        C = tensors[BIAS].shape[0] if tensors[BIAS].ndim else 0
        _check_shape(BIAS, tensors[BIAS], (C,))
        _check_shape(KERNEL, tensors[KERNEL], (C, D))
        head = {
            "kernel": np.ascontiguousarray(tensors[KERNEL].T),
            "bias": tensors[BIAS],
        }
    return Prompt(np.ascontiguousarray(vectors), head)


def _check_shape(
    name: str, array: np.ndarray, expected: tuple[int, ...]
) -> None:
    if array.shape != expected:
        raise UserError(
            f"tensor {name!r} has shape {list(array.shape)}, expected "
            f"{list(expected)}"
        )


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads an adapter file without torch and without trusting it.

    Raises:
      UserError: the file is truncated or otherwise damaged, or a tensor is
        not fp32 or holds NaN or infinities.
    """
    tensors = tensor_files.read(
        path, fix="restore the file or store the prompt again"
    )
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise UserError(
                f"tensor {name!r} is of type {array.dtype}, expected float32"
            )
        if not np.isfinite(array).all():
            raise UserError(
                f"tensor {name!r} holds NaN or infinite values: its training "
                "diverged or the file is damaged; train it again"
            )
    return tensors


def adapter_config(prompt: Prompt) -> dict[str, Any]:
    """The `adapter_config.json` with which PEFT loads `to_tensors(prompt)`.

    PEFT reads what is None here from the model that it is given.
    """
    shape = prompt.vectors.shape
    deep = prompt.kind == "deep"
    D = shape[3] * shape[4] if deep else shape[1]
    config = {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": ["classifier"] if prompt.head else None,
        "num_attention_heads": shape[3] if deep else None,
        "num_layers": shape[0] if deep else None,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.length,
        "peft_type": _TYPES[prompt.kind],
        "revision": None,
        "task_type": "SEQ_CLS" if prompt.head else "SEQ_2_SEQ_LM",
        "token_dim": D,
    }
    if deep:
        return config | {"encoder_hidden_size": D, "prefix_projection": False}
    return config | {"prompt_tuning_init": "RANDOM"}


def vectors_shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of `Prompt.vectors` that an `adapter_config.json` describes.

    Raises:
      UserError: it describes something other than a plain prompt or prefix.
    """
    kinds = {name: kind for kind, name in _TYPES.items()}
    kind = kinds.get(str(config.get("peft_type")))
    if kind is None:
        raise UserError(
            f"peft_type is {config.get('peft_type')!r}, expected "
            f"{' or '.join(map(repr, kinds))}"
        )
    if config.get("prefix_projection"):
        raise UserError(
            "prefix_projection is true, expected a prefix without the "
            "re-parameterising MLP"
        )
    P, D = _size(config, "num_virtual_tokens"), _size(config, "token_dim")
    if kind == "shallow":
        return (P, D)
    L, H = _size(config, "num_layers"), _size(config, "num_attention_heads")
    if D % H:
        raise UserError(f"token_dim {D} is no multiple of the {H} heads")
    return (L, 2, P, H, D // H)


def _size(config: Mapping[str, Any], name: str) -> int:
    size = config.get(name)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"{name} is {size!r}, expected a positive integer")
    return size
