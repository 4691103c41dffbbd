"""Any network as one local operation: applied to windows of the image, whatever it does within them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from streamview.errors import NotStreamableError
from streamview.streaming.ops.registry import Local, NotLocal, Piece, Value, Wants, Weight, lowers_module
from streamview.streaming.schedule import Window

__all__ = ["PatchEncoder", "Patches"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


class PatchEncoder(nn.Module):
    """A network applied to every window of an image: a map of its answers.

    So a network that cannot itself run in pieces (a vision transformer, say) becomes an operation that can: the windows are its
    kernel. With pooling or attention over the map behind it, a whole slide model is streamed from end to end.

    Parameters
    ----------
    module
        Maps patches (n, C, size, size) to features (n, D), each patch by itself.
    size, stride
        Side of the windows and distance between them, px; windows that would leave the image are left out.
    batch
        Patches that run at once: they decide the memory.

    Examples
    --------
    >>> model = nn.Sequential(PatchEncoder(vit, size=224), AttentionPooling(384, outputs=2))
    >>> streamed = stream(model, memory="2GB")
    """

    streams_whole = True  # a trace does not look inside

    def __init__(self, module: nn.Module, size: int = 224, stride: int | None = None, batch: int = 4) -> None:
        super().__init__()
        if min(size, stride or size, batch) < 1:
            raise ValueError(f"size {size}, stride {stride}, batch {batch}: expected whole numbers above 0")
        self.module, self.size, self.stride, self.batch = module, size, stride or size, batch

    def forward(self, image: Tensor) -> Tensor:
        """Encode all windows of an image (N, C, H, W); the map is (N, D, h, w)."""
        rows, cols = ((n - self.size) // self.stride + 1 for n in image.shape[2:])
        if min(rows, cols) < 1:
            raise RuntimeError(f"image of {tuple(image.shape[2:])} px is smaller than a patch of {self.size} px")
        found = [self.module(patches) for patches, _ in _batches(image, (rows, cols), self)]
        out: Tensor = torch.cat(found).unflatten(0, (image.shape[0], rows, cols))
        return out.permute(0, 3, 1, 2)


def _batches(image: Tensor, shape: tuple[int, int], encoder: PatchEncoder) -> Iterator[tuple[Tensor, list[tuple[int, int, int]]]]:
    """Windows in batches: patches (n, C, size, size), and for each the image, row and column of its corner."""
    step, size = encoder.stride, encoder.size
    corners = [(n, y * step, x * step) for n in range(image.shape[0]) for y in range(shape[0]) for x in range(shape[1])]
    for start in range(0, len(corners), encoder.batch):
        part = corners[start : start + encoder.batch]
        yield torch.stack([image[n, :, y : y + size, x : x + size] for n, y, x in part]), part


@dataclass(frozen=True, slots=True)
class Patches:
    """`PatchEncoder` on the windows of a piece; weights: the parameters and buffers of its network.

    The pixels alone are kept: the network runs again, batch by batch, when its gradient is asked for.
    """

    rows: Window
    cols: Window
    encoder: PatchEncoder
    names: tuple[str, ...]

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Encode the windows of the piece; save its pixels."""
        state = dict(zip(self.names, weights, strict=True))
        found = [functional_call(self.encoder.module, state, (p,)) for p, _ in _batches(inputs[0], piece.shape, self.encoder)]
        out = torch.cat(found).unflatten(0, (inputs[0].shape[0], *piece.shape)).permute(0, 3, 1, 2)
        return out, None if wants is None else inputs[0]

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Torch's own gradient, one batch of windows after the other."""
        flat = iter(grad.permute(0, 2, 3, 1).flatten(0, 2).split(self.encoder.batch))
        pixels = torch.zeros_like(saved, dtype=grad.dtype) if wants.inputs[0] else None
        totals: list[Tensor | None] = [None] * len(weights)
        for patches, corners in _batches(saved, piece.shape, self.encoder):
            with torch.enable_grad():
                leaf = patches.detach().requires_grad_(wants.inputs[0])
                state = [w.detach().requires_grad_(asked) for w, asked in zip(weights, wants.weights, strict=True)]
                out = functional_call(self.encoder.module, dict(zip(self.names, state, strict=True)), (leaf,))
            asked = [t for t in (leaf, *state) if t.requires_grad]
            found = iter(torch.autograd.grad(out, asked, next(flat).to(out.dtype), allow_unused=True))
            if pixels is not None:
                for part, (n, y, x) in zip(next(found), corners, strict=True):
                    pixels[n, :, y : y + self.encoder.size, x : x + self.encoder.size] += part
            for index, leaf in enumerate(state):
                part = next(found) if leaf.requires_grad else None
                if part is not None:
                    total = totals[index]
                    totals[index] = part if total is None else total.add_(part)
        return [pixels], totals


@lowers_module(PatchEncoder)
def _patch_encoder(module: PatchEncoder, input: Value) -> Local:
    for name, part in module.module.named_modules():
        if part.training and (isinstance(part, nn.modules.batchnorm._BatchNorm) or _draws(part)):
            raise NotStreamableError(
                f"PatchEncoder: {name or type(part).__name__} ({type(part).__name__}) is in training mode, and patches are encoded twice "
                "where gradients are wanted: call .eval() on the encoder"
            )
    inner = module.module
    parameters = [name for name, _ in inner.named_parameters()]
    buffers = [name for name, _ in inner.named_buffers()]
    weights = [Weight(lambda name=name: inner.get_parameter(name)) for name in parameters]  # type: ignore[misc]
    weights += [Weight(lambda name=name: inner.get_buffer(name)) for name in buffers]  # type: ignore[misc]
    window = Window(module.size, module.stride)
    features = _features(module, input.channels)
    return Local(Patches(window, window, module, (*parameters, *buffers)), (input,), tuple(weights), features)


def _draws(part: nn.Module) -> bool:
    """Whether a module in training mode draws random numbers."""
    return any(isinstance(getattr(part, rate, None), float) and getattr(part, rate) > 0 for rate in ("p", "drop_prob", "dropout"))


def _features(encoder: PatchEncoder, channels: int) -> int:
    """How many features the network answers for a patch, found without computing them."""
    example = next((p for p in encoder.module.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            found = encoder.module(torch.empty(2, channels, encoder.size, encoder.size, dtype=example.dtype, device=example.device))
    except RuntimeError as error:
        raise NotLocal(f"PatchEncoder's network does not take patches of {channels} channels: {str(error).splitlines()[0]}") from None
    if not isinstance(found, Tensor) or found.dim() != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NotStreamableError(f"PatchEncoder's network answered {shape} for two patches: expected (2, D)")
    return int(found.shape[1])
