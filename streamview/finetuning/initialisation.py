"""Initial weights for training from scratch: He's, and layer-sequential unit variance over streamed statistics.

`he_weights` draws weights (He et al. 2015, https://arxiv.org/abs/1502.01852). `unit_variance` then scales them, layer after layer, so that
every channel leaves its layer with variance 1 (LSUV, Mishkin and Matas 2016, https://arxiv.org/abs/1511.06422; per channel as Krähenbühl
et al. 2016, https://arxiv.org/abs/1511.06856). Pinckaers et al. (TPAMI 2020, section 7) train without BatchNorm this way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from streamview.errors import TrainingError
from streamview.streaming import LazyImage, Streamed, stream

__all__ = ["LayerStatistics", "he_weights", "unit_variance"]

_WEIGHTED = nn.Conv2d | nn.Linear


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """The output of a layer over all positions of all images.

    Parameters
    ----------
    name
        The layer's name in the network.
    mean, variance
        Of each output channel, float64 (C,).
    """

    name: str
    mean: Tensor
    variance: Tensor


def he_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all convolutions and linear layers in place: normal, fan-in, gain of ReLU; biases zero.

    Parameters
    ----------
    module
        The network; other layers stay as they are.
    generator
        Source of randomness, on the processor: the weights are the same on every device.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, _WEIGHTED):
                drawn = nn.init.kaiming_normal_(torch.empty(layer.weight.shape), nonlinearity="relu", generator=generator)
                layer.weight.copy_(drawn)
                if layer.bias is not None:
                    layer.bias.zero_()


def unit_variance(
    module: nn.Module,
    images: Sequence[Tensor | LazyImage],
    *,
    memory: str | int | None = None,
    tile: tuple[int, int] | None = None,
    done: Callable[[], None] = lambda: None,
) -> tuple[LayerStatistics, ...]:
    """Scale the weights of every convolution and linear layer in place, so that each of its output channels has variance 1.

    Layer by layer from the image on, ``W[c] /= sqrt(E[x_c^2] - E[x_c]^2)``, with both means over all positions of all images, in
    float64, gathered while the images stream. As a layer's output is linear in its weights, one pass a layer is exact. A channel
    that is constant over the images stays as it is.

    Parameters
    ----------
    module
        The network, whose biases add the same to every position; in eval mode.
    images
        Mini-batches (N, C, H, W), normalised; the paper takes ten. Each is read once a layer.
    memory, tile
        As for `streamview.stream`.
    done
        Called after every step of the engine.

    Returns
    -------
    tuple of LayerStatistics
        Of every layer as it was scaled, in the order in which they run.

    Raises
    ------
    TrainingError
        If there are no images, the network's code cannot be followed, or a statistic is not finite; the network is then unchanged.
    StreamviewError
        As `streamview.stream` and its calls.
    """
    if not images:
        raise TrainingError("no images to measure a network's layers on; expected one mini-batch or more")
    scaled = copy.deepcopy(module).eval()
    measured = []
    for name, prefix in _prefixes(scaled, images[0].shape):
        statistics = _measure(name, stream(prefix, memory=memory, tile=tile), images, done)
        if not (statistics.mean.isfinite().all() and statistics.variance.isfinite().all()):
            raise TrainingError(f"the output of {name} is not finite; check the pixels' normalisation")
        factor = torch.where(statistics.variance > 0, statistics.variance, 1.0).sqrt()
        layer = scaled.get_submodule(name)
        assert isinstance(layer, _WEIGHTED)
        with torch.no_grad():
            layer.weight /= factor.to(layer.weight).view(-1, *[1] * (layer.weight.dim() - 1))
        bias = 0.0 if layer.bias is None else layer.bias.detach().double()
        measured.append(LayerStatistics(name, (statistics.mean - bias) / factor + bias, statistics.variance / factor**2))
    module.load_state_dict(scaled.state_dict())
    return tuple(measured)


def _prefixes(module: nn.Module, shape: tuple[int, ...]) -> Iterable[tuple[str, nn.Module]]:
    """Every layer with weights, and the network up to it, which returns the means of its output and of its square."""
    try:
        traced = fx.symbolic_trace(module)
    except (fx.proxy.TraceError, TypeError) as error:
        problem = f"{type(module).__name__} branches on its input, so its layers have no fixed order ({error})"
        raise TrainingError(f"{problem}; initialise it yourself") from None
    shapeless = copy.deepcopy(traced).to("meta")
    ShapeProp(shapeless).propagate(torch.empty(shape, dtype=next(module.parameters()).dtype, device="meta"))
    seen = set()
    for node, same in zip(traced.graph.nodes, shapeless.graph.nodes, strict=True):
        if node.op == "call_module" and node.target not in seen and isinstance(layer := traced.get_submodule(node.target), _WEIGHTED):
            seen.add(node.target)
            rank = len(same.meta["tensor_meta"].shape)
            yield node.target, _up_to(traced, node, tuple(range(1, rank - 1)) if isinstance(layer, nn.Linear) else tuple(range(2, rank)))


def _up_to(traced: fx.GraphModule, node: fx.Node, positions: tuple[int, ...]) -> fx.GraphModule:
    """The network up to a node, then the means (N, C) of its output and of its square over these dimensions."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for earlier in traced.graph.nodes:
        copies[earlier] = graph.node_copy(earlier, copies.__getitem__)
        if earlier is node:
            break
    output = graph.call_method("double", (copies[node],))
    both = output, graph.call_function(torch.mul, (output, output))
    graph.output(tuple(graph.call_method("mean", (values, positions)) for values in both) if positions else both)
    return fx.GraphModule(traced, graph)


def _measure(name: str, streamed: Streamed, images: Sequence[Tensor | LazyImage], done: Callable[[], None]) -> LayerStatistics:
    """Statistics of what a prefix of the network gives."""
    count, mean, square = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        for image in images:
            number, _, height, width = image.shape
            weight = number * height * width
            means = streamed(image, done)
            count += weight
            mean, square = (old + (new.mean(0).cpu() - old) * weight / count for old, new in zip((mean, square), means, strict=True))
    return LayerStatistics(name, mean, (square - mean**2).clamp(min=0))
