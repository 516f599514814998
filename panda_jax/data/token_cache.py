"""Token arrays on disk, one file for each thing that could change them.

A file's name holds task, split, specification, vocabulary, length and the
contents of the source: whatever changes, the name does, so a stale entry is
never read.  Filling loads TensorFlow and SeqIO, which the extra `data` brings,
but not of the user's own rows; reading loads neither.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from panda_jax.data import plain
from panda_jax.data.examples import (
    Examples,
    TextExamples,
    from_features,
    longest_row,
)
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import needs_extra
from panda_jax.io import arrays as array_files
from panda_jax.io import files
from panda_jax.tasks import own, sources
from panda_jax.tasks.spec import TaskSpec

Parsed = TypeVar("Parsed", Examples, TextExamples)

# Part of every name: another number makes all older files unread.  Raise it
# when `tasks.views`, `tasks.encoding` or a reader makes other arrays of the
# same files.
_VERSION = 3


def load(
    spec: TaskSpec,
    split: str,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    data_dir: files.PathLike | None,
    tfds_data_dir: files.PathLike | None,
    cache_dir: files.PathLike | None,
) -> Examples:
    """All rows of a split, for an encoder.

    T is the longest row rounded up to a multiple of 8, at most `max_length`.
    An unreadable file is filled again; a folder that cannot be written costs
    a warning, not the run.

    Raises:
      UserError: missing or malformed data.
    """

    def fill() -> dict[str, np.ndarray]:
        if spec.reader == own.READER:
            rows = own.OwnSource(spec).rows(split)
            found = plain.examples(
                spec, rows, tokenizer=tokenizer, max_length=max_length
            )
            width = _rounded(found.tokens.shape[1], max_length)
            return _arrays(found.widened(width))
        return _arrays(
            _fill(
                spec,
                split,
                tokenizer=tokenizer,
                max_length=max_length,
                data_dir=data_dir,
                tfds_data_dir=tfds_data_dir,
            )
        )

    return _cached(
        spec,
        split,
        sources.find(spec, data_dir=data_dir, tfds_data_dir=tfds_data_dir),
        name=f"{spec.name}-{split}-{max_length}",
        key=f"encoder {tokenizer.fingerprint} {max_length}",
        folder=files.cache_folder(cache_dir),
        fill=fill,
        parse=functools.partial(_examples, spec),
    )


def load_text(
    spec: TaskSpec,
    split: str,
    *,
    tokenizer: TextTokenizer,
    input_length: int,
    target_length: int,
    data_dir: files.PathLike | None,
    tfds_data_dir: files.PathLike | None,
    cache_dir: files.PathLike | None,
) -> TextExamples:
    """All rows of a split from text to text; else as `load`."""

    lengths = {"inputs": input_length, "targets": target_length}

    def fill() -> dict[str, np.ndarray]:
        if spec.reader == own.READER:
            found = plain.text_examples(
                spec,
                own.OwnSource(spec).rows(split),
                tokenizer=tokenizer,
                input_length=input_length,
                target_length=target_length,
            )
        else:
            found = _fill_text(
                spec,
                split,
                tokenizer=tokenizer,
                lengths=lengths,
                data_dir=data_dir,
                tfds_data_dir=tfds_data_dir,
            )
        return _text_arrays(found, lengths)

    return _cached(
        spec,
        split,
        sources.find(spec, data_dir=data_dir, tfds_data_dir=tfds_data_dir),
        name=f"{spec.name}_text-{split}-{input_length}-{target_length}",
        key=f"text {tokenizer.fingerprint} {input_length} {target_length}",
        folder=files.cache_folder(cache_dir),
        fill=fill,
        parse=_text_examples,
    )


def _cached(
    spec: TaskSpec,
    split: str,
    source: sources.Source,
    *,
    name: str,
    key: str,
    folder: pathlib.Path,
    fill: Callable[[], dict[str, np.ndarray]],
    parse: Callable[[dict[str, np.ndarray]], Parsed],
) -> Parsed:
    """What `parse` makes of the entry's arrays, read or filled and written.

    Args:
      spec: the task.
      split: of it.
      source: of the rows; its contents are part of the entry's name.
      name: how the file's name begins.
      key: all else that decides the arrays.
      folder: of the cache.
      fill: makes the arrays.
      parse: raises `ValueError` or `KeyError` for arrays that cannot be right.
    """

    def entry() -> pathlib.Path | None:
        contents = source.fingerprint(split)
        if contents is None:
            return None
        whole = f"{_VERSION} {spec.fingerprint} {key} {contents}"
        digest = hashlib.sha256(whole.encode()).hexdigest()[:24]
        return folder / f"{name}-{digest}.npz"

    before = entry()
    if before is not None:
        try:
            return parse(array_files.read_npz(before))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(
                f"The token cache file '{before}' is damaged ({error}); it is "
                "made again.",
                RuntimeWarning,
                stacklevel=3,
            )
    arrays = fill()
    # The name must be that of the rows just read.  It is unknown before a
    # download, and another one when a file changed under our hands.
    after = entry()
    if after is not None and before in (None, after):
        _write(after, arrays)
    return parse(arrays)


def _arrays(examples: Examples) -> dict[str, np.ndarray]:
    """What is stored: small types, and the references as bytes."""
    arrays = examples.row_arrays()
    arrays["segments"] = arrays["segments"].astype(np.uint8)
    references = np.frombuffer(examples.references, np.uint8)
    return arrays | {"references": references}


def _examples(spec: TaskSpec, arrays: dict[str, np.ndarray]) -> Examples:
    tokens, segments = arrays["tokens"], arrays["segments"]
    labels, question = arrays["labels"], arrays["question"]
    R, T = tokens.shape
    label_shape = {"tags": (R, T), "span": (R, 2)}.get(spec.kind, (R,))
    number = np.float32 if spec.kind == "regression" else np.int32
    spans = {
        name: arrays[name]
        for name in ("char_starts", "char_ends")
        if spec.kind == "span"
    }
    if not (
        min(R, T) > 0
        and segments.shape == (R, T)
        and labels.shape == label_shape
        and labels.dtype == number
        and question.shape == (R,)
        and tokens.dtype == question.dtype == np.int32
        and segments.dtype == arrays["references"].dtype == np.uint8
        and arrays["cut"].shape == (R,)
        and arrays["cut"].dtype == np.bool_
        and all(
            array.shape == (R, T) and array.dtype == np.int32
            for array in spans.values()
        )
    ):
        raise ValueError("shapes")
    steps = np.diff(question, prepend=np.int32(0))
    if question[0] != 0 or steps.min() < 0 or steps.max() > 1:
        raise ValueError("questions")
    return Examples(
        kind=spec.kind,
        tokens=tokens,
        segments=segments.astype(np.int32),
        labels=labels,
        question=question,
        references=arrays["references"].tobytes(),
        cut=arrays["cut"],
        **spans,
    )


def _text_examples(arrays: dict[str, np.ndarray]) -> TextExamples:
    inputs, targets = arrays["inputs"], arrays["targets"]
    references, cut = arrays["references"], arrays["cut"]
    if not (
        inputs.ndim == targets.ndim == 2
        and len(inputs) == len(targets)
        and min(*inputs.shape, *targets.shape) > 0
        and inputs.dtype == targets.dtype == np.int32
        and references.dtype == np.uint8
        and cut.dtype == np.bool_
        and cut.shape == (len(inputs),)
    ):
        raise ValueError("shapes")
    return TextExamples(inputs, targets, references.tobytes(), cut)


def _write(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    try:
        files.remove_abandoned(path.parent, suffix=path.suffix)
        with (
            files.atomic_file(path) as temporary,
            open(temporary, "wb") as file,
        ):
            np.savez(file, **arrays)
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
) -> Examples:
    """Runs the SeqIO task and the encoder's feature converter."""
    with _filling(spec, split):
        from panda_jax.tasks import features, registry
    task = registry.task(
        spec.name,
        tokenizer=tokenizer,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
    )
    lengths = features.sequence_lengths(spec, max_length)
    dataset = task.get_dataset(lengths, split, shuffle=False)
    convert = features.EncoderFeatureConverter(spec)
    columns = _columns(convert(dataset, lengths))
    longest = longest_row(columns["encoder_input_tokens"])
    return from_features(spec.kind, columns, _rounded(longest, max_length))


