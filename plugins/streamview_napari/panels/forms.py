"""Forms: what a section asks, a frozen dataclass, gets its controls from magicgui by the types of its fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache, partial
from inspect import getdoc
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from magicgui.backends._qtpy.widgets import QBaseValueWidget, RangeSlider, _Slider
from magicgui.type_map import TypeMap
from magicgui.widgets import LineEdit
from magicgui.widgets.bases import SliderWidget, ValueWidget
from psygnal import Signal
from qtpy.QtCore import Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QComboBox, QGridLayout, QLabel, QLayout, QLineEdit, QSizePolicy, QVBoxLayout, QWidget
from superqt import QDoubleSlider, QLabeledDoubleSlider

from streamview.errors import StreamviewError
from streamview.finetuning.settings import Part
from streamview.results import Method, Precision
from streamview.results.display import PALETTES
from streamview.results.display import TITLES as MAPS
from streamview.results.methods import METHOD_TITLES, MethodName
from streamview_napari.panels.class_chooser import ClassChooser
from streamview_napari.panels.section import LABEL_WIDTH, error_label, labelled
from streamview_napari.panels.theme import set_role
from streamview_napari.requests import controls
from streamview_napari.requests.export import FORMATS, Format
from streamview_napari.requests.finetuning import PARTS, TITLES, Preset
from streamview_napari.requests.inference import REGIONS, RegionChoice

__all__ = ["Form"]

_Request = TypeVar("_Request")
_STEPS = {
    Qt.Key.Key_Left: -1, Qt.Key.Key_Down: -1, Qt.Key.Key_PageDown: -10, Qt.Key.Key_Right: 1, Qt.Key.Key_Up: 1, Qt.Key.Key_PageUp: 10,
}  # fmt: skip


class Form(Generic[_Request]):
    """A control for each field of a request.

    A field's type decides what its control is, its `Annotated` has magicgui's options, among them the ``label``, and its tip is what the
    docstring of the request says of it. What is wrong with a field is said below it once the user leaves it.

    Parameters
    ----------
    kind
        The request: a frozen dataclass.
    values
        Of the fields that do not begin with their default.
    """

    changed = Signal(str)
    """Emitted with the name of the field that has changed, whether or not its value is one."""

    def __init__(self, kind: type[_Request], **values: Any) -> None:
        self._kind = kind
        self._widgets: dict[str, ValueWidget[Any]] = {}
        self._problems: dict[tuple[str, ...], QLabel] = {}
        hints, tips = get_type_hints(kind, include_extras=True), _tips(kind)
        for field in fields(kind):  # type: ignore[arg-type]  # there is no type of the classes that are dataclasses
            value, options = values.get(field.name, field.default), {"tooltip": tips[field.name]}
            widget: Any = _types().create_widget(value, hints[field.name], field.name, options=options)
            widget.native.setAccessibleName(widget.label)
            if isinstance(widget.native, QComboBox):
                widget.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            elif isinstance(widget.native, QLineEdit):
                widget.native.editingFinished.connect(partial(self._check, field.name, left=True))
            widget.changed.connect(partial(self._changed, field.name))
            self._widgets[field.name] = widget

    def __getitem__(self, name: str) -> Any:
        """Return magicgui's widget of a field; its ``native`` is Qt's."""
        return self._widgets[name]

    @property
    def value(self) -> _Request:
        """What the controls say.

        Raises
        ------
        StreamviewError
            When one of them holds what it cannot.
        """
        return self._kind(**{name: widget.value for name, widget in self._widgets.items()})

    @property
    def valid(self) -> bool:
        """Whether every control holds what it can."""
        return not _problem(lambda: self.value)

    @property
    def natives(self) -> tuple[Any, ...]:
        """Qt's widgets, in the order of the fields."""
        return tuple(widget.native for widget in self._widgets.values())

    def fill(self, **values: Any) -> None:
        """Let controls say something else, and emit nothing."""
        with self.changed.blocked():
            for name, value in values.items():
                self[name].value = value

    def row(self, *names: str, beside: Sequence[QWidget] = ()) -> QVBoxLayout:
        """Return a row of the first field's label, the fields with their units, and other widgets."""
        widgets = [self[name] for name in names]
        units = [widget.unit for widget in widgets if isinstance(widget, Slider)]
        row = labelled(widgets[0].label, *(widget.native for widget in widgets), *units, *beside)
        for place in range(len(names)):
            row.setStretch(1 + place, 1)
        return self._with_problem(row, names)

    def grid(self, *names: str) -> QVBoxLayout:
        """Return rows of two labelled fields each."""
        grid = QGridLayout()
        grid.setSpacing(6)
        grid.setColumnMinimumWidth(0, LABEL_WIDTH)
        for number, name in enumerate(names):
            row, pair = divmod(number, 2)
            grid.addWidget(QLabel(self[name].label), row, 2 * pair)
            grid.addWidget(self[name].native, row, 2 * pair + 1)
            grid.setColumnStretch(2 * pair + 1, 1)
        return self._with_problem(grid, names)

    def _with_problem(self, inner: QLayout, names: tuple[str, ...]) -> QVBoxLayout:
        column = QVBoxLayout()
        column.addLayout(inner)
        self._problems[names] = error_label()
        column.addWidget(self._problems[names])
        return column

    def _changed(self, name: str, value: object) -> None:
        self._check(name)
        self.changed.emit(name)

    def _check(self, last: str, *, left: bool = False) -> None:
        """Say what is wrong with each field; what is wrong with all together, beside the one that changed last."""
        problems = {name: _problem(lambda widget=widget: widget.value) for name, widget in self._widgets.items()}  # type: ignore[misc]
        if not any(problems.values()):
            problems[last] = _problem(lambda: self.value)
        for names, label in self._problems.items():
            text = "\n".join(problems[name] for name in names if problems[name])
            typing = not left and any(self[name].native.hasFocus() for name in names)
            label.setText(text)
            label.setVisible(bool(text) and (not typing or not label.isHidden()))


