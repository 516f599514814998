"""Prompts and weights in other projects' formats; arrays in, arrays out.

Backbones: `hf` (Hugging Face folders), with BERT's and T5's names in `hf_bert`
and `hf_t5`, where files lie in `hf_layouts`, and `weights` of either format;
`t5x` (checkpoints, of files that `t5x_files` and `zarr` read).
Prompts: `peft` (in and out, by `peft_layout`), `prompthub`, `panda_release`,
`npy`. Files: `tensors` (safetensors), `torch_files` and `torch_pickle` (a
reader that executes nothing), `folders`. Whose formats, and into which prompt
folder, is `store.exchange`'s to say.

May import: io, models, the top.
"""
