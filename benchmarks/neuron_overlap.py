"""Is scoring a bank by neuron overlap faster than PromptHub's loop?

    python benchmarks/neuron_overlap.py --prompthub=DIR --out=FILE.json

DIR is a checkout of thunlp/Prompt-Transferability (Su et al., 2022). Ours is
`pj.score(metrics=("on",))` of a bank of N random shallow prompts on disk. Its
peer is PromptHub (2.0): `activated_neuron` once a prompt, then
`neuron_similarity` once a pair, both as they are, their files included. Four
cases: N prompts for one target and for each other, each for the first time
(nothing kept of what was read; programs are compiled) and again (ours from its
cache, theirs from its files, without another forward pass).

Seconds are those of one prompt: one forward pass (the first time) and one pair
a target. PromptHub takes as long for each, so it does `--rows` of the N prompts
(`--pair_rows` where each has N pairs), and ours all N; `facts` say how many of
each were timed, and `whole_seconds` what N prompts take at that rate. With
`--rows=N --pair_rows=N` nothing is extrapolated.

What the two give is compared first: the neurons, our overlap with that of 1.0's
`ActivatedNeurons` (2.0 has none), and 2.0's similarity, the cosine of what is
not binarised, layer by layer.

PromptHub asks for libraries of its day, so its class is driven without its
initialiser: the two methods find on it a frozen backbone (ours, in
transformers), a prompt, and a loader of one text. Left out are OpenPrompt's
tokenizing and templates, which would only take time; the text is ours, `[CLS]
[SEP]`. They read position 0, so `[CLS]` comes first there, with the position id
that it has behind our prompt: attention does not see the order. Hooks that it
leaves on the backbone, more with every prompt, are taken off. It runs the
backbone's head for masked words, as it is (`PromptHub`), or without one
(`PromptHub, no head`), with one thread or all, whichever is faster here.
"""

import ast
import importlib
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
import time
import types
import unittest.mock
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import turns
from turns import Way

OURS, HUB, BODY = "panda-jax", "PromptHub", "PromptHub, no head"
# Of theirs. What 'bert-' in it stands for is never fetched.
NAME, TASK = "bert-tiny", "sst2"
TOLERANCE = 1e-3


class Work(NamedTuple):
    """What is asked of a way.

    Attributes:
      folder: with backbone/, bank/, target/ and vectors.npy.
      prompts: N.
      square: whether each prompt is scored for all N, or for the first alone.
      again: whether activations are kept from before.
      rows: prompts that the peer does, and whose outputs are compared.
    """

    folder: pathlib.Path
    prompts: int
    square: bool
    again: bool
    rows: int

    @property
    def targets(self) -> int:
        """Pairs a prompt."""
        return self.prompts if self.square else 1


def ours(work: Work) -> Way:
    """A call of `pj.score` for the whole bank."""
    import panda_jax as pj
    from panda_jax.store.prompt_folders import content_hash
    from panda_jax.transfer.probing import Ask, Prober, rows_without_text

    backbone = pj.load_backbone(str(work.folder / "backbone"))
    bank = pj.PromptBank(work.folder / "bank")
    targets = bank if work.square else pj.PromptBank(work.folder / "target")

    def score(**options: Any) -> np.ndarray:
        found = pj.score(
            sources=bank,
            targets=targets,
            metrics=("on",),
            backbone=backbone,
            **options,
        )
        return found.values["on"]

    def run(count: int) -> None:
        for _ in range(count):
            if not work.again:
                _new_cache(work.folder)
            score()

    _new_cache(work.folder)
    few = [bank.read(name).prompt for name in bank.names[: work.rows]]
    text = rows_without_text(backbone)
    asks = [
        Ask(lambda p=p: p.vectors, p.vectors.shape, content_hash(p), text)
        for p in few
    ]
    neurons = np.stack(Prober(backbone, cached=False).read(asks, "neurons"))
    cosines = [
        score(on_binarised=False, on_layers=f"{layer}:{layer + 1}")
        for layer in range(backbone.config.layers)
    ]
    outputs = {
        "neurons": neurons,
        "overlap": score()[: work.rows],
        "cosines": np.stack(cosines, -1)[: work.rows],
    }
    return Way(run, outputs, {"timed_prompts": work.prompts})


def _new_cache(folder: pathlib.Path) -> None:
    """From here on nothing that was read before is found."""
    os.environ["PANDA_CACHE_DIR"] = tempfile.mkdtemp(dir=folder, prefix="cache")


