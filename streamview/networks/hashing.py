"""What identifies the weights of a network: their values, not the file that they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["COUNTER", "hash_tensors"]

COUNTER = "num_batches_tracked"
"""What BatchNorm calls its count of training steps, on which no answer depends."""


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the hex digest of names, types, shapes and values, whatever their order and memory format.

    Floating point numbers count as the float32 that networks here are computed in, so that weights stored in half precision are the same
    network as these in float32. BatchNorm's counters do not count. One tensor is copied at a time.
    """
    digest = hashlib.sha256(b"streamview tensors 1\n")
    for name in sorted(state):
        if name.rpartition(".")[2] == COUNTER:
            continue
        tensor = state[name].detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
