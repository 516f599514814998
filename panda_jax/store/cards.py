"""Model cards: what a prompt is, for strangers and for the Hugging Face Hub.

A card is a README.md: front matter in YAML, which the Hub reads, and Markdown.
Names come from files that anyone may have written, so they are escaped: none
ends a cell, a code block or the front matter, or is read as HTML.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from panda_jax.errors import UserError
from panda_jax.interop import peft_code, peft_layout, peft_pairs
from panda_jax.store.prompt_folders import (
    PromptInfo,
    StoredPrompt,
    description,
    layout_of,
)
from panda_jax.tasks import specs

FILE = "README.md"
# Backbones that the Hub knows by another name.
_PUBLISHED = {"minilm-l6": "sentence-transformers/all-MiniLM-L6-v2"}
# Where there is no name that transformers could load.
_UNNAMED = "FOLDER OF ITS BACKBONE"
_TUNING = {"deep": "prefix-tuning", "shallow": "prompt-tuning"}
_METHODS = {
    "prompt": "prompt tuning from scratch",
    "pot": "prompt tuning from the source's prompt",
    "panda": "PANDA: from the source's prompt, distilling from it",
}
# Key of panda.json -> what a card calls it.
_FACTS = {
    "task": "task",
    "method": "method",
    "recipe": "recipe",
    "source": "source prompt",
    "seed": "seed",
    "backbone": "backbone",
    "fingerprint": "fingerprint of the backbone's weights",
    "tokenizer_fingerprint": "fingerprint of its tokenizer",
    "kind": "kind of prompt",
    "prompt_shape": "shape",
    "labels": "labels, as the head's outputs",
    "max_length": "longest text, in pieces",
    "data_fingerprint": "fingerprint of the training data",
    "content_hash": "hash of the prompt",
    "versions": "versions",
}


def card(stored: StoredPrompt, *, base_model: str | None = None) -> str:
    """The README.md of one prompt's folder.

    Args:
      stored: the prompt; the card says what its `panda.json` says.
      base_model: the backbone's name on the Hub; None for what is known of it.
    """
    info = stored.info
    about = description(stored.prompt, info)
    facts = [
        (words, _value(about[key]))
        for key, words in _FACTS.items()
        if about.get(key) not in (None, [], {})
    ]
    parts = f"A {info.kind} prompt of length {stored.prompt.length}"
    if stored.prompt.head:
        parts += " and a head"
    how = _METHODS.get(info.method)
    blocks = [
        _front_matter({_published(info, base_model)}, [info]),
        f"# Prompt for {_text(info.task)}",
        f"{parts} for a frozen language model, as panda_jax and PEFT load "
        "them. The model itself is not here."
        + (f" Trained by {how}." if how else ""),
        *_about_task(info),
        _table(("", ""), facts),
        "## Scores",
        *_scores(info),
        "## Use",
        *_use(stored, base_model),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(info)),
    ]
    return "\n\n".join(blocks) + "\n"


def index(
    prompts: Mapping[str, PromptInfo], *, base_model: str | None = None
) -> str:
    """The README.md of a bank's folder: a table of its prompts.

    Args:
      prompts: folder name -> what its prompt is.
      base_model: as in `card`.

    Raises:
      UserError: one base model for prompts of several.
    """
    backbones = {info.fingerprint or info.backbone for info in prompts.values()}
    if base_model is not None and len(backbones) > 1:
        raise UserError(
            f"base_model is {base_model!r}, expected none: the bank's prompts "
            f"are of {len(backbones)} backbones."
        )
    rows = [
        (
            f"[{_text(name)}]({quote(os.fsencode(name))}/{FILE})",
            *(
                _value(value)
                for value in (
                    info.task,
                    info.method,
                    info.source or "",
                    info.seed,
                    info.backbone or "",
                    info.scores,
                )
            ),
        )
        for name, info in prompts.items()
    ]
    heads = ("prompt", "task", "method", "source", "seed", "backbone", "scores")
    known = {_published(info, base_model) for info in prompts.values()}
    blocks = [
        _front_matter(known, prompts.values()),
        "# Prompt bank",
        "Soft prompts for frozen language models, a folder each, as panda_jax "
        "and PEFT load them. Scores are of the development split, at the step "
        "that was best there.",
        _table(heads, rows),
        "## Use",
        _python("import panda_jax as pj", 'print(pj.PromptBank(".").names)'),
        "`panda-jax rank --target=TASK_OR_PROMPT --sources=.` says which of "
        "them should help another task, `panda-jax train --source=./PROMPT` "
        "starts from one. Each folder's card shows how PEFT loads it.",
    ]
    return "\n\n".join(blocks) + "\n"


def check_base_model(name: str | None) -> None:
    """Refuses what is no name on the Hub, which takes no card with a path.

    Raises:
      UserError: says what a name looks like.
    """
    part = r"[A-Za-z0-9][\w.-]*"
    if name and re.fullmatch(rf"{part}(/{part})?", name, re.ASCII) is None:
        raise UserError(
            f"base_model is {name!r}, expected a name on the Hugging Face Hub, "
            "as google/t5-v1_1-base."
        )


def _front_matter(
    models: set[str | None], prompts: Iterable[PromptInfo]
) -> str:
    """YAML; a JSON text is one, of what every reader of YAML takes."""
    infos = list(prompts)
    lists = {
        "base_model": sorted(filter(None, models)),
        "tags": [
            "panda-jax",
            *sorted({_TUNING[info.kind] for info in infos}),
            *sorted({_plain(info.task) for info in infos}),
        ],
    }
    lines = ["---", "library_name: peft"]
    for name, values in lists.items():
        if values:
            lines.append(f"{name}:")
            lines += [f"- {json.dumps(v, ensure_ascii=False)}" for v in values]
    return "\n".join([*lines, "---"])


def _published(info: PromptInfo, base_model: str | None) -> str | None:
    """The backbone's name on the Hub, where it is known."""
    return base_model or _PUBLISHED.get(info.backbone or "")


