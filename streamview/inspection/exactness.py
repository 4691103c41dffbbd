"""The exactness certificate: the streamed network against the plain one, in float64, on windows small enough for both.

Rounding in float64 is some 1e-15 and a mistake at a seam some 1e-2, so nothing between them needs judgement: what is not below
1e-10 is wrong.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from streamview.errors import MemoryBudgetError, ModelError, RegionError
from streamview.inspection.certificate import Certificate, Comparison, Line
from streamview.inspection.twin import Twin, tensors_of
from streamview.streaming.memory import format_bytes, parse_bytes

__all__ = ["TOLERANCE", "Pixels", "verify"]

Pixels = Callable[[tuple[int, int], tuple[int, int]], Tensor]
"""Gives the pixels (C, rows, columns) of these half-open rows and columns of the image, as the network takes them."""

Size = tuple[int, int]

TOLERANCE = 1e-10
_SIDE = 256  # largest side of a window, px, of a network that takes smaller ones
_AREA = 2**20  # px that a window is to have at most to hold a border between steps that were given
_SMALL = 1e-3  # a weight whose gradient is below this share of the largest weight's is measured against that share
_DECIDED = 0.01  # share of the difference of two gradients that finite differences may be off
_BARRIERS = ("kept", "spilled", "regenerated")


def verify(
    module: nn.Module,
    shape: int | tuple[int, int] | tuple[int, int, int],
    *,
    windows: int = 3,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    memory: str | int | None = None,
    pixels: Pixels | Tensor | None = None,
    tolerance: float = TOLERANCE,
    done: Callable[[], None] = lambda: None,
) -> Certificate:
    """Compare a streamed network with the plain one on random windows of an image.

    Both are a float64 copy of the network: the network itself, its mode, weights, gradients and hooks stay as they are, and so does
    torch's random state. Every window has a size, a place and (unless given) a step of its own, odd ones among them. Both ways to
    run a backward pass (with the weights' gradients and without) and both ways to come by what it needs (kept or recomputed)
    take turns, and so do the three things that may become of maps at barriers (see `stream`).

    Parameters
    ----------
    module
        A CNN that takes (N, C, H, W), as for `stream`; on any device that knows float64.
    shape
        Of the image that windows are cut from: a side, (H, W) or (C, H, W) in px; 3 channels where not stated.
    windows
        How many.
    seed
        Of all that is random.
    tile
        Rows and columns of a step, px; default different odd ones.
    memory
        Bound on what the plain network may take on a window, bytes or ``"2GB"``; default half of what is free. Windows have sides of
        up to 256 px or one and a half times the smallest that the network accepts, where memory allows.
    pixels
        Of the image: a tensor (C, H, W), or a function of half-open rows and columns; default random ones (standard normal). Where
        neighbours are exactly equal, max-pooling has more than one right gradient: add a little noise.
    tolerance
        Largest relative error that passes.
    done
        Called after every window; may raise to stop.

    Returns
    -------
    Certificate

    Raises
    ------
    NotStreamableError
        When the network has no local part.
    RegionError
        When the network takes no window of the image in float64, or none that has a border between steps of `tile`.
    ModelError
        When the network cannot be copied, answers no floating point tensor, or answers NaN.
    MemoryBudgetError
        When the smallest useful window does not fit the memory.
    """
    if windows < 1:
        raise RegionError(f"{windows} windows: expected one or more to compare")
    channels, size = _shape(shape)
    read = _reader(pixels, (channels, *size))
    random = Random(seed)
    twin = Twin(module, channels)
    budget = twin.free() // 2 if memory is None else parse_bytes(memory)
    found = []
    with torch.random.fork_rng(devices=[twin.device.index or 0] if twin.device.type == "cuda" else []):
        smallest = _smallest(twin, size, budget)
        sides = (*_sides(twin, size, smallest, tile, budget), smallest)
        for number in range(windows):
            found.append(_window(twin, read, size, sides, tile, budget, random, number))
            done()
    what = "random" if pixels is None else "given"
    sha256 = _digest(module)
    return Certificate(type(module).__name__, sha256, what, seed, tolerance, str(torch.__version__), str(twin.device), tuple(found))


def _shape(shape: int | tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """Channels, and (height, width)."""
    sides = (shape, shape) if isinstance(shape, int) else tuple(shape)
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise RegionError(f"shape {shape}: expected a side, (H, W) or (C, H, W), all positive")
    return sides[0] if len(sides) == 3 else 3, (sides[-2], sides[-1])


def _reader(pixels: Pixels | Tensor | None, shape: tuple[int, int, int]) -> Pixels | None:
    if pixels is None or callable(pixels):
        return pixels
    whole = torch.as_tensor(pixels)
    if tuple(whole.shape) != shape:
        raise RegionError(f"pixels of shape {tuple(whole.shape)}: expected (C, H, W) = {shape}")
    return lambda rows, cols: whole[:, rows[0] : rows[1], cols[0] : cols[1]]


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _smallest(twin: Twin, size: Size, budget: int) -> Size:
    """About the smallest window that both networks accept, square where the image allows; the whole image if nothing less."""

    def clipped(side: int) -> Size:
        return min(side, size[0]), min(side, size[1])

    side, refusal = 1, twin.refusal(clipped(1))
    while refusal is not None:
        if side >= max(size):
            raise refusal
        side *= 2
        if twin.cost(clipped(side)) > budget:
            raise _too_much(twin, clipped(side), budget)
        refusal = twin.refusal(clipped(side))
    refused = side // 2
    while side - refused > max(1, side // 16):
        middle = (side + refused) // 2
        if twin.refusal(clipped(middle)) is None:
            side = middle
        else:
            refused = middle
    # small images are all edge: what one costs a pixel is learned from a larger one, where the network takes it
    twin.refusal(clipped(max(side, 64)))
    return clipped(side)


def _too_much(twin: Twin, size: Size, budget: int) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"a window of {size[1]} x {size[0]} px takes {twin.name} in float64 {format_bytes(twin.cost(size))} as a whole, of memory "
        f"{format_bytes(budget)}: give more memory, or a smaller tile where one was given"
    )


def _sides(twin: Twin, size: Size, smallest: Size, tile: Size | None, budget: int) -> tuple[Size, Size]:
    """Least and largest height and width of the windows to draw: within the memory, and with borders between the steps."""
    high = _pair(lambda a: min(size[a], max(_SIDE, smallest[a] + smallest[a] // 2)))
    usual = _pair(lambda a: max(smallest[a], high[a] // 2))
    options = [usual, smallest]
    if tile is not None:
        across = _pair(lambda a: min(size[a], max(usual[a], tile[a] + tile[a] // 2 + 1)))
        options = [across] if tile[0] < size[0] and tile[1] < size[1] else []
        options += [(across[0], usual[1]), (across[0], smallest[1])] if tile[0] < size[0] else []
        options += [(usual[0], across[1]), (smallest[0], across[1])] if tile[1] < size[1] else []
    if not options:
        raise RegionError(
            f"steps of {tile} px cover the image of {size} px (rows, columns), so there is no border between them: give a smaller tile"
        )
    fitting = [option for option in options if twin.cost(option) <= budget]
    if not fitting:
        raise _too_much(twin, min(options, key=twin.cost), budget)
    low = next((option for option in fitting if option[0] * option[1] <= _AREA), min(fitting, key=twin.cost))
    high = _pair(lambda a: max(low[a], high[a]))
    while twin.cost(high) > budget:
        high = (low[0] + high[0]) // 2, (low[1] + high[1]) // 2
    return low, high


def _pair(of: Callable[[int], int]) -> Size:
    return of(0), of(1)


def _window(
    twin: Twin,
    read: Pixels | None,
    size: Size,
    sides: tuple[Size, Size, Size],
    tile: Size | None,
    budget: int,
    random: Random,
    number: int,
) -> Comparison:
    """Draw a window and compare on it; a network that takes only some sizes gets rounder ones, at last one it is known to take."""
    low, high, smallest = sides
    drawn = random.randint(low[0], high[0]), random.randint(low[1], high[1])
    rounded = [(max(drawn[0] // unit * unit, smallest[0]), max(drawn[1] // unit * unit, smallest[1])) for unit in (32, 256)]
    refusal: RegionError | None = None
    for height, width in dict.fromkeys((drawn, *rounded, smallest)):
        y, x = random.randint(0, size[0] - height), random.randint(0, size[1] - width)
        step = tile or _step(random, (height, width), number)
        generator = torch.Generator().manual_seed(random.getrandbits(40))
        if read is None:
            image = torch.randn((1, twin.channels, height, width), dtype=torch.float64, generator=generator)
        else:
            image = read((y, y + height), (x, x + width))[None].detach()
        try:
            return _compare(twin, image.to(twin.device, torch.float64), (y, x), step, generator, budget, number)
        except RegionError as error:
            refusal = error
        except torch.OutOfMemoryError:
            raise MemoryBudgetError(
                f"{twin.device} ran out of memory on a window of {width} x {height} px: give less memory, so that windows are smaller"
            ) from None
    raise refusal or AssertionError("there is always a window to try")


def _step(random: Random, window: Size, number: int) -> Size:
    """Rows and columns of a step: odd tiles, then strips, then small tiles, and again."""
    if number % 3 == 1:
        return max(1, random.randint(window[0] // 6, window[0] // 3)), window[1]
    odd = number % 3 == 0
    low, high = (4, 2) if odd else (9, 5)
    return _pair(lambda a: max(1, random.randint(window[a] // low, window[a] // high)) | odd)


@dataclass(frozen=True, slots=True, eq=False)
class _Passes:
    """What a forward and a backward pass made."""

    outputs: list[Tensor]
    pixels: Tensor
    weights: list[Tensor]


def _passes(outputs: list[Tensor], cotangents: list[Tensor], leaf: Tensor, weights: Sequence[Tensor]) -> _Passes:
    """The gradients of the image and the weights; zeros where there is none."""
    live = [(out, cotangent) for out, cotangent in zip(outputs, cotangents, strict=True) if out.requires_grad]
    grads: tuple[Tensor | None, ...] = (None,) * (1 + len(weights))
    if live:
        grads = torch.autograd.grad([out for out, _ in live], [leaf, *weights], [c for _, c in live], allow_unused=True)
    made = [torch.zeros_like(t) if grad is None else grad for t, grad in zip((leaf, *weights), grads, strict=True)]
    return _Passes([out.detach() for out in outputs], made[0], made[1:])


def _compare(twin: Twin, image: Tensor, place: Size, tile: Size, generator: torch.Generator, budget: int, number: int) -> Comparison:
    """The plain network once, the streamed one with the weights' gradients and without."""
    height, width = image.shape[2:]
    kept, barriers = number % 2 == 1, _BARRIERS[number % 3]
    seed = int(torch.randint(2**31, (), generator=generator))
    parameters = [p for _, p in twin.parameters]
    twin.require_gradients(True)
    twin.seed(seed)
    leaf = image.clone().requires_grad_()
    outputs = twin.answer(leaf)
    if not all(out.isfinite().all() for out in outputs):
        raise ModelError(f"{twin.name} itself answers NaN or infinity on a window of {width} x {height} px: check its weights")
    cotangents = [torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out) for out in outputs]
    plain = _passes(outputs, cotangents, leaf, parameters)
    del outputs, leaf

    def streamed(training: bool) -> _Passes:
        twin.require_gradients(training)
        twin.seed(seed)
        leaf = image.clone().requires_grad_()
        outputs = tensors_of(twin.streamed(tile, budget if kept == training else None, barriers)(leaf), twin.name)
        return _passes(outputs, cotangents, leaf, parameters if training else [])

    found = streamed(True), streamed(False)
    output = max(float(_relative(a, b).max()) for one in found for a, b in zip(one.outputs, plain.outputs, strict=True))
    errors = torch.stack([_relative(one.pixels, plain.pixels).amax((0, 1)) for one in found]).amax(0).cpu()
    weights = _weight_errors(found[0].weights, plain.weights)
    worst = max(range(len(weights)), key=weights.__getitem__, default=None)
    rows, cols = (_beside_borders(n, t) for n, t in zip(errors.shape, tile, strict=True))
    beside = rows[:, None] | cols[None, :]
    gradient = float(errors.max())
    differences = None
    if output <= TOLERANCE < max(gradient, 0.0 if worst is None else weights[worst]):
        if worst is None or gradient >= weights[worst]:
            pixels = max((one.pixels for one in found), key=lambda grad: float((grad - plain.pixels).abs().max()))
            disputed = image, pixels, plain.pixels
        else:
            disputed = parameters[worst], found[0].weights[worst], plain.weights[worst]
        twin.require_gradients(False)
        differences = _decide(twin, image, cotangents, seed, *disputed)
    return Comparison(
        *place,
        height,
        width,
        tile,
        kept,
        barriers,
        output=output,
        gradient=gradient,
        weights=None if worst is None else weights[worst],
        parameter=None if worst is None else twin.parameters[worst][0],
        row=_line(errors.amax(1), rows),
        column=_line(errors.amax(0), cols),
        borders=float(errors[beside].max()) if beside.any() else None,
        elsewhere=float(errors[~beside].max()) if not beside.all() else None,
        blank=not plain.pixels.any(),
        differences=differences,
    )


