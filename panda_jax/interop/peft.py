"""The tensors in which Hugging Face PEFT keeps prompts: names and shapes.

A shallow prompt is PEFT's PROMPT_TUNING, `prompt_embeddings` [P, D].  A deep
prompt is its PREFIX_TUNING, `prompt_embeddings` [P, L * 2 * D], which PEFT
views as [P, L * 2, H, K] with the keys of a layer just before its values (of
an encoder-decoder in the order of `peft_layout`).  What else is read is named
there.  A multi-task prompt has two more, `prefix_task_cols` [N, P, R] and
`prefix_task_rows` [N, R, D], whose product for a task is a factor of its
vectors.  The head is BERT's `classifier`, for sequences or tokens, or its
`qa_outputs`, [C, D].

The errors here do not name the folder: whoever knows it adds it.
"""

import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop import peft_layout, torch_files
from panda_jax.interop import tensors as tensor_files
from panda_jax.interop.folders import inside, json_inside
from panda_jax.interop.peft_layout import HEADS, Layout
from panda_jax.io.files import write_json
from panda_jax.prompts import Prompt

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
# What PEFT wrote before it knew safetensors, and still does on request.
TORCH_TENSORS = "adapter_model.bin"
VECTORS = "prompt_embeddings"
COLUMNS, ROWS = "prefix_task_cols", "prefix_task_rows"
# Types whose numbers fp32 holds exactly.
_EXACT = (np.float32, np.float16, ml_dtypes.bfloat16)


def to_tensors(prompt: Prompt, layout: Layout) -> dict[str, np.ndarray]:
    """The tensors of PEFT's adapter file, fp32 and contiguous."""
    rows = np.asarray(prompt.vectors, np.float32)
    if prompt.kind == "deep":
        L, _, P, H, K = rows.shape
        pairs = np.zeros((P, layout.pairs, 2, H, K), np.float32)
        pairs[:, layout.order(L)] = np.moveaxis(rows, 2, 0)
        rows = pairs.reshape(P, layout.pairs * 2 * H * K)
    tensors = {VECTORS: rows}
    if prompt.head:
        kernel, bias = _head_names(HEADS[layout.task_type])
        tensors[kernel] = np.asarray(prompt.head["kernel"], np.float32).T
        tensors[bias] = np.asarray(prompt.head["bias"], np.float32)
    # safetensors writes the memory as it lies, whatever the strides say.
    return {name: np.ascontiguousarray(t) for name, t in tensors.items()}


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    layout: Layout,
    *,
    layers: int | None = None,
    task_index: int | None = None,
) -> Prompt:
    """The inverse of `to_tensors`.

    Args:
      tensors: the content of PEFT's adapter file.
      layout: what its configuration says.
      layers: as in `Layout.shape`.
      task_index: which task's prompt, of a file with several.

    Raises:
      UserError: a tensor is missing, unknown, or of another shape; or the
        file has no task of this index, or several and none is asked for.
    """
    head_names = _head_names(HEADS[layout.task_type])
    expected = {VECTORS, COLUMNS, ROWS} if layout.multitask else {VECTORS}
    plain = len(expected)
    if {*head_names} & {*tensors}:
        expected |= {*head_names}
    if set(tensors) != expected:
        raise UserError(
            f"got the tensors {sorted(tensors)}, expected {sorted(expected)}"
        )
    P, D = layout.length, layout.width
    columns = layout.pairs * 2 * D if layout.kind == "deep" else D
    check_shape(VECTORS, tensors[VECTORS], (layout.rows, columns))
    vectors = tensors[VECTORS][:P]
    if layout.multitask:
        factor = _factor(tensors, layout, task_index)
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = in_fp32({VECTORS: vectors * factor})[VECTORS]
    elif task_index is not None:
        raise one_prompt(task_index)
    if layout.kind == "deep":
        vectors = unfold(vectors, layout.pairs, layout.heads)
        vectors = vectors[layout.order(layout.shape(layers)[0])]
    head = linear_head(tensors, head_names, D) if len(expected) > plain else {}
    return Prompt(np.ascontiguousarray(vectors), head)


def write_folder(folder: pathlib.Path, prompt: Prompt, layout: Layout) -> None:
    """Writes PEFT's two files into a folder; for length 0 only the tensors."""
    tensor_files.save(folder / TENSORS, to_tensors(prompt, layout))
    if layout.length:
        config = peft_layout.to_config(layout, head=bool(prompt.head))
        write_json(folder / CONFIG, config)


