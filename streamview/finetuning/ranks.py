"""The processes that train together, each with its share of every batch: one region a rank, and the gradients are added.

What `torch.nn.parallel.DistributedDataParallel` does for a batch in one pass, this does for one that is accumulated region by region:
gradients are reduced once a batch, after its last region, however many regions a rank has. Without ``torchrun`` there is one rank, and
nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "current_ranks"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among those that train together. Every method but `part` must be called by all of them.

    Parameters
    ----------
    number
        Of this rank, from 0. Rank 0 writes the files.
    count
        How many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.number == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item, this rank's share of a list."""
        return items[self.number :: self.count]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by number."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """Return the value of rank 0."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        result: T = values[0]
        return result

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by those of rank 0."""
        if self.count > 1:
            with torch.no_grad():
                for tensor in tensors:
                    received = tensor.detach().clone(memory_format=torch.contiguous_format)
                    dist.broadcast(received, src=0)
                    tensor.copy_(received)

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by the sum over all ranks; one that a rank does not have counts as 0."""
        if self.count > 1:
            for parameter in parameters:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                total = gradient.contiguous()
                dist.all_reduce(total)
                parameter.grad = gradient.copy_(total)


def current_ranks() -> Ranks:
    """The ranks of the process group that was initialised; without any, one alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()
