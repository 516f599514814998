"""Path names, sizes and hashes of parameter trees."""

import hashlib

import jax
import numpy as np

from panda_jax.types import PyTree


def flatten(tree: PyTree) -> dict[str, np.ndarray | jax.Array]:
    """`{"layers/query/kernel": array, ...}` in the tree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def size(tree: PyTree) -> int:
    """The number of elements in all arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def content_hash(tree: PyTree) -> str:
    """16 hex digits of the SHA-256 over paths, types, shapes and bytes.

    The same for the same numbers, however they lie in memory.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(tree).items()):
        array = np.asarray(leaf)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # As bytes, since bfloat16 has no buffer of its own.
        digest.update(np.ravel(array, order="C").view(np.uint8).data)
    return digest.hexdigest()[:16]
