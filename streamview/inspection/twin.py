"""A float64 copy of a network, plain and streamed: what an exactness certificate compares."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from streamview.errors import ModelError, RegionError
from streamview.streaming.cuda import free_memory_of
from streamview.streaming.module import Streamed, stream

__all__ = ["Twin", "tensors_of"]

Size = tuple[int, int]

_PEAK = 2.5  # peak memory of the plain network's two passes, as a multiple of what its forward pass saves
_REFUSALS = (RuntimeError, ValueError, AssertionError)  # how networks refuse a size


class Twin:
    """A float64 copy of a network, with gradients of all its weights, and what it costs."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        self.name, self.channels = type(module).__name__, channels
        try:
            self.module = copy.deepcopy(module).double()
        except (RuntimeError, TypeError, copy.Error) as error:
            raise ModelError(f"{self.name} cannot be copied as float64 ({_first(error)}); a copy is what is compared") from None
        self.parameters = [(name, p) for name, p in self.module.named_parameters() if p.is_floating_point()]
        self.device = next((t.device for t in (*self.module.parameters(), *self.module.buffers())), torch.device("cpu"))
        self._rate = 0.0
        self.require_gradients(True)
        stream(self.module, tile=(1, 1), check=False)  # refuses at once what cannot be streamed

    def require_gradients(self, wanted: bool) -> None:
        """Ask for the weights' gradients, or not; the mode stays."""
        for _, parameter in self.parameters:
            parameter.requires_grad_(wanted)

    def free(self) -> int:
        """Bytes that the device has free."""
        return free_memory_of(self.device)

    def seed(self, seed: int) -> None:
        """Seed what the network itself draws, such as dropout."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def streamed(self, tile: Size, memory: int | None, barriers: str = "kept") -> Streamed:
        """The copy, streamed; with memory it saves activations, without it recomputes them."""
        return stream(self.module, tile=tile, memory=memory, barriers=barriers, check=False)

    def cost(self, size: tuple[int, int]) -> int:
        """Bytes that the plain network's two passes take on an image, by what an earlier one saved."""
        return int(_PEAK * self._rate * size[0] * size[1])

    def answer(self, image: Tensor) -> list[Tensor]:
        """Run the plain network as it is, with autograd.

        Raises
        ------
        RegionError
            When it does not take an image of this size.
        """
        own = {t.untyped_storage().data_ptr() for t in (*self.module.parameters(), *self.module.buffers())}
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        height, width = image.shape[2:]
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _ContiguousCotangents():
                # of a clone, since a network may change its input in place
                tensors = tensors_of(self.module(image.clone()), self.name)
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            raise RegionError(
                f"{self.name} in float64 does not run on {width} x {height} px ({_first(error)}); give the shape of an image that it takes"
            ) from None
        self._rate = max(sum(saved.values()), image.nbytes) / (height * width)
        return tensors

    def refusal(self, size: tuple[int, int]) -> RegionError | None:
        """Why a size is not accepted by the plain or the streamed network; None when both take it."""
        image = torch.zeros((1, self.channels, *size), dtype=torch.float64, device=self.device, requires_grad=True)
        plain: RegionError | None = None
        try:
            self.answer(image)
        except RegionError as error:
            plain = error
        try:
            with torch.no_grad():
                self.streamed(size, None)(image.detach())
        except RegionError as error:
            return error  # which names the layer and the remedy
        except _REFUSALS:
            if plain is None:
                raise
        return plain


class _ContiguousCotangents(TorchFunctionMode):
    """Hands every function's derivative a contiguous gradient.

    Torch's own derivatives of normalisations are wrong on the CPU for some that lie otherwise (torch 2.13: `batch_norm` in eval mode and
    `instance_norm` in front of a flattened and transposed or a permuted map).
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.requires_grad and not out.is_leaf:
            out.register_hook(_contiguous)
        return out


def _contiguous(grad: Tensor) -> Tensor:
    return grad.contiguous()


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def tensors_of(answer: Any, name: str) -> list[Tensor]:
    """The floating point tensors of what a network returned."""

    def inside(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, Mapping):
            yield from (tensor for item in value.values() for tensor in inside(item))
        elif isinstance(value, tuple | list):
            yield from (tensor for item in value for tensor in inside(item))

    tensors = list(inside(answer))
    if not tensors:
        raise ModelError(f"{name} answered {type(answer).__name__} without floating point tensors: expected some to compare")
    return tensors
