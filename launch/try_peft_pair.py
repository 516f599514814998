"""What one pair of transformers and PEFT makes of exported prompts.

    python launch/try_peft_pair.py FOLDER TOLERANCE

`try_peft.py` starts it with the pair's folders first on PYTHONPATH.  It reads
what that script exported and prints JSON.  Nothing of panda_jax is imported.
"""

import contextlib
import json
import pathlib
import re
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch

Outcome = dict[str, str]


def main() -> None:
    """Tries every form in the folder."""
    made, tolerance = pathlib.Path(sys.argv[1]), float(sys.argv[2])
    found: dict[str, Any] = {"with_peft": {}, "without_peft": {}}
    for path in sorted(made.glob("*/numbers.npz")):
        numbers = dict(np.load(path))
        with contextlib.chdir(path.parent), torch.no_grad():
            text_to_text = "labels" in numbers
            for how in found:
                use = _text_to_text if text_to_text else _encoder
                for name, one in use(how, numbers, tolerance).items():
                    found[how][f"{path.parent.name}{name}"] = one
    found["versions"] = {
        name: metadata.version(name) for name in ("transformers", "peft")
    }
    print(json.dumps(found))


def _outcome(load: Callable[[], Any], use: Callable[[Any], str]) -> Outcome:
    """How loading, then using ended."""
    at = "loading"
    try:
        loaded = load()
        at = "use"
        return {"result": use(loaded)}
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        # Paths are of folders that nobody will find.
        first = re.sub(r" \(?/[^ )]*\)?", "", first)
        return {"result": "raises", "at": at, "error": first[:200]}


def _run(how: str) -> dict[str, Any]:
    """What a card's lines define."""
    found: dict[str, Any] = {}
    exec(pathlib.Path(f"{how}.txt").read_text(), found)
    return found


def _encoder(
    how: str, numbers: dict[str, np.ndarray], tolerance: float
) -> dict[str, Outcome]:
    real = numbers["attention_mask"].astype(bool)

    def call(defined: dict[str, Any], segments: np.ndarray) -> np.ndarray:
        out = defined["answer" if how == "without_peft" else "model"](
            input_ids=torch.tensor(numbers["input_ids"]).long(),
            attention_mask=torch.tensor(real).long(),
            token_type_ids=torch.tensor(segments).long(),
        )
        if not isinstance(out, torch.Tensor):
            out = _only_output(out)
        if out.ndim == 3:
            # With PEFT, a shallow prompt's own positions come first.
            out = out[:, out.shape[1] - real.shape[1] :]
        return out.numpy()

    def same(got: np.ndarray, expected: np.ndarray) -> bool:
        if got.ndim == 3:
            got, expected = got[real], expected[real]
        return bool(np.abs(got - expected).max() < tolerance)

    def use(defined: dict[str, Any]) -> str:
        segments = numbers["token_type_ids"]
        got = call(defined, segments)
        if same(got, numbers["expected"]):
            return "same"
        if same(got, numbers["without_prompt"]):
            return "no prompt"
        plain = call(defined, 0 * segments)
        if same(plain, numbers["without_segments"]):
            return "segments"
        return "differs"

    return {"": _outcome(lambda: _run(how), use)}


def _only_output(out: Any) -> torch.Tensor:
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1)
    return out["logits" if "logits" in out else "last_hidden_state"]


def _text_to_text(
    how: str, numbers: dict[str, np.ndarray], tolerance: float
) -> dict[str, Outcome]:
    inputs = {
        "input_ids": torch.tensor(numbers["input_ids"]).long(),
        "attention_mask": torch.tensor(numbers["attention_mask"]).long(),
    }

    def logits(defined: dict[str, Any]) -> str:
        labels = torch.tensor(numbers["labels"]).long()
        got = defined["model"](**inputs, labels=labels).logits.numpy()
        return _which(
            lambda name: np.abs(got - numbers[name]).max() < tolerance
        )

    def generate(defined: dict[str, Any]) -> str:
        steps = numbers["expected_tokens"].shape[1]
        if how == "without_peft":
            got = defined["generate"](**inputs, steps=steps)
        else:
            got = defined["model"].generate(
                **inputs, max_new_tokens=steps, do_sample=False
            )
        got = got[:, 1:].numpy()
        got = np.pad(got, ((0, 0), (0, steps - got.shape[1])))
        # What follows the end of sequence does not count.
        ended = np.cumsum(got == 1, 1) - (got == 1) > 0
        got = np.where(ended, 0, got)
        return _which(lambda name: (got == numbers[f"{name}_tokens"]).all())

    found = {" generate": _outcome(lambda: _run(how), generate)}
    if how == "with_peft":
        found[""] = _outcome(lambda: _run(how), logits)
    return found


def _which(same: Callable[[str], Any]) -> str:
    if same("expected"):
        return "same"
    return "no prompt" if same("without_prompt") else "differs"


if __name__ == "__main__":
    main()
