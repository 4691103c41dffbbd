"""Colours: every text can be read in every theme, and what meets on the canvas can be told apart also without green cones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from streamview_napari.requests.labels import CLASS_COLOURS, NO_CLASS

from streamview.results.display import OUTLINE_COLOUR
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.dock import LIMIT, click, open_dock, section, settle
from tests.support.real_window import REAL_WINDOW

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009: severity 1
DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
THEMES = ("dark", "light")


@pytest.fixture
def dock(window: Callable[[Any], Any], tmp_path: Path, qtbot: Any) -> Any:
    path = tmp_path / "planted.svs"
    write_synthetic_slide(path, size=(768, 1024), mpp=0.5, seed=3)
    return open_dock(window, path, qtbot)[1]


def contrast(one: Any, other: Any) -> float:
    """The contrast ratio of WCAG 2.2, written down once more; sRGB, 0 to 255."""
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (np.array(one[:3]) / 255, np.array(other[:3]) / 255)]
    dark, light = sorted(float(c @ (0.2126, 0.7152, 0.0722)) for c in linear)
    return (light + 0.05) / (dark + 0.05)


def differences(colours: list[str]) -> dict[tuple[str, str], float]:
    """CIEDE2000 between all pairs of colours, as seen by a deuteranope."""
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ DEUTERANOPIA.T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    return {(colours[i], colours[j]): float(deltaE_ciede2000(lab[i], lab[j])) for i, j in combinations(range(len(colours)), 2)}


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_and_shape_stands_out_from_its_ground(theme: str) -> None:
    from streamview_napari.panels.theme import colours

    found = colours(theme)
    for text, ground in found.texts:
        assert contrast(text, ground) >= 4.5, (text, ground)
    for shape, ground in found.shapes:
        assert contrast(shape, ground) >= 3, (shape, ground)


def test_contrast_as_the_guideline_defines_it() -> None:
    from streamview_napari.panels import theme

    assert theme.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert theme.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)
    assert theme.contrast((255, 255, 255), (119, 119, 119)) == pytest.approx(4.48, abs=0.005)
    assert theme.contrast((90, 12, 200), (240, 230, 12)) == pytest.approx(contrast((90, 12, 200), (240, 230, 12)))


def test_no_panel_has_colours_of_its_own() -> None:
    import re

    import streamview_napari.panels as panels

    folder = Path(next(iter(panels.__path__)))
    own = {
        path.name: found
        for path in folder.glob("*.py")
        if path.name != "theme.py" and (found := re.findall(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b|setStyleSheet\(.*col", path.read_text()))
    }
    assert own == {}


def test_classes_and_outlines_are_told_apart_without_green_cones() -> None:
    from streamview_napari.canvas.drawn_regions import _BLUE

    found = differences([*CLASS_COLOURS, NO_CLASS, OUTLINE_COLOUR, _BLUE])
    assert min(found.values()) >= 20, sorted((round(value, 1), pair) for pair, value in found.items())[:5]


class TestWindow:
    """The same in a real window, where napari's own style sheet has its say."""

    pytestmark = REAL_WINDOW

    @pytest.mark.slow
    def test_a_switch_of_theme_changes_all_texts_at_once(self, dock: Any, qtbot: Any, screenshots: Path) -> None:
        from qtpy.QtWidgets import QLabel, QLineEdit, QPushButton, QTableWidget, QToolButton

        panel = section(dock, "Model and region")
        panel.region.setCurrentIndex(panel.region.findData("whole"))
        qtbot.waitUntil(panel.run.isEnabled, timeout=LIMIT)
        panel.run.click()
        qtbot.waitUntil(lambda: bool(dock.state.answers) and not panel.task.running, timeout=LIMIT)
        for found in dock.sections:  # the texts that are rarely seen
            if hasattr(found, "problem"):
                found.problem.setText("What went wrong, and what to do.")
                found.problem.show()
        bar = dock.tabs.tabBar()
        for theme in ("light", "dark"):
            dock.viewer.theme = theme
            seen, fields = {}, []
            for tab in range(dock.tabs.count()):
                click(bar, (bar.tabRect(tab).center().x(), bar.tabRect(tab).center().y()))
                settle(qtbot)
                name = f"dock-{theme}-{dock.tabs.tabText(tab).lower()}.png"
                Image.fromarray(dock.viewer.screenshot(canvas_only=False, flash=False)).save(screenshots / name)
                for kind in (QLabel, QPushButton, QToolButton, QLineEdit, QTableWidget):
                    fields += [found for found in dock.findChildren(kind) if found.isVisible()]
            for widget in fields:
                if widget.isEnabled():
                    text, ground = widget.palette().color(widget.foregroundRole()), widget.palette().color(widget.backgroundRole())
                    if ground.alpha() == 0:
                        ground = dock.palette().color(dock.backgroundRole())
                    seen[type(widget).__name__, str(getattr(widget, "text", str)())[:30]] = contrast(text.getRgb(), ground.getRgb())
            assert len(seen) > 30
            assert {what: value for what, value in seen.items() if value < 4.5} == {}
        dark = panel.run.palette().color(panel.run.backgroundRole())
        dock.viewer.theme = "light"
        assert panel.run.palette().color(panel.run.backgroundRole()) != dark

    @pytest.mark.slow
    def test_networks_with_random_weights_are_named_in_the_colour_of_warnings(self, dock: Any, qtbot: Any) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtGui import QColor
        from streamview_napari.panels.theme import colours

        panel = section(dock, "Model and region")
        place = next(k for k in range(panel.model.count()) if "random" in panel.model.itemText(k))
        for theme in THEMES:
            dock.viewer.theme = theme
            amber = QColor(*colours(theme).warning)
            assert panel.model.itemData(place, Qt.ItemDataRole.ForegroundRole) == amber
            assert panel.model.itemData(panel.model.findData("demo"), Qt.ItemDataRole.ForegroundRole) is None
        assert panel.card.palette().color(panel.card.foregroundRole()) != amber
        panel.model.setCurrentIndex(place)
        panel.model.activated.emit(place)
        qtbot.waitUntil(lambda: dock.state.loaded is not None, timeout=LIMIT)
        for named in (panel.card, panel.model):
            assert named.palette().color(named.foregroundRole()) == amber
        bar = dock.tabs.tabBar()
        click(bar, (bar.tabRect(1).center().x(), bar.tabRect(1).center().y()))
        subject = section(dock, "Fine-tune").subject
        assert "random weights" in subject.text()
        assert subject.palette().color(subject.foregroundRole()) == amber
