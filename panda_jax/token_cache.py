"""Token arrays on disk, one file for each thing that could change them.

A file's name holds task, split, specification, vocabulary, length and the
contents of the source: whatever changes, the name does, so a stale entry is
never read.  Filling loads TensorFlow and SeqIO; reading loads neither.
"""

import contextlib
import hashlib
import os
import pathlib
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from panda_jax import files
from panda_jax.tasks import sources
from panda_jax.tasks.spec import TaskSpec
from panda_jax.tokenizer import Tokenizer

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]

# Part of every name: another number makes all older files unread.
_VERSION = 1
_NAMES = ("tokens", "segments", "labels")


def load(
    spec: TaskSpec,
    split: str,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    data_dir: files.PathLike | None,
    tfds_data_dir: files.PathLike | None,
    cache_dir: files.PathLike | None,
) -> Arrays:
    """All rows of a split: (tokens [E, T], segments [E, T], labels [E]).

    T is the longest row rounded up to a multiple of 8, at most `max_length`.
    An unreadable file is filled again; a folder that cannot be written costs
    a warning, not the run.

    Raises:
      UserError: missing or malformed data.
    """
    source = sources.find(spec, data_dir=data_dir, tfds_data_dir=tfds_data_dir)
    folder = cache_folder(cache_dir)

    def entry() -> pathlib.Path | None:
        contents = source.fingerprint(split)
        if contents is None:
            return None
        key = (
            f"{_VERSION} {spec.fingerprint} {tokenizer.fingerprint} "
            f"{max_length} {contents}"
        )
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        return folder / f"{spec.name}-{split}-{max_length}-{digest}.npz"

    before = entry()
    arrays = _read(before, spec) if before else None
    if arrays is not None:
        return arrays
    arrays = _fill(
        spec,
        split,
        tokenizer=tokenizer,
        max_length=max_length,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
    )
    # The name must be that of the rows just read.  It is unknown before a
    # download, and another one when a file changed under our hands.
    after = entry()
    if after is not None and before in (None, after):
        _write(after, arrays)
    return arrays


def cache_folder(cache_dir: files.PathLike | None = None) -> pathlib.Path:
    """`cache_dir`, or `PANDA_CACHE_DIR`, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("PANDA_CACHE_DIR")
    if chosen:
        return pathlib.Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "panda_jax"


def _read(path: pathlib.Path, spec: TaskSpec) -> Arrays | None:
    """The arrays of a cache file, None when it is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            tokens, segments, labels = (stored[name] for name in _NAMES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError) as error:
        return _damaged(path, error)
    except (zipfile.BadZipFile, zlib.error) as error:
        return _damaged(path, error)
    number = np.float32 if spec.kind == "regression" else np.int32
    fits = (
        tokens.ndim == 2
        and tokens.shape == segments.shape
        and labels.shape == tokens.shape[:1]
        and tokens.dtype == segments.dtype == np.int32
        and labels.dtype == number
    )
    return (tokens, segments, labels) if fits else _damaged(path, "shapes")


def _damaged(path: pathlib.Path, why: object) -> None:
    warnings.warn(
        f"The token cache file '{path}' is damaged ({why}); it is made again.",
        RuntimeWarning,
        stacklevel=4,
    )


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    try:
        with (
            files.atomic_file(path) as temporary,
            open(temporary, "wb") as file,
        ):
            np.savez(file, **dict(zip(_NAMES, arrays, strict=True)))
    except OSError as error:
        warnings.warn(
            f"The token cache '{path.parent}' cannot be written ({error}); "
            "the next start will tokenize again. Set PANDA_CACHE_DIR to a "
            "folder that can.",
            RuntimeWarning,
            stacklevel=4,
        )


def _fill(
    spec: TaskSpec,
    split: str,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    data_dir: files.PathLike | None,
    tfds_data_dir: files.PathLike | None,
) -> Arrays:
    """Runs the SeqIO task and the encoder's feature converter."""
    with _quiet():
        from panda_jax.tasks import features, registry
    task = registry.task(
        spec.name,
        tokenizer=tokenizer,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
    )
    # A label is a scalar: SeqIO must not cut it to a length.
    lengths = {"inputs": max_length, "segment_ids": max_length, "targets": None}
    dataset = task.get_dataset(lengths, split, shuffle=False)
    convert = features.EncoderFeatureConverter(
        label_dtype=task.output_features["targets"].dtype
    )
    batches = list(convert(dataset, lengths).batch(1024).as_numpy_iterator())
    tokens, segments, labels = (
        np.concatenate([batch[name] for batch in batches])
        for name in ("encoder_input_tokens", "encoder_segment_ids", "labels")
    )
    longest = int((tokens != tokenizer.pad_id).sum(-1).max())
    width = min(max_length, -(-longest // 8) * 8)
    return tokens[:, :width], segments[:, :width], labels


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TensorFlow's libraries print on import off the terminal.

    Some of it is written by C++ straight to descriptor 2 before any log level
    applies.  Python errors are not touched.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