def _about_task(info: PromptInfo) -> list[str]:
    if info.task not in specs.names():
        return []
    return [f"The task: {_text(specs.get(info.task).description)}"]


def _scores(info: PromptInfo) -> list[str]:
    if not info.scores:
        return ["None is recorded."]
    rows = [(_text(name), _value(score)) for name, score in info.scores.items()]
    return [
        "On the development split, at the step that was best there:",
        _table(("metric", "score"), rows),
    ]


def _use(stored: StoredPrompt, base_model: str | None) -> list[str]:
    """How to load it, in this folder."""
    info = stored.info
    if info.task_type == peft_layout.CAUSAL:
        ours = [
            "import panda_jax as pj",
            "",
            'prompt = pj.load_prompt(".")  # this folder',
        ]
    elif info.fingerprint is None:
        ours = [
            "from panda_jax import load_backbone",
            "from panda_jax.store import exchange",
            "",
            f'backbone = load_backbone("{_UNNAMED}")',
            'prompt = exchange.import_prompt("peft", ".", backbone=backbone)',
        ]
    else:
        ours = [
            "import panda_jax as pj",
            "",
            f"backbone = pj.load_backbone({info.backbone!r})",
            "prompt = pj.load_prompt("
            '".", fingerprint=backbone.fingerprint)  # this folder',
        ]
    name = _published(info, base_model) or info.backbone
    if name is None or name.startswith("random:"):
        name = _UNNAMED
    shape, head = stored.prompt.vectors.shape, stored.prompt.head
    layout = layout_of(shape, info, head=bool(head))
    outputs = len(head["bias"]) if head else 0
    causal = info.task_type == peft_layout.CAUSAL
    form = _form(layout)
    return [
        _python(*ours),
        "It is a causal language model's: panda_jax stores, compares and "
        "exports it, and has no backbone for it. With PEFT:"
        if causal
        else "`pj.predict(prompt, rows)` answers new rows, `pj.train(..., "
        "source=prompt)` starts another task from it. With PEFT:",
        *_warnings(form),
        _python(peft_code.with_peft(layout, name, outputs=outputs)),
        *_positions(layout),
        *_tried(layout, form, name, outputs=outputs),
    ]


def _form(layout: peft_layout.Layout) -> str:
    """Of the table of pairs: of a T5, what it writes is what counts."""
    text_to_text = layout.task_type == peft_layout.SEQ_2_SEQ
    return peft_pairs.form(layout.kind, layout.task_type, generate=text_to_text)


def _warnings(form: str) -> Iterable[str]:
    """Before lines that the newest pair does not run: which pairs do."""
    groups = peft_pairs.grouped(form)
    if not groups:
        return
    newest = peft_pairs.pairs()[-1]
    outcome = newest.with_peft[form]
    if outcome.runs:
        return
    working = [
        f"transformers {' or '.join(ours)} with PEFT {' or '.join(theirs)}"
        + ("" if found.result == "same" else f" ({_text(found.words)})")
        for ours, theirs, found in groups
        if found.runs
    ]
    gives = _text(outcome.words).rstrip(".")
    yield (
        f"**Not with transformers {newest.transformers} and PEFT "
        f"{newest.peft}**, which give: {gives}. These lines run with "
        f"{'; '.join(working) or 'no pair that was tried'}."
    )


