"""Where in a folder a model's files lie: the hub's cache, SentenceTransformers.

A model of SentenceTransformers is a chain of modules, of which the first is an
encoder in a Hugging Face folder: the folder itself, or `0_Transformer` in it.
What pools and maps its outputs afterwards is not a part of the backbone.
"""

import pathlib

from panda_jax.errors import UserError
from panda_jax.interop.folders import inside, snapshot
from panda_jax.io.files import parse_json

CONFIG = "config.json"
MODULES, ENCODER = "modules.json", "0_Transformer"
# What SentenceTransformers does to texts before the tokenizer reads them.
SENTENCES = "sentence_bert_config.json"
_CLASS = "Transformer"
# A list of a handful of modules.
_MOST_JSON = 1 << 16


def locate(folder: pathlib.Path) -> pathlib.Path:
    """The folder with `config.json` in one that may have it further below.

    A folder of none of these layouts is returned as it is.

    Raises:
      UserError: the cache has no main snapshot of the model, or its modules
        begin with no transformer.
    """
    folder = snapshot(folder)
    listed = inside(folder, MODULES)
    if listed.is_file():
        place = _transformer(listed)
        return inside(folder, place) if place else folder
    older = folder / ENCODER
    if not (folder / CONFIG).exists() and (older / CONFIG).exists():
        return inside(folder, ENCODER)
    return folder


def _transformer(path: pathlib.Path) -> str:
    """Where `modules.json` says that the transformer is; "" for beside it."""
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"more than {_MOST_JSON} bytes")
        modules = parse_json(path.read_text(encoding="utf-8"))
        kinds = {module["type"]: module["path"] for module in modules}
        for kind, place in kinds.items():
            if kind.rpartition(".")[2] == _CLASS:
                return str(place)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as e:
        raise UserError(
            f"{str(path)!r} is no list of SentenceTransformers' modules "
            f"({type(e).__name__}: {e}). Restore it from its source."
        ) from None
    raise UserError(
        f"{str(path)!r} lists the modules {[*kinds][:5]}, expected a "
        f"{_CLASS} among them: only its encoder is a backbone."
    )