def theirs(work: Work, source: pathlib.Path, head: bool) -> Way:
    """PromptHub's methods, prompt by prompt and pair by pair."""
    import torch

    hub = _hub(work.folder, source)
    vectors = np.load(work.folder / "vectors.npy")
    names = [f"p{number}" for number in range(work.prompts)]
    root = pathlib.Path(hub.args.out_dir_root)
    for name, prompt in zip(names, vectors, strict=True):
        (root / name).mkdir(parents=True)
        torch.save(torch.tensor(prompt), root / name / "prompt.pt")

    def neurons(name: str) -> np.ndarray:
        hub.dataset = name
        prompt = torch.load(root / name / "prompt.pt")
        found, _ = hub.activated_neuron(NAME, TASK, prompt_emb=prompt)
        for layer in hub.plm.roberta.encoder.layer:
            layer.intermediate._forward_hooks.clear()
        return found.numpy()

    def similarity(one: str, other: str) -> np.ndarray:
        hub.args.source_dataset, hub.args.target_dataset = one, other
        return hub.neuron_similarity().numpy()

    rows, targets = names[: work.rows], names[: work.targets]
    # Files that the pairs read; the head has no part in them.
    for name in dict.fromkeys([*rows, *targets]):
        neurons(name)
    hub.model.head = head
    threads = _fastest(lambda: [neurons(name) for name in 5 * rows[:2]])

    def run(count: int) -> None:
        for _ in range(count):
            if not work.again:
                for name in rows:
                    neurons(name)
            for one, other in itertools.product(rows, targets):
                similarity(one, other)

    pairs = list(itertools.product(rows, targets))
    shape = (len(rows), len(targets))
    overlap = _overlap(source)
    kept = {
        name: torch.load(root / name / "activated_neuron_before_relu.pt")
        for name in dict.fromkeys([*rows, *targets])
    }
    outputs = {
        "neurons": np.stack([neurons(name) for name in rows]),
        "overlap": np.array(
            [overlap(kept[a], kept[b]) for a, b in pairs]
        ).reshape(shape),
        "cosines": np.stack([similarity(*pair) for pair in pairs]).reshape(
            *shape, -1
        ),
    }
    facts = {"timed_prompts": work.rows, "threads": threads}
    return Way(run, outputs, facts)


def _fastest(task: Callable[[], Any]) -> int:
    """Sets the number of torch's threads: one, or all, whichever is faster.

    Many threads wait for one another where the machine has other work, so it
    is the slowest of some turns that decides.
    """
    import torch

    taken: dict[int, list[float]] = {1: [], torch.get_num_threads(): []}
    for _ in range(5):
        for threads, seconds in taken.items():
            torch.set_num_threads(threads)
            begun = time.perf_counter()
            task()
            seconds.append(time.perf_counter() - begun)
    # The first turn is a start.
    best = min(taken, key=lambda threads: max(taken[threads][1:]))
    torch.set_num_threads(best)
    return best


def _hub(folder: pathlib.Path, source: pathlib.Path) -> Any:
    """PromptHub's object with what its methods look for, and no more."""
    import torch

    module = _imported(source)
    model = _model(folder / "backbone")
    module.PromptDataLoader = lambda **_: [_Text()]
    hub = object.__new__(module.PromptHub)
    hub.args = types.SimpleNamespace(
        backbone=NAME,
        device=torch.device("cpu"),
        parallel_mode=None,
        max_source_length=128,
        out_dir_root=tempfile.mkdtemp(dir=folder, prefix="hub"),
    )
    hub.model, hub.plm = model, model.prompt_model.plm
    hub.config, hub.source_model_type = hub.plm.config, "bert"
    hub.template, hub.verbalizer = model.prompt_model.template, object()
    hub.tokenizer = hub.tokenizer_wrapper_class = None
    return hub


def _imported(source: pathlib.Path) -> Any:
    """The module of their class; what it needs elsewhere is stood in for."""
    # First, for it looks for some of these libraries itself.
    importlib.import_module("transformers.trainer")
    for name in (
        "datasets",
        "openprompt",
        "openprompt.data_utils",
        "openprompt.data_utils.utils",
        "openprompt.plms",
        "openprompt.prompts",
        "openprompt.utils",
        "openprompt.utils.reproduciblity",
    ):
        sys.modules[name] = unittest.mock.MagicMock()
    # Without the package's own initialiser, which imports models of old.
    package = types.ModuleType("prompt_hub")
    package.__path__ = [
        str(source / "Prompt-Transferability-2.0-latest" / "prompt_hub")
    ]
    sys.modules["prompt_hub"] = package
    return importlib.import_module("prompt_hub.hub")


class _Text:
    """The one batch of a loader; the model knows its text."""

    def to(self, _: Any) -> "_Text":
        return self