class Line(LineEdit):
    """A line whose text is read as a value.

    Parameters
    ----------
    read, write
        From text, and back. `read` raises ValueError, or a `StreamviewError` that says what is wrong.
    expected
        For the error that a ValueError becomes.
    placeholder
        What stands there while it is empty.
    """

    def __init__(
        self,
        *,
        read: Callable[[str], Any] = str,
        write: Callable[[Any], str] = str,
        expected: str = "",
        placeholder: str = "",
        **options: Any,
    ) -> None:
        self._read, self._write, self._expected = read, write, expected
        super().__init__(**options)
        self.native.setPlaceholderText(placeholder)

    def get_value(self) -> Any:
        """Read the text."""
        text = self.native.text().strip()
        try:
            return self._read(text)
        except ValueError:
            raise StreamviewError(f"{self.label.lower()} {text!r}: expected {self._expected}") from None

    def set_value(self, value: Any) -> None:
        """Write the text."""
        super().set_value(self._write(value))


class _KeyedSlider(QDoubleSlider):
    """superqt's slider, which takes no keys of its own."""

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Go by one step, or by ten."""
        steps = _STEPS.get(Qt.Key(event.key()))
        if steps is None:
            super().keyPressEvent(event)
        else:
            self.setValue(self.value() + steps * self.singleStep())


class _NumberedSlider(QLabeledDoubleSlider):
    _slider_class = _KeyedSlider


class _LabelledSlider(RangeSlider):
    """A slider of one value with its number beside it, for magicgui, which has it for two values alone."""

    def __init__(self, **options: Any) -> None:
        _Slider.__init__(self, _NumberedSlider, **options)

    def _mgui_set_readout_visibility(self, value: bool) -> None:
        """The number is always shown."""


class Slider(SliderWidget[float]):
    """A slider with its number beside it; values outside its range are shown as the nearest within.

    Parameters
    ----------
    decimals
        Of the number.
    scale
        What a value of 1 is on the slider.
    unit
        Of the number, on the label `unit`.
    """

    def __init__(self, *, decimals: int, scale: float = 1, unit: str = "", **options: Any) -> None:
        self._decimals, self._scale = decimals, scale
        super().__init__(widget_type=_LabelledSlider, step=10.0**-decimals, **options)
        self.native.setDecimals(decimals)
        self.native.setFixedHeight(22)
        self.native.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # it is the slider in it that keys move
        self.native.findChild(_KeyedSlider).setAccessibleName(self.label)
        self.unit = QLabel(unit)
        set_role(self.unit, "quiet")
        self.unit.setFixedWidth(56)

    def get_value(self) -> float:
        """Return the number shown, without the scale."""
        return round(super().get_value(), self._decimals) / self._scale

    def set_value(self, value: float) -> None:
        """Show a value."""
        super().set_value(min(max(value * self._scale, self.min), self.max))


class _ClassChooser(QBaseValueWidget):
    """The chooser of a class, for magicgui."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ClassChooser, "currentText", "setCurrentText", "chosen_changed", **options)


