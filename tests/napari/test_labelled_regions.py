"""Labelled regions in lists and on layers, without a window."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Layer
from streamview_napari.canvas.labelled_regions import LabelledLayers
from streamview_napari.canvas.layers import slide_layer
from streamview_napari.canvas.region_layers import regions_on
from streamview_napari.panels.slide import measure
from streamview_napari.requests.labels import (
    class_names,
    colour_of,
    describe_counts,
    find_unsaved,
    free_place,
    join,
    list_rows,
    load,
    of_slide,
    path_of,
    relabel,
    replace_drawn,
)
from streamview_napari.requests.regions import corners
from streamview_napari.state import State

from streamview.errors import LabelError
from streamview.geometry import Region
from streamview.labels.regions import Example, read_labels, write_labels
from streamview.networks import load_card
from streamview.networks.cards import parse_card
from streamview.slides import open_slide
from streamview.slides.synthetic import write_synthetic_slide

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::DeprecationWarning:napari")
MPP = (0.5, 0.5)
SLIDES = [os.path.realpath(f"/slides/{name}.svs") for name in "abc"]
PLACES = st.none() | st.builds(Region, st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
EXAMPLES = st.builds(Example, st.sampled_from(SLIDES), st.sampled_from(["x", "y"]), PLACES)


@given(st.lists(EXAMPLES, max_size=8), st.sampled_from(SLIDES), st.lists(st.builds(Region, *[st.integers(1, 9)] * 4), max_size=4))
def test_what_is_drawn_replaces_what_was_drawn_on_that_slide_and_nothing_else(
    labels: list[Example], path: str, drawn: list[Region]
) -> None:
    new = [Example(path, "z", region) for region in drawn]
    found = replace_drawn(labels, path, new)
    assert [(e.label, e.region) for e in of_slide(found, path)] == [("z", region) for region in drawn]
    before = of_slide(labels, path)
    assert [e for e in found if e.label != "z"] == [e for e in labels if e not in before]
    again = replace_drawn(found, path, of_slide(found, path))
    assert [(e.source, e.label, e.region) for e in again] == [(e.source, e.label, e.region) for e in found]


def test_a_slide_has_one_name_in_tables_and_no_two_share_one() -> None:
    loaded = Example("/p1/slide.svs", "x", Region(0, 0, 4, 4), slide_id="p1/slide")
    same = replace_drawn(
        (loaded,), "/p1/slide.svs", [*of_slide((loaded,), "/p1/slide.svs"), Example("/p1/slide.svs", "y", Region(1, 1, 4, 4))]
    )
    assert [example.case for example in same] == ["p1/slide", "p1/slide"]
    drawn = Example("/p1/slide.svs", "x", Region(0, 0, 4, 4))
    other = replace_drawn((drawn,), "/p2/slide.svs", [Example("/p2/slide.svs", "y", Region(0, 0, 4, 4))])
    assert len({example.case for example in other}) == 2
    both = join(same, (replace(loaded, label="z"), Example("/p1/slide.svs", "z", Region(9, 9, 4, 4), slide_id="p1/slide")))
    assert [(example.label, example.slide_id) for example in both] == [("y", "p1/slide"), ("z", "p1/slide"), ("z", "p1/slide")]


def test_relabel_touches_the_chosen_rows_alone() -> None:
    labels = tuple(Example("/a.svs", "x", Region(0, n, 4, 4)) for n in range(3))
    found = relabel(labels, [1], "y", "p")
    assert [(example.label, example.patient) for example in found] == [("x", ""), ("y", "p"), ("x", "")]
    assert found[0] is labels[0]


def test_classes_counts_and_rows_in_words() -> None:
    card = load_card("demo")
    labels = (
        Example("/s/a.svs", "lesion", Region(1000, 12_000, 256, 512), "p1"),
        Example("/s/b.svs", "lesion", Region(0, 0, 256, 256), "p1"),
        Example("/s/b.svs", "odd & new", None, split="train"),
    )
    names = class_names(card, labels, ["later"])
    assert names == ("normal", "lesion", "later", "odd & new")
    assert len({colour_of(name, names) for name in names}) == 4
    assert colour_of("lesion", names) == colour_of("lesion", card.class_names), "a class keeps its colour when others come"
    assert colour_of("lesion;normal", names) == colour_of("lesion", names)
    counts = describe_counts(labels, names)
    assert ": 2 regions, 1 patient<br>" in counts.replace("</span> lesion", "")
    assert "odd &amp; new: 1 region, 1 patient" in counts
    first, second, third = list_rows(labels, {path_of(labels[0]): MPP, path_of(labels[1]): None})
    assert (first.slide, first.label, first.patient, first.place) == ("a", "lesion", "p1", "6.00, 0.50")
    assert "512 × 256 px · 0.26 × 0.13 mm" in first.tip
    assert (second.place, third.place) == ("0, 0 px", "whole")
    assert "256 × 256 px" in second.tip
    assert "Split: train" in third.tip
    document: dict[str, Any] = {
        "spec_version": "1.0", "architecture": "demo", "num_classes": 1, "class_names": ["score"], "patch_size_pixels": 64,
        "spacing_um_px": 0.5, "transform": [{"name": "ToTensor"}], "streamview": {"task": "regression"},
    }  # fmt: skip
    value = parse_card(document, name="score", file="card.json")
    assert class_names(value, (Example("/a.svs", "0.5"),)) == ("0.5",)
    assert class_names(None, ()) == ()


def test_unsaved_labels_of_two_windows_do_not_meet(tmp_path: Path) -> None:
    assert find_unsaved(tmp_path / "nowhere") is None
    first = free_place(tmp_path)
    first.write_text("")
    os.utime(first, (1, 1))
    second = free_place(tmp_path)
    assert second != first
    second.write_text("")
    assert find_unsaved(tmp_path) == second


# ------------------------------------------------------------------------------------------------------------------------- on the layers


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[ViewerModel, State, LabelledLayers, list[str]]]:
    """Two slides in a viewer without a window, and the layers of their labelled regions."""
    viewer = ViewerModel()
    paths = [str(tmp_path / f"{name}.svs") for name in "ab"]
    for seed, path in enumerate(paths):
        write_synthetic_slide(path, size=(256, 320), mpp=0.5, seed=seed)
        viewer.add_layer(Layer.create(*slide_layer(open_slide(path), path=path)))
    state = State(viewer)
    layers = LabelledLayers(viewer, state, names=lambda: ("normal", "lesion"), drawing_changed=lambda drawing: None, told=lambda word: None)
    state.events.labels_changed.connect(lambda labels: layers.show())
    state.events.slide_changed.connect(lambda layer: layers.show())
    state.select_slide(viewer.layers["a.svs"])
    yield viewer, state, layers, [os.path.realpath(path) for path in paths]
    layers.release()
    viewer.layers.clear()
    state.close()  # closes the slides whose layers are gone


def shapes(viewer: ViewerModel, slide: str) -> Any:
    return next(layer for layer, record in regions_on(viewer, labelled=True) if record.slide is viewer.layers[slide])


def test_drawing_moving_and_removing_rectangles_changes_the_labels(opened: Any) -> None:
    viewer, state, layers, (a, b) = opened
    layers.next("lesion", "p7")
    layers.draw(True)
    layer = shapes(viewer, "a.svs")
    assert (layer.mode, viewer.layers.selection.active) == ("add_rectangle", layer)
    region, other = Region(10, 20, 64, 96), Region(100, 100, 32, 32)
    layer.add_rectangles(corners(region, None))
    layers.next("normal", "")
    layer.add_rectangles(corners(other, None))
    assert [(e.source, e.label, e.patient, e.region) for e in state.labels] == [(a, "lesion", "p7", region), (a, "normal", "", other)]
    assert list(layer.features["label"]) == ["lesion", "normal"]
    colours = [tuple(colour) for colour in layer.edge_color]
    assert colours[0] != colours[1]
    layers.draw(False)
    assert viewer.layers.selection.active is viewer.layers["a.svs"]

    # another slide has a layer of its own, and only that of the slide worked on is seen
    state.select_slide(viewer.layers["b.svs"])
    layers.draw(True)
    shapes(viewer, "b.svs").add_rectangles(corners(region, None))
    assert [path_of(example) for example in state.labels] == [a, a, b]
    assert [shapes(viewer, name).visible for name in ("a.svs", "b.svs")] == [False, True]
    state.select_slide(viewer.layers["a.svs"])
    assert [shapes(viewer, name).visible for name in ("a.svs", "b.svs")] == [True, False]

    # moved by the user
    moved = Region(30, 40, 64, 96)
    layer.data = [corners(moved, None), layer.data[1]]
    assert [example.region for example in of_slide(state.labels, a)] == [moved, other]
    assert [example.label for example in of_slide(state.labels, a)] == ["lesion", "normal"]
    # beside the slide it is no region
    layer.data = [corners(moved, None) - 1000, layer.data[1]]
    assert [example.region for example in of_slide(state.labels, a)] == [other]
    layer.data = [corners(moved, None), layer.data[1]]
    # written into napari's own table of features
    layer.features = layer.features.assign(label=["normal", "normal"])
    assert {example.label for example in of_slide(state.labels, a)} == {"normal"}
    layer.selected_data = {0}
    layer.remove_selected()
    assert [example.region for example in of_slide(state.labels, a)] == [other]
    assert [path_of(example) for example in state.labels] == [a, b]


def test_labels_changed_elsewhere_are_shown(opened: Any) -> None:
    viewer, state, layers, (a, b) = opened
    region = Region(8, 16, 64, 128)
    state.label((Example(b, "lesion", region, "p", split="train"), Example(a, "lesion", region), Example(a, "normal", None)))
    layer = shapes(viewer, "a.svs")
    np.testing.assert_allclose([layer.data_to_world(corner) for corner in layer.data[0]], corners(region, MPP))
    assert len(layer.data) == 1, "a whole slide is no rectangle"
    state.select_slide(viewer.layers["b.svs"])
    layers.draw(True)
    shapes(viewer, "b.svs").add_rectangles(corners(Region(0, 0, 32, 32), None))
    assert [(e.label, e.patient, e.split) for e in of_slide(state.labels, b)] == [("lesion", "p", "train"), ("", "", "")]
    state.label(relabel(state.labels, range(len(state.labels)), "normal", "q"))
    assert set(shapes(viewer, "b.svs").features["patient"]) == {"q"}
    state.label(())
    assert len(layer.data) == len(shapes(viewer, "b.svs").data) == 0


def test_closing_a_slide_keeps_its_labels(opened: Any) -> None:
    viewer, state, layers, (a, _) = opened
    layers.draw(True)
    layers.next("lesion", "")
    shapes(viewer, "a.svs").add_rectangles(corners(Region(0, 0, 32, 32), None))
    viewer.layers.remove(viewer.layers["a.svs"])
    assert [path_of(example) for example in state.labels] == [a]
    assert [layer.name for layer in viewer.layers] == ["b.svs"]
    again = viewer.add_layer(Layer.create(*slide_layer(open_slide(a), path=a)))
    state.select_slide(again)
    assert len(shapes(viewer, again.name).data) == 1
    viewer.layers.remove(shapes(viewer, again.name))
    assert len(state.labels) == 1, "hiding a layer for good is no way to delete labels"
    viewer.layers.clear()
    assert len(state.labels) == 1


def test_a_slide_that_gets_its_mpp_later_keeps_what_was_drawn_and_says_it_was_given(tmp_path: Path) -> None:
    path = os.path.realpath(tmp_path / "plain.tif")
    tifffile.imwrite(path, np.full((256, 256, 3), 200, np.uint8), photometric="rgb", tile=(128, 128))
    viewer = ViewerModel()
    layer = viewer.add_layer(Layer.create(*slide_layer(open_slide(path), path=path)))
    state = State(viewer)
    layers = LabelledLayers(viewer, state, names=lambda: ("a",), drawing_changed=lambda drawing: None, told=lambda word: None)
    state.events.slide_changed.connect(lambda found: layers.show())
    layers.next("a", "")
    layers.draw(True)
    region = Region(16, 32, 64, 64)
    shapes(viewer, "plain.tif").add_rectangles(corners(region, None))
    assert state.labels[0].mpp is None
    for mpp in (0.25, 0.5):  # given, and corrected
        measure(layer, mpp)
        for other in viewer.layers:
            other.scale, other.units = layer.scale, layer.units
        state.events.slide_changed.emit(layer)
        (example,) = state.labels
        assert (example.region, example.mpp) == (region, mpp)
        np.testing.assert_allclose(shapes(viewer, "plain.tif").extent.world[0], np.subtract((16, 32), 0.5) * mpp)
    assert state.history.undo()
    assert state.labels == (), "the mpp is no step of its own"
    layers.release()
    viewer.layers.clear()
    state.close()  # closes the slides whose layers are gone


def test_a_table_is_read_with_the_resolution_of_its_slides(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    write_synthetic_slide(path, size=(256, 256), mpp=0.5, seed=0)
    write_labels(tmp_path / "labels.csv", [Example(path, "x", Region(0, 0, 64, 64)), Example(path, "y", None)])
    labels, mpps = load(tmp_path / "labels.csv")
    assert [example.label for example in labels] == [example.label for example in read_labels(tmp_path / "labels.csv")]
    assert mpps == {os.path.realpath(path): pytest.approx(MPP)}
    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    (elsewhere / "labels.csv").write_text("slide_id,label\na,x\n")
    assert load(elsewhere / "labels.csv", tmp_path)[1] == mpps
    with pytest.raises(LabelError, match="slide 'a' is not in"):
        load(elsewhere / "labels.csv")
