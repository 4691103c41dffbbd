"""The layers of a map that is being computed: made once, hidden between runs. Without Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamview_napari.canvas.layers import LayerTuple, live_layer

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview_napari.canvas.live_map import LiveMap

__all__ = ["LiveLayers"]


class LiveLayers:
    """The evidence, which is known before the gradient, and what there is of that.

    Parameters
    ----------
    viewer
        Whose layers they become; to remove one, and add it again, would take napari a good part of a second.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layers: dict[str, Image] = {}
        self._drawn: LiveMap | None = None

    def draw(self, live: LiveMap, mpp: tuple[float, float] | None, *, visible: bool) -> None:
        """Show how far a map has come; `visible`: whether the slide that it is of is on show."""
        if live.values is None:
            return
        if live is not self._drawn:
            self._drawn = live
            if live.evidence is not None:
                evidence = live.evidence
                self._show("evidence", live_layer("evidence", live.target, evidence.values, mpp, evidence.step, evidence.origin))
            elif "evidence" in self._layers:
                self._layers["evidence"].visible = False
            self._show("gradient", live_layer("gradient", live.target, live.values, mpp, live.step, live.origin))
        gradient = self._layers["gradient"]
        if gradient.data is not live.values:
            gradient.data = live.values
        gradient.contrast_limits = (0, live.peak)
        for kind, layer in self._layers.items():
            layer.visible = visible and (kind == "gradient" or live.evidence is not None)
        gradient.refresh()

    def hide(self) -> None:
        """Hide them: the run has ended."""
        self._drawn = None
        for kind, layer in self._layers.items():
            layer.visible = False
            layer.name = f"For the next run: {kind}"

    def _show(self, kind: str, layer_tuple: LayerTuple) -> None:
        from napari.layers import Layer

        values, options, name = layer_tuple
        layer = self._layers.get(kind)
        if layer is None or layer not in self._viewer.layers:
            active = self._viewer.layers.selection.active
            self._layers[kind] = self._viewer.add_layer(Layer.create(values, options, name))
            self._viewer.layers.selection.active = active
            return
        layer.visible = False
        layer.data = values
        for option in ("units", "scale", "translate", "contrast_limits", "colormap", "opacity", "name"):
            setattr(layer, option, options[option])