def _positions(layout: peft_layout.Layout) -> Iterable[str]:
    """Where PEFT's outputs of a text begin, and what follows from that."""
    P, task_type = layout.length, layout.task_type
    if task_type == peft_layout.TASKLESS:
        yield (
            "Its file has no task type, and of such a prompt PEFT's model "
            "gives the vectors alone (`model.get_prompt(batch_size)`): called, "
            "it is the model without them. Write the task type that you use "
            "it for into `adapter_config.json`."
        )
    if layout.kind == "deep" or task_type not in peft_code.PER_TOKEN:
        return
    names = peft_code.PER_TOKEN[task_type]
    sliced = " and ".join(f"`{name}[:, {P}:]`" for name in names)
    what = "vectors" if task_type == peft_layout.HEADLESS else "logits"
    yield (
        f"PEFT's {what} begin {P} positions early, with the prompt's own: "
        f"those of the text are {sliced}."
    )
    if task_type == "QUESTION_ANS":
        yield (
            f"Positions found in all of them are {P} too large: subtract {P}. "
            "PEFT does not move the positions that it is given for a loss: "
            f"add {P} to `start_positions` and `end_positions`."
        )


def _tried(
    layout: peft_layout.Layout, form: str, name: str, *, outputs: int
) -> Iterable[str]:
    """What PEFT gives, by versions, and what to do where that is wrong."""
    text_to_text = layout.task_type == peft_layout.SEQ_2_SEQ
    groups = peft_pairs.grouped(form)
    if not groups:
        yield "No versions were tried with prompts of this task type."
        return
    what = "`model.generate`" if text_to_text else "PEFT's model"
    yield f"What {what} gives, with the versions that were tried:"
    heads = ("transformers", "PEFT", "it gives")
    yield _table(
        heads,
        (
            (_text(", ".join(a)), _text(", ".join(b)), _text(outcome.words))
            for a, b, outcome in groups
        ),
    )
    # Where PEFT cannot even be loaded, another one is the answer.
    if all(o.result == "same" or o.at == "loading" for _, _, o in groups):
        return
    if text_to_text:
        yield (
            "Where PEFT's forward pass gives logits, these lines decode "
            "greedily by it:"
        )
        yield _python(peft_code.decoding())
        return
    yield (
        "Without PEFT, these lines give what panda_jax gives with all of these "
        "versions of transformers:"
    )
    yield _python(peft_code.without_peft(layout, name, outputs=outputs))


def _limits(info: PromptInfo) -> Iterable[str]:
    if info.method.startswith("import-"):
        yield "Imported: of its training only what its file says is known."
    else:
        yield "One run with one seed: another seed gives other scores."
    if info.scores:
        yield (
            "The scores are of the split that also chose the step: on new "
            "rows expect less."
        )
    if info.fingerprint is None:
        yield "Its file does not say which weights it was trained on."
    else:
        yield (
            "It means nothing to other weights than those of the fingerprint. "
            "panda_jax refuses them, PEFT does not look."
        )
    if (info.backbone or "").startswith("random:"):
        yield "The backbone's weights are random: it is for tests alone."
    if info.max_length is not None:
        yield f"Texts were cut after {info.max_length} pieces."
    yield (
        "No licence is stated here; see those of the training data and of the "
        "backbone."
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _value(value: Any) -> str:
    """A value of panda.json as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(k)} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        numbers = all(isinstance(item, int) for item in value)
        return (" x " if numbers else ", ").join(map(_value, value))
    return _text(value if isinstance(value, str) else json.dumps(value))


def _text(text: str) -> str:
    """Text in which Markdown and HTML find nothing to format."""
    # Within a word `_` is a letter; `://` would make a link.
    risky = r"[^\w .,:/()-]|(?<![^\W_])_|_(?![^\W_])|:(?=/)"
    return re.sub(risky, lambda sign: f"&#{ord(sign[0])};", _plain(text))


def _plain(text: str) -> str:
    """Text on one line, without what cannot be printed."""
    return " ".join(
        "".join(s if s.isprintable() else " " for s in text).split()
    )
