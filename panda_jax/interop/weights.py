"""The weights of a Hugging Face folder, in whichever files they lie.

safetensors where there are any, else `pytorch_model.bin`, by the reader that
executes nothing; either in one file, or in shards that an index names.
"""

import pathlib

from panda_jax.errors import UserError
from panda_jax.interop import tensors, torch_files
from panda_jax.interop.folders import inside, json_inside
from panda_jax.interop.tensors import INDEX, SINGLE, Stored

TORCH_SINGLE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
_KINDS = {
    ".safetensors": ("safetensors", SINGLE, INDEX),
    ".bin": ("torch", TORCH_SINGLE, TORCH_INDEX),
}
_FIX = "download it again"


def are_in(folder: pathlib.Path) -> bool:
    """Whether a folder has weights under any of their names."""
    return any(
        (folder / name).is_file()
        for _, *names in _KINDS.values()
        for name in names
    )


def read_folder(folder: pathlib.Path) -> dict[str, Stored]:
    """The tensors of a folder by name.

    Nothing but headers is read before a tensor is asked for.

    Raises:
      UserError: no weights, a damaged file, or an index that names a file
        outside the folder or disagrees with what the files hold.
    """
    for ending, (_, single, index) in _KINDS.items():
        if (folder / single).is_file():
            return _header(inside(folder, single))
        if (folder / index).is_file():
            return _shards(folder, index, ending)
    raise UserError(
        f"The weights file {str(folder / SINGLE)!r} does not exist, nor "
        f"{INDEX}, {TORCH_SINGLE} or its index. Expected a Hugging Face "
        "folder with config.json, weights and the tokenizer's files."
    )


def _shards(folder: pathlib.Path, name: str, ending: str) -> dict[str, Stored]:
    index = folder / name
    placed = json_inside(folder, name, what="index").get("weight_map")
    if not isinstance(placed, dict) or not all(
        isinstance(file, str) for file in placed.values()
    ):
        raise UserError(
            f"{str(index)!r} holds no weight_map of tensor to file: {_FIX}."
        )
    found: dict[str, Stored] = {}
    for shard in sorted(set(placed.values())):
        path = inside(folder, shard)
        if path.suffix != ending or not path.is_file():
            raise UserError(
                f"{str(index)!r} names the file {shard!r}, which is no "
                f"{_KINDS[ending][0]} file in the folder: {_FIX}."
            )
        named = {name for name, file in placed.items() if file == shard}
        held = _header(path)
        if named != held.keys():
            raise UserError(
                f"{str(path)!r} and {name} disagree. Only the index has "
                f"{sorted(named - held.keys())[:5]}, only the file has "
                f"{sorted(held.keys() - named)[:5]}: {_FIX}."
            )
        found |= held
    return found


def _header(path: pathlib.Path) -> dict[str, Stored]:
    if path.suffix == ".bin":
        return torch_files.header(path)
    return tensors.header(path, fix=_FIX)