def _model(folder: pathlib.Path) -> Any:
    """Where their methods expect them: a backbone, a template, a forward."""
    import torch
    import transformers
    from torch import nn

    from panda_jax.data.tokenizer import Tokenizer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    plm = transformers.BertForMaskedLM.from_pretrained(folder)
    # They look for this name whatever the backbone.
    plm.roberta = plm.bert
    ids = torch.tensor(Tokenizer.from_folder(folder).empty_ids)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = False
            self.prompt_model: Any = nn.Module()
            self.prompt_model.plm = plm
            self.prompt_model.template = nn.Module()

        def forward(self, _: Any) -> Any:
            soft: Any = self.prompt_model.template.soft_embeds
            text = plm.bert.embeddings.word_embeddings(ids)
            length = len(soft)
            places = torch.arange(length + len(text))
            order = [places[length : length + 1], places[:length]]
            order.append(places[length + 1 :])
            return (plm if self.head else plm.bert)(
                inputs_embeds=torch.cat([text[:1], soft, text[1:]])[None],
                position_ids=torch.cat(order)[None],
            )

    model = Model().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _overlap(source: pathlib.Path) -> Any:
    """1.0's function of two [L, F]; its file is a script, and is not run."""
    import torch

    path = "Prompt-Transferability-1.0/caculate_metric_value_for_correlation.py"
    tree = ast.parse((source / path).read_text(encoding="utf-8"))
    kept: list[ast.stmt] = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and node.name == "ActivatedNeurons"
        or isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "cos"
    ]
    names: dict[str, Any] = {"torch": torch}
    module = ast.Module(kept, type_ignores=[])
    exec(compile(module, path, "exec"), names)

    def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
        # It writes into what it is given. All layers are its sixth of "Small".
        both = (x.clone()[:, None, None] for x in (one, other))
        return names["ActivatedNeurons"](*both, 6, "Small")

    return overlap


def prepare(folder: pathlib.Path, prompts: int, length: int) -> None:
    """Writes a backbone of random weights and a bank of random prompts."""
    import panda_jax as pj
    from panda_jax.interop import hf
    from panda_jax.prompts import Prompt
    from panda_jax.store.prompt_folders import PromptInfo

    backbone = pj.load_backbone("random:bert-tiny")
    hf.save(folder / "backbone", backbone.params, backbone.config)
    backbone.tokenizer.save(folder / "backbone")
    rng = np.random.default_rng(0)
    shape = (prompts, length, backbone.config.width)
    # About as large as embeddings are.
    vectors = rng.normal(scale=0.5, size=shape).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    info = PromptInfo(
        task="toy_review",
        backbone=str(folder / "backbone"),
        fingerprint=backbone.fingerprint,
        kind="shallow",
        method="prompt",
    )
    for number, each in enumerate(vectors):
        name = f"p{number:06d}"
        pj.save_prompt(folder / "bank" / name, Prompt(each, {}), info)
    shutil.copytree(folder / "bank" / "p000000", folder / "target" / "first")


def measured(
    case: str, work: Work, source: pathlib.Path, *, repeats: int, seconds: float
) -> dict[str, Any]:
    """One case of the report, in seconds a prompt."""
    found = turns.measure(
        {
            OURS: (ours, (work,)),
            HUB: (theirs, (work, source, True)),
            BODY: (theirs, (work, source, False)),
        },
        tolerance=TOLERANCE,
        repeats=repeats,
        seconds=seconds,
    )
    share = work.prompts / work.rows
    for name, spread in found["seconds"].items():
        timed = work.prompts if name == OURS else work.rows
        found["seconds"][name] = _times(spread, 1 / timed)
        found["facts"][name] |= {
            "prompts": work.prompts,
            "targets": work.targets,
            "extrapolated": timed < work.prompts,
            "whole_seconds": _times(spread, work.prompts / timed),
        }
    for name, spread in found["ratio"].items():
        found["ratio"][name] = _times(spread, share)
    return {"case": case, **found}


def _times(spread: dict[str, float], factor: float) -> dict[str, float]:
    return {
        name: x if name == "repeats" else float(f"{x * factor:.4g}")
        for name, x in spread.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the four cases and writes a JSON file."""
    parser = turns.parser(__doc__)
    parser.add_argument("--prompthub", required=True, type=pathlib.Path)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--prompt_length", type=int, default=100)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--pair_rows", type=int, default=2)
    args = parser.parse_args(argv)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        prepare(folder, args.prompts, args.prompt_length)
        for square, again in itertools.product((False, True), repeat=2):
            rows = min(args.prompts, args.pair_rows if square else args.rows)
            case = f"{args.prompts} prompts, "
            case += "each for all" if square else "for one target"
            case += ", again" if again else ", the first time"
            results.append(
                measured(
                    case,
                    Work(folder, args.prompts, square, again, rows),
                    args.prompthub.resolve(),
                    repeats=args.repeats,
                    seconds=args.seconds,
                )
            )
    turns.report(results, out=args.out, hidden=("prompthub",))


if __name__ == "__main__":
    main()
