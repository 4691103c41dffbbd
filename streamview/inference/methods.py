"""What each method of explanation costs, and where it has no sense: its passes over the region, and the features of Grad-CAM."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamview.errors import ModelError, RegionError
from streamview.results import ExplanationMethod
from streamview.streaming.graph import Graph, Sink

__all__ = ["Passes", "check_method", "last_features", "map_bytes", "passes_of", "patch_counts"]

_MOST_PATCHES = 1024  # forward passes of an occlusion
_POOLED = ("map", "mean", "max", "sum")


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a run goes over the region.

    Parameters
    ----------
    forward, backward
        Passes of each kind.
    """

    forward: int
    backward: int = 0

    @property
    def all(self) -> int:
        """Of both kinds."""
        return self.forward + self.backward

    def __str__(self) -> str:
        """In words."""
        kinds = [(self.forward, "forward"), (self.backward, "backward")]
        return " and ".join(f"{count} {kind} pass{'es' if count > 1 else ''}" for count, kind in kinds if count)


def passes_of(method: ExplanationMethod, targets: int, inside: tuple[int, int]) -> Passes:
    """The passes that explain so many targets of a region of this height and width; without targets those of a prediction."""
    if not targets:
        return Passes(1)
    match method.name:
        case "smoothgrad":
            return Passes(1 + method.samples, method.samples * targets)
        case "integrated-gradients":
            return Passes(2 + method.steps, method.steps * targets)
        case "occlusion":
            return Passes(1 + math.prod(patch_counts(method, inside)))
        case "grad-cam":
            return Passes(1)
        case _:
            return Passes(1, targets)


def patch_counts(method: ExplanationMethod, inside: tuple[int, int]) -> tuple[int, int]:
    """How many patches hide a region of this height and width, down and across; the last ones end at its edge."""
    rows, columns = (max(-(-(side - method.patch) // method.stride), 0) + 1 for side in inside)
    return rows, columns


def check_method(method: ExplanationMethod, graph: Graph, name: str, inside: tuple[int, int]) -> None:
    """Refuse a method that has no sense for a network or a region.

    Raises
    ------
    ModelError
        When Grad-CAM finds no features with rows and columns before the head.
    RegionError
        When the patches of an occlusion are larger than the region, or too many.
    """
    height, width = inside
    if method.name == "grad-cam" and last_features(graph) is None:
        raise ModelError(
            f"method grad-cam: the head of the model {name} does not begin with one feature map, whole or pooled; use "
            "gradient, smoothgrad or integrated-gradients"
        )
    if method.name != "occlusion":
        return
    if method.patch > min(inside):
        raise RegionError(
            f"method {method}: a patch of {method.patch} px is larger than the region, {width} x {height} px on the network's grid; use a "
            "smaller patch"
        )
    count = math.prod(patch_counts(method, inside))
    if count > _MOST_PATCHES:
        least = math.ceil(math.sqrt(height * width / _MOST_PATCHES))
        while math.prod(-(-max(side - least, 0) // least) + 1 for side in inside) > _MOST_PATCHES:
            least += 1
        raise RegionError(
            f"method {method}: {count} patches, each a forward pass over {width} x {height} px; at most {_MOST_PATCHES} are computed: use "
            f"occlusion:patch={least}, or a smaller region"
        )


def last_features(graph: Graph) -> list[Sink] | None:
    """What the head takes where that is one feature map, whole or pooled in one or several ways; None for other heads."""
    inputs = graph.head.tensors
    sinks = [key for key in inputs if isinstance(key, Sink) and key.kind in _POOLED]
    return sinks if sinks and len(sinks) == len(inputs) and len({sink.value for sink in sinks}) == 1 else None


def map_bytes(method: ExplanationMethod, px: int, targets: int, *, stored: bool) -> int:
    """Bytes of maps of so many px in memory on a processor: those that passes are summed in, and results that are not `stored`."""
    match method.name:
        case "smoothgrad":
            return 8 * px * targets
        case "integrated-gradients":
            return 12 * px * targets
        case "grad-cam":
            return 0
        case _:
            return 0 if stored else 8 * px * targets
