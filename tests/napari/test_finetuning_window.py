"""Labels and fine-tuning in a real window: draw, save, train, compare, use, go back; stop; errors."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from streamview.errors import TrainingError
from streamview.finetuning.trainer import Trainer
from streamview.geometry import Region
from streamview.labels.regions import read_labels
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW
MPP = (0.5, 0.5)
LIMIT = 60_000  # ms that anything may take on a busy machine
LEFT, RIGHT = Region(64, 64, 128, 128), Region(128, 256, 128, 160)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    paths = [folder / f"{name}.svs" for name in "ab"]
    for seed, path in enumerate(paths):
        write_synthetic_slide(path, size=(384, 512), mpp=MPP[0], seed=seed)
    return paths


class Panel:
    """The window on some slides, and what a user does there."""

    def __init__(self, window: Callable[[Any], Any], slides: list[Path], qtbot: Any) -> None:
        from streamview_napari.view import add_layers, view

        self.viewer, self.qtbot = window(view(slides[0])), qtbot
        self.dock = self.viewer.window.dock_widgets["Panel (streamview)"]
        self.labels, self.tune, self.model = (self.section(title) for title in ("Labels", "Fine-tune", "Model and region"))
        for path in slides[1:]:
            add_layers(self.viewer, str(path))
        self.wait(lambda: self.dock.state.loaded is not None)
        for section in (self.labels, self.tune):
            section.unfold.emit()

    def section(self, title: str) -> Any:
        return next(found for found in self.dock.sections if found.title == title)

    def wait(self, until: Callable[[], Any]) -> None:
        from qtpy.QtCore import QEventLoop, QTimer

        for _ in range(LIMIT // 20):
            if until():
                return
            loop = QEventLoop()  # qtbot waits by vispy's qWait, which takes a whole processor, and the training gives way to it
            QTimer.singleShot(20, loop.quit)
            loop.exec()
        raise TimeoutError("the window did not get there")

    def draw(self, slide: str, regions: dict[str, Region]) -> None:
        """Drag a rectangle for each class."""
        from streamview_napari.requests.regions import corners

        self.viewer.layers.selection.active = self.viewer.layers[slide]
        for label, region in regions.items():
            self.labels.label.setCurrentText(label)
            self.labels.label.activated.emit(self.labels.label.currentIndex())
            self.labels.draw.click()
            layer = self.viewer.layers.selection.active
            assert layer.mode == "add_rectangle"
            layer.add_rectangles(corners(region, None))
            self.labels.draw.click()
            assert not self.labels.draw.isChecked()

    def prepare(self, **numbers: str) -> None:
        """Set the controls, insist, and wait until it can start."""
        for name, text in numbers.items():
            self.tune.controls[name].native.setText(text)
        self.tune.anyway.setChecked(True)
        self.wait(self.tune.run.isEnabled)

    def digest(self) -> str:
        """Of the base's weights, bit for bit."""
        state = self.dock.state.loaded.model.module.state_dict()
        return hashlib.sha256(b"".join(key.encode() + value.contiguous().numpy().tobytes() for key, value in state.items())).hexdigest()


@pytest.fixture
def panel(window: Callable[[Any], Any], slides: list[Path], qtbot: Any) -> Panel:
    """The window on two slides."""
    return Panel(window, slides, qtbot)