class Classes(ValueWidget[str]):
    """The chooser of a class, as one of magicgui's widgets."""

    def __init__(self, **options: Any) -> None:
        super().__init__(widget_type=_ClassChooser, **options)

    def get_value(self) -> str:
        """Return the class that is chosen."""
        return str(self.native.chosen)


@cache
def _types() -> TypeMap:
    """What control each type of the requests gets."""
    types = TypeMap()
    texts: dict[Any, dict[Any, str]] = {
        RegionChoice: dict(REGIONS), controls.Device: dict(controls.DEVICES), Precision: dict(controls.PRECISIONS), Method: dict(MAPS),
        MethodName: dict(METHOD_TITLES),
        Preset: dict(TITLES), Part: dict(PARTS), Format: {name: each.title for name, each in FORMATS.items()},
        controls.ModelName: {"": "Looking for networks…"}, controls.Palette: {name: name for name in PALETTES},
    }  # fmt: skip
    for kind, choices in texts.items():
        types.register_type(kind, choices=[(text, value) for value, text in choices.items()])
    line, slider = (partial(types.register_type, widget_type=widget) for widget in (Line, Slider))
    line(str)
    line(controls.Memory, read=controls.read_memory)
    line(controls.Folder, read=_read_folder, write=lambda path: str(path) if path.parts else "", expected="a folder")
    line(controls.Count, read=int, expected="a whole number")
    line(controls.Rate, read=float, write="{:g}".format, expected="a number such as 1e-4")
    line(controls.Share, read=_read_share, write=lambda share: f"{100 * share:g} %", expected="a number such as 25")
    slider(controls.Micrometres, decimals=1, min=0)
    slider(controls.Percent, decimals=0, min=0, scale=100, unit="%")
    slider(controls.Percentile, decimals=1, max=100, unit="%ile")
    slider(controls.Fraction, decimals=2, min=0, max=1)
    types.register_type(controls.ClassName, widget_type=Classes)
    return types


def _read_share(text: str) -> float:
    return float(text.removesuffix("%")) / 100


def _read_folder(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text).expanduser()


def _tips(kind: type) -> dict[str, str]:
    """What the NumPy docstring of a class says of each of its parameters."""
    parameters = (getdoc(kind) or "").partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    return {name: " ".join(text.split()) for name, text in re.findall(r"^(\w+)\n((?:    .*\n?)+)", parameters, re.MULTILINE)}


def _problem(read: Callable[[], Any]) -> str:
    """What is wrong with a value; empty where nothing is."""
    try:
        read()
    except StreamviewError as error:
        return str(error)
    return ""
