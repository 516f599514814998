#!/usr/bin/env bash
# PEFT 0.21.2 x transformers 5.24.0: the loss of a QUESTION_ANS model with
# PROMPT_TUNING is of other positions than those that are asked for.
#
# The prompt's vectors stand before the text, and the logits begin with one for
# each of them. `start_positions` and `end_positions` are passed on as they are,
# so that position 3 of the text is compared with the fourth vector of the
# prompt. Training raises nothing and falls for it; positions that are found
# must have the prompt's length subtracted, and those given must have it added.
#
# Exits 0 while that is so, and 1 once it is not. Needs a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python

cat > "$folder/program.py" <<'PROGRAM'
import sys

import peft
import torch
import transformers

P = 5
torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
)
model = peft.get_peft_model(
    transformers.BertForQuestionAnswering(config),
    peft.PromptTuningConfig(task_type="QUESTION_ANS", num_virtual_tokens=P),
).eval()
inputs = {
    "input_ids": torch.randint(1, 60, (4, 12)),
    "attention_mask": torch.ones(4, 12, dtype=torch.long),
}
first, last = torch.tensor([1, 2, 3, 4]), torch.tensor([4, 4, 6, 9])
with torch.no_grad():
    out = model(**inputs, start_positions=first, end_positions=last)


def loss(shift):
    """The mean cross-entropy of both positions, moved by so many."""
    found = [
        torch.nn.functional.cross_entropy(logits, positions + shift)
        for logits, positions in (
            (out.start_logits, first),
            (out.end_logits, last),
        )
    ]
    return torch.stack(found).mean()


assert not torch.isclose(loss(0), loss(P))
said = "something else"
if torch.isclose(out.loss, loss(P)):
    said = "of the text's positions"
elif torch.isclose(out.loss, loss(0)):
    said = "of positions that count the prompt's"
print(f"transformers {transformers.__version__}, PEFT {peft.__version__}:")
print(f"  {out.start_logits.shape[1]} logits for a text of 12 tokens")
print(f"  the loss is {said}")
sys.exit(said != "of positions that count the prompt's")
PROGRAM

"$python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
"$python" -W ignore "$folder/program.py"