@pytest.mark.slow
def test_from_drawing_to_using_the_tuned_network_and_back(
    panel: Panel, slides: list[Path], tmp_path: Path, own_settings: Path, screenshots: Path, window: Callable[[Any], Any], qtbot: Any
) -> None:
    from qtpy.QtWidgets import QApplication

    viewer, labels, tune, state = panel.viewer, panel.labels, panel.tune, panel.dock.state
    base = panel.digest()
    panel.draw("a.svs", {"normal": LEFT, "lesion": RIGHT})
    labels.patient.setText("p2")
    panel.draw("b.svs", {"lesion": LEFT, "normal": RIGHT})
    a, b = map(os.path.realpath, slides)
    assert [(e.source, e.label, e.region, e.patient) for e in state.labels] == [
        (a, "normal", LEFT, ""), (a, "lesion", RIGHT, ""), (b, "lesion", LEFT, "p2"), (b, "normal", RIGHT, "p2"),
    ]  # fmt: skip
    assert labels.table.rowCount() == 4
    assert [labels.table.item(2, column).text() for column in range(4)] == ["b", "lesion", "p2", "0.03, 0.03"]
    assert "2 regions, 2 patients" in labels.counts.text()

    # a row leads to its slide, and can get another class
    labels.table.cellClicked.emit(1, 1)
    assert state.slide_layer is viewer.layers["a.svs"]
    assert [viewer.layers[name].visible for name in ("a.svs", "b.svs")] == [True, False]
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], ((128 + 64 - 0.5) * MPP[0], (256 + 80 - 0.5) * MPP[1]))
    labels.table.selectRow(1)
    labels.add_class("odd")
    labels.apply.click()
    assert [example.label for example in state.labels] == ["normal", "odd", "lesion", "normal"]
    assert tune.heads.text().startswith("New head for lesion, normal, odd")
    labels.label.setCurrentText("lesion")
    labels.patient.setText("")
    labels.table.selectRow(1)
    labels.apply.click()
    assert not tune.heads.isVisibleTo(tune)

    # what is not saved is found again
    (kept,) = (own_settings / "home").glob("*.csv")
    assert len(read_labels(kept)) == 4
    tune.copy.click()
    assert "save them first" in tune.problem.text()
    labels.save_table(tmp_path / "labels.csv")
    assert not kept.exists()
    assert len(read_labels(tmp_path / "labels.csv")) == 4
    assert tune.folder.text() == str(tmp_path / "demo-tuned")

    # a preset, the forecast, and only whoever insists trains on so few
    panel.wait(lambda: "fewer than 10 patients" in tune.obstacle.text())
    assert not tune.run.isEnabled()
    tune.controls["preset"].value = "careful"
    assert tune.controls["learning_rate"].native.text() == "0.0001"
    panel.prepare(epochs="3", learning_rate="0.003", validation="50 %")
    assert "peak memory" in tune.forecast.text()
    assert "2 regions (1 patients) train, 2 (1) validate" in tune.forecast.text()
    tune.copy.click()
    command = shlex.split(QApplication.clipboard().text())
    expected = f"streamview finetune -i {tmp_path}/labels.csv -m demo -o {tmp_path}/demo-tuned --preset careful"
    assert command == [*expected.split(), "--learning-rate", "0.003", "--epochs", "3", "--validation", "0.5", "--force"]

    tune.run.click()
    assert not any(control.isEnabled() for control in tune.controls.natives)
    panel.wait(lambda: not tune.task.running)
    assert not tune.problem.isVisibleTo(tune), tune.problem.text()
    out = tmp_path / "demo-tuned"
    assert (out / "weights.safetensors").is_file()
    assert len(tune.curves.history.losses) == 3
    assert tune.curves._canvas.figure.axes[0].lines
    outcome = tune.outcome
    assert outcome.isVisibleTo(tune)
    assert [outcome.figures.item(0, column).text() for column in (0, 3)] == ["Accuracy", "0.50"]
    assert outcome.regions.rowCount() == 2
    outcome.regions.cellClicked.emit(0, 0)
    assert state.slide.name == outcome._rows[0].example.name
    qtbot.wait(200)
    picture = screenshots / "napari-finetuning.png"
    Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).save(picture)
    assert picture.stat().st_size > 100_000

    # the base is as it was, and the tuned network is a choice among the models, at once
    assert panel.digest() == base
    outcome.use_tuned.click()
    panel.wait(lambda: state.loaded is not None and state.loaded.spec == str(out))
    assert not outcome.use_tuned.isEnabled()
    panel.model.maps.setChecked(False)
    panel.wait(panel.model.run.isEnabled)
    panel.model.run.click()
    panel.wait(lambda: state.answers)
    assert state.answers[0].prediction.identity.weights_sha256 == state.loaded.model.sha256
    assert state.loaded.model.card.name == "demo-tuned"
    outcome.use_base.click()
    panel.wait(lambda: state.loaded is not None and state.loaded.spec == "demo")
    assert panel.digest() == base

    # another window loads the table; regions of slides that are not open are listed, and a double click opens them
    viewer.close()
    other = Panel(window, slides[:1], qtbot)
    other.labels.load_table(tmp_path / "labels.csv")
    other.wait(lambda: len(other.dock.state.labels) == 4)
    assert other.labels.table.item(2, 3).text() == "0.03, 0.03"
    assert len(other.viewer.layers["Labelled regions"].data) == 2
    other.labels.table.cellClicked.emit(2, 0)
    assert "not open" in other.labels.message.text()
    other.labels.table.cellDoubleClicked.emit(2, 0)
    assert other.dock.state.slide.name == "b.svs"


