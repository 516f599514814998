"""Prompts and backbones by name, and what others make of them.

`prompt_folders` reads and writes prompt folders and banks, `backbones` finds
weights and a tokenizer by an id, a folder or a name of the `hub`, `exchange`
imports and exports others' formats, `cards` tells strangers what a prompt is.

May import: config, data, interop, models, io, the top.
"""
