"""Prompts and weights in other projects' formats; arrays in, arrays out."""