@pytest.mark.slow
def test_stop_leaves_the_base_as_it_was_and_go_on_goes_on(
    panel: Panel, tmp_path: Path, own_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, base = panel.tune, panel.digest()
    panel.draw("a.svs", {"normal": LEFT, "lesion": RIGHT})
    panel.draw("b.svs", {"lesion": LEFT, "normal": RIGHT})
    tune.controls["preset"].value = "all"
    panel.prepare(epochs="4", validation="50")
    forecast, step, budgets = tune.task.forecast, Trainer.step, []

    def slowed(trainer: Trainer) -> None:
        budgets.append(trainer._budget)
        time.sleep(0.3)
        step(trainer)

    monkeypatch.setattr(Trainer, "step", slowed)
    tune.run.click()
    panel.wait(lambda: tune._history is not None and tune._history.losses)
    assert panel.digest() == base, "a copy is trained"
    assert set(budgets) == {forecast.budget_bytes}, "in the memory of the forecast that was shown"
    tune.cancel.click()
    panel.wait(lambda: not tune.task.running)
    out = own_settings / "home" / "demo-tuned"
    assert panel.digest() == base
    assert "The base is unchanged" in tune.message.text()
    assert str(out) in tune.message.text()
    done = len(tune._history.losses)
    assert 1 <= done < 4
    assert len(panel.dock.state.labels) == 4
    panel.wait(tune.run.isEnabled)
    assert tune.run.text() == "Go on"
    monkeypatch.setattr(Trainer, "step", step)
    tune.run.click()
    panel.wait(lambda: not tune.task.running)
    assert tune.outcome.isVisibleTo(tune), tune.problem.text()
    assert len(tune.curves.history.losses) == 4
    assert not (out / "training.safetensors").exists()
    assert panel.digest() == base

    # closing the dock while it trains stops it as well; the labels wait for the next panel
    panel.prepare()
    monkeypatch.setattr(Trainer, "step", slowed)
    tune.run.click()
    panel.wait(lambda: tune._history is not None and tune._history.losses)
    panel.viewer.window.remove_dock_widget(panel.dock)
    assert panel.dock.state.closed
    assert (own_settings / "home" / "demo-tuned-2" / "training.safetensors").exists()
    _, again = panel.viewer.window.add_plugin_dock_widget("streamview", "Panel")
    found = next(section for section in again.sections if section.title == "Labels")
    assert found.restore.isVisibleTo(found)
    found.restore.click()
    panel.wait(lambda: len(again.state.labels) == 4)
    assert not found.restore.isVisibleTo(found)


@pytest.mark.slow
def test_errors_of_the_core_reach_the_user_and_labels_stay(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune = panel.tune
    panel.draw("a.svs", {"normal": LEFT})
    tune.anyway.setChecked(True)
    panel.wait(lambda: "all 1 regions are labelled 'normal'" in tune.forecast.text())
    assert not tune.run.isEnabled()
    panel.draw("a.svs", {"lesion": RIGHT})
    panel.draw("b.svs", {"lesion": LEFT, "normal": RIGHT})
    tune.controls["epochs"].native.setText("many")
    panel.wait(lambda: "epochs 'many'" in tune.forecast.text())
    tune.controls["epochs"].native.setText("1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    tune.folder.setText(str(tmp_path / "mine"))
    panel.prepare()
    tune.run.click()
    panel.wait(lambda: tune.problem.isVisibleTo(tune))
    assert "holds notes.txt" in tune.problem.text()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"

    def broken(trainer: Trainer) -> None:
        raise TrainingError("the loss is nan: lower the learning rate")

    monkeypatch.setattr(Trainer, "step", broken)
    tune.folder.setText(str(tmp_path / "other"))
    panel.wait(tune.run.isEnabled)
    tune.run.click()
    panel.wait(lambda: "the loss is nan" in tune.problem.text())
    panel.wait(tune.run.isEnabled)
    assert len(panel.dock.state.labels) == 4
    assert all(control.isEnabled() for control in tune.controls.natives)
    assert not tune.cancel.isEnabled()
