"""The difference of two results' maps for one region: of two targets or of two networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamview.errors import StreamviewError
from streamview.results.maps import Plane, Saliency, SaliencyMap
from streamview.results.prediction import Target

__all__ = ["difference"]


class _Difference:
    """One level of two maps: the first minus the second."""

    def __init__(self, first: Plane, second: Plane) -> None:
        self._first, self._second = first, second
        self.shape = first.shape

    def __getitem__(self, key: tuple[slice, slice]) -> Any:
        return self._first[key] - self._second[key]


def difference(first: Saliency, second: Saliency) -> Saliency:
    """Return the maps of `first` minus those of `second`, read lazily; a display shows where the first is larger.

    The prediction is the first's, with a warning that states what was subtracted.

    Parameters
    ----------
    first, second
        Results for one region on one grid: of two targets or of two networks.

    Raises
    ------
    StreamviewError
        If their grids differ, or they have no map in common.
    """
    ours, theirs = first.prediction, second.prediction
    if ours.identity.source != theirs.identity.source or ours.region != theirs.region:
        places = [f"{prediction.slide_name} {prediction.region}" for prediction in (ours, theirs)]
        raise StreamviewError(f"{' and '.join(places)}: only maps of one region of one slide can be subtracted; choose another result")
    maps = {}
    for method, one in first.maps.items():
        other = second.maps.get(method)
        if other is not None and _grid(one) == _grid(other):
            levels = one.levels if len(one.levels) == len(other.levels) else (one.values,)
            pairs = zip(levels, other.levels, strict=False)
            planes = [Plane(_Difference(a, b)) for a, b in pairs]
            maps[method] = SaliencyMap(method, planes[0], one.step, one.origin, tuple(planes[1:]), one.explained_by)
    if not maps:
        raise StreamviewError(
            f"maps of {ours.shape} and {theirs.shape} px: expected the same grid; use networks of the same mpp for the same region"
        )
    names = [_named(saliency, ours.identity.weights_sha256 != theirs.identity.weights_sha256) for saliency in (first, second)]
    if ours.identity.method != theirs.identity.method:
        names = [f"{name} by {one.prediction.identity.method or 'gradient'}" for name, one in zip(names, (first, second), strict=True)]
    subtracted = f"{names[1]} (identity {theirs.identity.key[:12]}, {theirs.answer_for(second.target)})"
    warning = f"The map is a difference: {names[0]} minus {subtracted}."
    prediction = replace(ours, warnings=(*ours.warnings, warning), trained=ours.trained and theirs.trained)
    target = Target(f"{names[0]} over {names[1]}", first.target.index, first.target.against)
    return replace(first, prediction=prediction, target=target, maps=maps, path=None)


def _grid(saliency_map: SaliencyMap) -> tuple[object, ...]:
    return saliency_map.values.shape, saliency_map.step, saliency_map.origin


def _named(saliency: Saliency, with_network: bool) -> str:
    if not with_network:
        return saliency.target.name
    return f"{saliency.target.name} by {saliency.prediction.model_name} {saliency.prediction.identity.weights_sha256[:6]}"