def _factor(
    tensors: Mapping[str, np.ndarray], layout: Layout, index: int | None
) -> np.ndarray:
    """[P, D]: what a multi-task prompt's shared vectors are times for a task.

    Raises:
      UserError: a factor of another shape, or `index` is none of the tasks'.
    """
    columns, rows = tensors[COLUMNS], tensors[ROWS]
    if columns.ndim != 3 or not columns.size:
        raise UserError(
            f"tensor {COLUMNS!r} has shape {list(columns.shape)}, expected "
            "[tasks, P, rank]"
        )
    N, _, rank = columns.shape
    check_shape(COLUMNS, columns, (N, layout.rows, rank))
    check_shape(ROWS, rows, (N, rank, layout.width))
    if index is None and N > 1:
        raise UserError(
            f"it holds the prompts of {N} tasks: say which by "
            f"--task_index=0 to {N - 1}"
        )
    if index is not None and not 0 <= index < N:
        raise UserError(
            f"task_index is {index}, expected 0 to {N - 1}: it holds the "
            f"prompts of {N} tasks"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return columns[index or 0] @ rows[index or 0]


def one_prompt(task_index: int) -> UserError:
    """The error for an index into a file that has one prompt."""
    return UserError(
        f"task_index is {task_index}, expected none: it holds one prompt"
    )


def read_folder(
    folder: pathlib.Path, *, task_index: int | None = None
) -> tuple[Prompt, str, str | None]:
    """A prompt from a folder that PEFT wrote.

    Args:
      folder: with `adapter_config.json`, and `adapter_model.safetensors` or
        `adapter_model.bin`.
      task_index: as in `from_tensors`.

    Returns:
      The prompt, fp32; PEFT's task type or `TASKLESS`; and the name of the
      backbone, where the folder says one. A deep prompt of an encoder-decoder
      has as many layers as the file has pairs: the decoder's are the first of
      them.

    Raises:
      UserError: a file is missing, damaged, links to outside the folder, or
        holds another kind of adapter.
    """
    config = json_inside(folder, CONFIG, what="adapter configuration")
    path, old = inside(folder, TENSORS), inside(folder, TORCH_TENSORS)
    try:
        layout = peft_layout.from_config(config)
        if path.is_file():
            tensors = tensor_files.read(path, fix="copy it again")
        elif old.is_file():
            tensors = torch_files.read(old)
        else:
            raise UserError(f"{TENSORS} is missing")
        prompt = from_tensors(in_fp32(tensors), layout, task_index=task_index)
        return prompt, layout.task_type, peft_layout.base_model(config)
    except UserError as error:
        reason = str(error).rstrip(".")
    raise UserError(f"PEFT folder {str(folder)!r}: {reason}.")


def _head_names(module: str | None) -> tuple[str, str]:
    return f"base_model.{module}.weight", f"base_model.{module}.bias"


def unfold(rows: np.ndarray, pairs: int, heads: int) -> np.ndarray:
    """[P, pairs * 2 * H * K] -> [pairs, 2, P, H, K], as in P-tuning v2."""
    P, columns = rows.shape
    parts = rows.reshape(P, pairs, 2, heads, columns // (pairs * 2 * heads))
    return np.moveaxis(parts, 0, 2)


def linear_head(
    tensors: Mapping[str, np.ndarray], names: tuple[str, str], width: int
) -> dict[str, np.ndarray]:
    """Our head from torch's weight [C, D] and bias [C], by their names.

    Raises:
      UserError: the two do not fit each other or the width.
    """
    kernel, bias = names
    C = tensors[bias].shape[0] if tensors[bias].ndim else 0
    check_shape(bias, tensors[bias], (C,))
    check_shape(kernel, tensors[kernel], (C, width))
    return {
        "kernel": np.ascontiguousarray(tensors[kernel].T),
        "bias": tensors[bias],
    }


def check_shape(
    name: str, array: np.ndarray, expected: tuple[int, ...]
) -> None:
    """Refuses an array of another shape, by name.

    Raises:
      UserError: it has one.
    """
    if array.shape != expected:
        raise UserError(
            f"tensor {name!r} has shape {list(array.shape)}, expected "
            f"{list(expected)}"
        )


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads an adapter file of ours without torch and without trusting it.

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
    return in_fp32(tensors)


def in_fp32(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same numbers as fp32.

    Raises:
      UserError: a tensor is of a type whose numbers fp32 cannot hold, or has
        NaN or infinities.
    """
    for name, array in tensors.items():
        if array.dtype not in _EXACT:
            raise UserError(
                f"tensor {name!r} is of type {array.dtype}, expected float32, "
                "float16 or bfloat16"
            )
        if not np.isfinite(array).all():
            raise UserError(
                f"tensor {name!r} holds NaN or infinite values: its training "
                "diverged or the file is damaged; train it again"
            )
    return {n: np.asarray(array, np.float32) for n, array in tensors.items()}
