"""One real window: a job's slide and maps are drawn, and drawn in the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Layer
from PIL import Image

from streamview.geometry import Region
from streamview.jobs import Job, RegionResult, StoredMap
from streamview.results import Identity, Prediction, Saliency, SaliencyMap, Target, save_saliency
from streamview.slides import open_slide
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW
MPP = 0.5
REGION = Region(200, 304, 1280, 1024)


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A job whose maps are the slide's own lesion mask, on a grid of two level-0 pixels and, as evidence, of 32."""
    path = tmp_path / "planted.svs"
    mask = write_synthetic_slide(path, size=(1536, 1536), mpp=MPP, seed=3)
    inside = mask[REGION.y : REGION.y_stop, REGION.x : REGION.x_stop].astype(np.float32)
    fine = inside.reshape(640, 2, 512, 2).mean((1, 3))
    coarse = inside.reshape(40, 32, 32, 32).mean((1, 3))
    with open_slide(path) as slide:
        identity = Identity("ab", "cd", slide.identity, REGION, (2 * MPP, 2 * MPP), "float32")
    prediction = Prediction(
        "planted.svs",
        REGION,
        fine.shape,
        (2 * MPP, 2 * MPP),
        "class",
        ("normal", "lesion"),
        np.array([0, 2], np.float32),
        identity,
        "demo",
        True,
    )
    origin = (REGION.y + 0.5, REGION.x + 0.5)
    maps: dict[Any, SaliencyMap] = {
        "absolute": SaliencyMap("absolute", fine, (2.0, 2.0), origin),
        "signed": SaliencyMap("signed", fine, (2.0, 2.0), origin),
        "evidence": SaliencyMap("evidence", coarse, (32.0, 32.0), (REGION.y + 15.5, REGION.x + 15.5)),
    }
    folder = Job(tmp_path / "job")
    out = folder.saliency_path("planted.svs", REGION)
    save_saliency(Saliency(prediction, Target("lesion", 1), (0.2, 0.2, 0.2), (255, 255, 255), maps), out)
    folder.add(RegionResult(prediction, "run", maps=(StoredMap(str(out.relative_to(folder.folder))),), source=str(path)))
    folder.write_tables()
    return folder.folder, mask


def centre(layer: Any, values: np.ndarray) -> np.ndarray:
    """World position of the centre of mass of the layer's finest values."""
    return np.array(layer.data_to_world([float((values * index).sum() / values.sum()) for index in np.indices(values.shape)]))


def test_slide_mask_and_maps_lie_on_each_other(
    window: Callable[[Any], Any], job: tuple[Path, np.ndarray], screenshots: Path, qtbot: Any
) -> None:
    from streamview_napari.canvas.layers import mask_layer
    from streamview_napari.view import view

    folder, mask = job
    viewer = window(view(folder))
    data, options, kind = mask_layer(mask, "planted lesion", (MPP, MPP))
    labels = viewer.add_layer(Layer.create(data, options | {"visible": False}, kind))
    slide, paper, detail, evidence = viewer.layers[:4]
    inside = np.zeros_like(mask)
    inside[REGION.y : REGION.y_stop, REGION.x : REGION.x_stop] = mask[REGION.y : REGION.y_stop, REGION.x : REGION.x_stop]
    assert inside.any()
    truth = centre(labels, inside)
    np.testing.assert_allclose(truth, centre(slide, inside), atol=1e-9)
    # Within a quarter of a level-0 pixel where the values are the mask's; the blurred maps' finest shown pixel is 2 or 32 of level 0.
    for layer in (detail, evidence):
        values = np.asarray(layer.data[0] if layer.multiscale else layer.data)
        step = layer.scale[0] / MPP
        np.testing.assert_allclose(centre(layer, values), truth, atol=0.25 * MPP * max(step / 2, 1))
    for layer in (paper, detail, evidence):
        # napari's extent runs between the centres of the outermost pixels; their edges are the region's, half a level-0 pixel out.
        first, last = layer.extent.world[0] - layer.scale / 2, layer.extent.world[1] + layer.scale / 2
        np.testing.assert_allclose(first, ((REGION.y - 0.5) * MPP, (REGION.x - 0.5) * MPP), atol=1e-9)
        np.testing.assert_allclose(last, ((REGION.y_stop - 0.5) * MPP, (REGION.x_stop - 0.5) * MPP), atol=1e-9)

    # What is drawn: showing the map changes the canvas over the lesion, and next to nowhere else.
    def drawn() -> np.ndarray:
        qtbot.wait(300)
        return np.asarray(viewer.screenshot(canvas_only=True, flash=False))[..., :3].astype(int)

    viewer.canvas.overlays.text.visible = viewer.canvas.overlays.scale_bar.visible = evidence.colorbar.visible = False
    shown = drawn()
    evidence.visible = False
    viewer.canvas.overlays.text.visible = False
    bare = drawn()
    labels.visible, labels.opacity = True, 1.0
    masked = drawn()
    labels.visible, evidence.visible = False, True
    heat, lesion = np.abs(shown - bare).sum(-1) > 60, np.abs(masked - bare).sum(-1) > 60
    assert (bare > 0).any()
    assert lesion.sum() > 500
    assert (heat & lesion).sum() / lesion.sum() > 0.85
    assert (heat & lesion).sum() / heat.sum() > 0.6

    viewer.canvas.overlays.scale_bar.visible = True
    drawn()
    picture = screenshots / "napari-job.png"
    Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).save(picture)
    assert picture.stat().st_size > 100_000
