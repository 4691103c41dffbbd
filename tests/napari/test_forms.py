"""Forms: a control by the type of each field, what is wrong said beside it, the same request on a command line and in a script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
from streamview_napari.requests.controls import DisplayControls, LabelControls, RunControls, command_options, read_memory
from streamview_napari.requests.export import ExportControls
from streamview_napari.requests.finetuning import TuningControls, values_of

from streamview.cli.parser import build_parser
from streamview.errors import MemoryBudgetError, StreamviewError
from streamview.finetuning.settings import PRESETS
from streamview.inference.compute import Compute
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW
REQUESTS: tuple[tuple[type, dict[str, Any]], ...] = (
    (RunControls, {}),
    (DisplayControls, {}),
    (ExportControls, {}),
    (LabelControls, {}),
    (TuningControls, {"preset": "careful", "folder": Path("/out"), **values_of("careful")}),
)


@pytest.fixture
def put(qtbot: Any) -> Callable[[Any], Any]:
    """Show a row of a form in a window of its own that has the keys."""
    from qtpy.QtWidgets import QWidget

    def show(layout: Any) -> Any:
        window = QWidget()
        window.setLayout(layout)
        qtbot.addWidget(window)
        window.show()
        window.activateWindow()
        qtbot.waitUntil(window.isActiveWindow, timeout=5000)
        return window

    return show


def type_into(line: Any, text: str) -> None:
    """Click a line and type over what stands there."""
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    QTest.mouseClick(line, Qt.MouseButton.LeftButton)
    QTest.keyClick(line, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    QTest.keyClicks(line, text) if text else QTest.keyClick(line, Qt.Key.Key_Delete)


@pytest.mark.parametrize(("kind", "values"), REQUESTS)
def test_a_form_gives_what_it_was_given_and_names_and_explains_every_field(kind: type, values: dict[str, Any], qapp: Any) -> None:
    from streamview_napari.panels.forms import Form

    form = Form(kind, **values)
    assert form.value == kind(**values)
    for field in fields(kind):
        native = form[field.name].native
        assert len(native.toolTip()) > 20, field.name
        assert native.accessibleName() == form[field.name].label != field.name


def test_what_is_wrong_is_said_beside_the_field_once_it_is_left(put: Callable[[Any], Any], qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QLabel
    from streamview_napari.panels.forms import Form

    form = Form(RunControls)
    window = put(form.row("memory", "maps"))
    line = form["memory"].native
    problem = next(label for label in window.findChildren(QLabel) if label.text() != "Memory")
    heard: list[str] = []
    form.changed.connect(heard.append)
    type_into(line, "2 X")
    assert heard[-1] == "memory"
    assert not problem.isVisible()  # who types is not interrupted
    with pytest.raises(MemoryBudgetError, match="expected an amount such as 2GB"):
        _ = form.value
    QTest.keyClick(line, Qt.Key.Key_Return)
    assert problem.isVisible()
    assert "memory '2 X': expected an amount such as 2GB" in problem.text()
    type_into(line, "3GB")
    assert not problem.isVisible()
    assert form.value.compute == Compute(memory="3GB")
    type_into(line, "")
    assert form.value.compute == Compute()
    QTest.mouseClick(form["maps"].native, Qt.MouseButton.LeftButton, pos=form["maps"].native.rect().center() * 0.2)
    assert heard[-1] == "maps"
    assert not form.value.maps


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("learning_rate", "quick", "learning rate 'quick': expected a number such as 1e-4"),
        ("batch", "2.5", "batch '2.5': expected a whole number"),
        ("epochs", "0", "epochs 0: expected"),
        ("validation", "80 %", "validation 0.8: expected"),
        ("weight_decay", "nan", "weight decay nan: expected"),
        ("folder", "", "folder '': expected a folder"),
    ],
)
def test_what_a_control_of_training_cannot_hold_is_said(put: Callable[[Any], Any], name: str, text: str, said: str) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QLabel
    from streamview_napari.panels.forms import Form

    form = Form(TuningControls, **REQUESTS[-1][1])
    window = put(form.row(name))
    type_into(form[name].native, text)
    QTest.keyClick(form[name].native, Qt.Key.Key_Return)
    assert any(label.isVisible() and label.text().startswith(said) for label in window.findChildren(QLabel))
    with pytest.raises(StreamviewError, match=said.replace("(", "[(]")):
        _ = form.value


def test_sliders_show_per_cent_and_stay_within_their_range(put: Callable[[Any], Any]) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from streamview_napari.panels.forms import Form
    from superqt import QDoubleSlider

    form = Form(DisplayControls)
    window = put(form.row("threshold"))
    assert window.isVisible()
    slider = form["threshold"].native
    assert (slider.value(), slider.maximum()) == (15, 95)
    assert form["threshold"].unit.text() == "%"
    assert window.rect().contains(form["threshold"].unit.geometry())
    form.fill(threshold=0.29, cap_percentile=80.0)
    assert form.value == replace(DisplayControls(), threshold=0.29, cap_percentile=90.0)
    handle = slider.findChild(QDoubleSlider)
    QTest.mouseClick(handle, Qt.MouseButton.LeftButton)
    assert handle.hasFocus()
    form.fill(threshold=0.29)
    QTest.keyClick(window.focusWidget(), Qt.Key.Key_Right)
    assert form.value.threshold == 0.3
    QTest.keyClick(window.focusWidget(), Qt.Key.Key_PageDown)
    assert form.value.threshold == 0.2


def test_what_a_form_is_filled_with_is_not_a_change(qapp: Any) -> None:
    from streamview_napari.panels.forms import Form

    form, heard = Form(RunControls), []
    form.changed.connect(heard.append)
    form.fill(region="tissue", precision="bf16")
    assert heard == []
    assert (form.value.region, form.value.compute.precision) == ("tissue", "bf16")


@pytest.mark.parametrize("compute", [Compute(), Compute("cpu", "2GB", precision="bf16"), Compute(tile=(160, 192), precision="fp16")])
def test_the_command_line_reads_what_a_request_says(compute: Compute) -> None:
    words = command_options(compute, Compute())
    options = build_parser().parse_args(["saliency", "-i", "a.svs", "-o", "job", "-m", "demo", *words])
    tile = None if options.tile is None else tuple(int(part) for part in str(options.tile).strip("()").replace(" ", "").split(","))
    assert Compute(options.device, options.memory, cast(Any, tile), options.precision) == compute


def test_switches_and_names_on_the_command_line() -> None:
    careful = PRESETS["careful"]
    assert command_options(replace(careful, learning_rate=0.003, flips=False), careful) == ["--learning-rate", "0.003", "--no-flips"]
    assert read_memory("50%") == "50%"