def _fill_text(
    spec: TaskSpec,
    split: str,
    *,
    tokenizer: TextTokenizer,
    lengths: Mapping[str, int],
    data_dir: files.PathLike | None,
    tfds_data_dir: files.PathLike | None,
) -> TextExamples:
    """Runs the SeqIO task."""
    with _filling(spec, split):
        import seqio

        from panda_jax.tasks import registry
    task = registry.text_task(
        spec.name,
        tokenizer=tokenizer,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
    )
    # What has a piece more than it may have is cut, and told apart by that.
    longer = {name: length + 1 for name, length in lengths.items()}
    dataset = task.get_dataset(longer, split, shuffle=False)
    columns = _columns(seqio.trim_and_pad_dataset(dataset, longer))
    references = b"[" + b",".join(columns["reference"]) + b"]"
    cut, kept = np.zeros(len(columns["reference"]), bool), {}
    for name, length in lengths.items():
        ids = columns[name].astype(np.int32)
        long = ids[:, length] != 0
        ids[long, length - 1] = tokenizer.eos_id
        cut |= long
        kept[name] = ids[:, :length]
    return TextExamples(**kept, references=references, cut=cut)


def _text_arrays(
    found: TextExamples, lengths: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """What is stored of texts: ids as wide as the longest row, rounded."""
    assert found.cut is not None
    arrays = {
        "references": np.frombuffer(found.references, np.uint8),
        "cut": found.cut,
    }
    for name, ids in (("inputs", found.inputs), ("targets", found.targets)):
        width = _rounded(longest_row(ids), lengths[name])
        kept = ids[:, :width]
        arrays[name] = np.pad(kept, ((0, 0), (0, width - kept.shape[1])))
    return arrays


def _columns(dataset: Any) -> dict[str, np.ndarray]:
    """The features of all examples, stacked."""
    batches = list(dataset.batch(1024).as_numpy_iterator())
    return {
        name: np.concatenate([batch[name] for batch in batches])
        for name in batches[0]
    }


def _rounded(longest: int, most: int) -> int:
    """Up to a multiple of 8, which suits accelerators, at most `most`."""
    return min(most, -(-longest // 8) * 8)


@contextlib.contextmanager
def _filling(spec: TaskSpec, split: str) -> Iterator[None]:
    """For the imports that filling needs, silent but for what is missing."""
    what = (
        f"The {split} rows of task {spec.name!r} are not in the token cache "
        "(PANDA_CACHE_DIR) with this tokenizer and length; filling it"
    )
    with needs_extra("data", what), _quiet():
        yield


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