def _decide(twin: Twin, image: Tensor, cotangents: list[Tensor], seed: int, tensor: Tensor, streamed: Tensor, plain: Tensor) -> str:
    """Which of two gradients of a tensor finite differences of the plain network agree with, along the direction in which they differ.

    `tensor` is the image or a parameter of the network; it is moved and put back.
    """
    direction = (streamed - plain).double()
    gap = float(direction.norm())
    if not math.isfinite(gap) or not gap:
        return "neither"
    direction /= gap
    slopes = {"streamed": float((streamed * direction).sum()), "plain": float((plain * direction).sum())}
    before, scale = tensor.detach().clone(), max(float(tensor.detach().abs().max()), 1e-3)

    def score(step: float) -> float:
        with torch.no_grad():
            tensor.copy_(before + step * direction)
            twin.seed(seed)
            outputs = tensors_of(twin.module(image.clone()), twin.name)
            return sum(float((out * cotangent).sum()) for out, cotangent in zip(outputs, cotangents, strict=True))

    try:
        for step in (1e-3 * scale, 1e-4 * scale, 1e-5 * scale, 1e-6 * scale):
            slope = (score(step) - score(-step)) / (2 * step)
            for name, expected in slopes.items():
                if abs(slope - expected) <= _DECIDED * gap:
                    return name
    finally:
        with torch.no_grad():
            tensor.copy_(before)
    return "neither"


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    """Errors relative to the largest value expected; infinite where shapes differ, beside NaN, and for anything but the zero expected."""
    if found.shape != expected.shape:
        return torch.full_like(expected, math.inf)
    return _scaled(found - expected, float(expected.abs().max()) if expected.numel() else 0.0)


def _scaled(difference: Tensor, scale: float) -> Tensor:
    error = difference.abs()
    # 0 / 0 is no error, anything else / 0 is infinite
    return torch.where(error == 0, error, error / scale).nan_to_num(nan=math.inf, posinf=math.inf)


def _weight_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Worst error of every parameter's gradient."""
    scales = [float(grad.abs().max()) if grad.numel() else 0.0 for grad in expected]
    least = _SMALL * max(scales, default=0.0)
    errors = (_scaled(a - b, max(scale, least)) for a, b, scale in zip(found, expected, scales, strict=True))
    return [float(error.max()) if error.numel() else 0.0 for error in errors]


def _beside_borders(n: int, step: int) -> Tensor:
    """Which of n rows or columns are the last before or the first behind a border between steps."""
    return torch.tensor([(k > 0 and k % step == 0) or (k + 1 < n and (k + 1) % step == 0) for k in range(n)])


def _line(errors: Tensor, beside: Tensor) -> Line:
    position = int(errors.argmax())
    return Line(position, float(errors[position]), bool(beside[position]))
