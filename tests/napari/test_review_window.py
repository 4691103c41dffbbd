"""A whole review session in a real window: mouse and keys, a crash, what is shown and what never is, the exports."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamview.cli import main
from streamview.review import Session
from streamview.review.sitting import Sitting
from tests.support.dock import LIMIT, activate, click, key, section, settle
from tests.support.real_window import REAL_WINDOW
from tests.support.review import NAMES, make_job, make_session

pytestmark = REAL_WINDOW


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("review"))


@pytest.fixture
def open_review(window: Callable[[Any], Any], qtbot: Any) -> Callable[..., tuple[Any, Any]]:
    """Open a window on a session; return the viewer and the section where it is read."""
    from streamview_napari.view import review

    def opened(path: Path, reader: str | None = "a") -> tuple[Any, Any]:
        viewer = window(review(path, reader))
        viewer.window._qt_window.resize(1280, 860)
        reading = viewer.window.dock_widgets["Review (streamview)"].reading
        if reader is not None:
            wait_for_slide(reading, qtbot)
        activate(reading, qtbot)
        return viewer, reading

    return opened


def wait_for_slide(reading: Any, qtbot: Any) -> None:
    def there() -> bool:
        sight = reading.sitting.sheet().sight
        return sight is not None and reading._slide.layer is not None and reading._slide.layer.name == sight.title

    qtbot.waitUntil(there, timeout=LIMIT)


def wait_for_answer(reading: Any, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: reading.state.map_layer is not None and reading.state.map_layer.visible, timeout=LIMIT)


READ_AND_CRASH = """
import os, signal, sys
from qtpy.QtWidgets import QApplication
from streamview_napari.view import review

viewer = review(sys.argv[1], "a")
reading = viewer.window.dock_widgets["Review (streamview)"].reading

def wait(until):
    while not until():
        QApplication.processEvents()

def shown(title):
    return lambda: reading._slide.layer is not None and reading._slide.layer.name == title

wait(shown("slide 1 of 5"))
reading.verdicts.steps[0][3].click()
reading.go.click()
wait(lambda: reading.state.map_layer is not None)
reading.go.click()
wait(shown("slide 2 of 5"))
reading.verdicts.steps[1][1].click()
reading.go.click()
reading.go.click()
wait(shown("slide 3 of 5"))
viewer.scene.camera.center = (0.0, 60.0, 90.0)
viewer.scene.camera.zoom = 5.0
step = reading.sitting.step
wait(lambda: reading.sitting.reader.readings()[step].view is not None)
print("ready", reading.sitting.reader.readings()[step].view, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def crash(path: Path, folder: Path) -> tuple[float, ...]:
    """Read two slides in another process, look closely at the third, and kill it; return what was in sight."""
    environment = os.environ | {"NAPARI_CONFIG": str(folder / "crashed.yaml"), "LIBGL_ALWAYS_SOFTWARE": "1"}
    done = subprocess.run([sys.executable, "-c", READ_AND_CRASH, str(path)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("ready"))
    return tuple(json.loads(line.removeprefix("ready ").replace("(", "[").replace(")", "]")))


@pytest.mark.slow
def test_a_whole_session(
    job: Path, tmp_path: Path, open_review: Callable[..., tuple[Any, Any]], qtbot: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from qtpy.QtCore import Qt

    path = make_session(job, tmp_path / "s.sqlite")
    view = crash(path, tmp_path)
    viewer, reading = open_review(path)
    # resumed at the same slide and view, the verdicts before as they were
    sheet = reading.sitting.sheet()
    assert (sheet.sight.title, sheet.undone) == ("slide 3 of 5", 3)
    assert [row.verdict for row in sheet.rows] == ["normal", "lesion", "", "", ""]
    assert viewer.scene.camera.center[1:] == pytest.approx((60.0, 90.0))
    assert reading._slide.view()[0] + reading._slide.view()[2] / 2 == pytest.approx(view[0] + view[2] / 2)

    # the third slide by keys: a verdict waits for its confidence, 2 actions; the answer follows by itself; Enter keeps the verdict
    window = viewer.window._qt_window
    key(window, Qt.Key.Key_2)
    assert "how sure" in reading.message.text()
    assert reading.sitting.sheet().reading.verdict is None
    key(window, Qt.Key.Key_Escape)
    assert reading.message.text() == ""
    key(window, Qt.Key.Key_2)
    key(window, Qt.Key.Key_4)
    assert (reading.sitting.sheet().reading.verdict, reading.sitting.sheet().reading.confidence) == ("lesion", 4)
    assert "takes your verdict back" in reading.message.text()
    assert reading.sitting.sheet().sight.answer is None
    key(window, Qt.Key.Key_Z)  # a slip: taken back in time
    assert reading.sitting.sheet().reading.verdict is None
    assert not reading._grace.isActive()
    key(window, Qt.Key.Key_1)
    key(window, Qt.Key.Key_4)
    wait_for_answer(reading, qtbot)  # by itself
    assert reading.answer.text().startswith("Network: ")
    assert reading.answer.text().endswith("You, before: normal")
    key(window, Qt.Key.Key_O)
    assert not reading.state.map_layer.visible
    key(window, Qt.Key.Key_O)
    assert reading.state.map_layer.visible
    reading._turned = time.monotonic()  # as if the answer had come at this moment: a press is not meant for it
    key(window, Qt.Key.Key_2)
    key(window, Qt.Key.Key_Return)
    assert reading.sitting.sheet().reading.verdict is None
    reading._turned = 0.0  # the moment is over
    started = time.monotonic()
    key(window, Qt.Key.Key_2)  # another verdict, with the confidence of the one before
    wait_for_slide(reading, qtbot)
    print(f"next slide after {time.monotonic() - started:.2f} s")
    assert reading.session.reader("a").readings()[reading.sitting.reader.steps[5]].verdict == "lesion"

    # the fourth by mouse, with a note and a region: one click on a step of confidence each
    assert reading.place.text() == "Slide 4 of 5"
    assert [layer.name for layer in viewer.layers if layer.visible] == ["slide 4 of 5"]
    click(reading.note_line)
    for letter in ("N", "P", "1"):  # written, not taken for keys
        key(window, getattr(Qt.Key, f"Key_{letter}"))
    key(window, Qt.Key.Key_Return)  # which ends the note, and no more
    assert reading.sitting.sheet().reading.note == "np1"
    click(reading.draw)
    layer = next(layer for layer in viewer.layers if layer.name == "Your regions")
    layer.add([[10, 20], [10, 120], [80, 120], [80, 20]], shape_type="polygon")
    click(reading.draw)
    click(reading.verdicts.steps[1][4])
    click(reading.go)
    wait_for_answer(reading, qtbot)
    hotspots = section(viewer.window.dock_widgets["Review (streamview)"], "Hotspots")
    qtbot.waitUntil(lambda: bool(hotspots.hotspots) or "Nothing" in hotspots.message.text(), timeout=LIMIT)
    if hotspots.hotspots:
        hotspots.fly(0)
        hotspots.call(True)
        assert reading.sitting.sheet().reading.hotspots == {1: True}
        assert hotspots.table.item(0, 0).text() == "1 ✓"
    click(reading.verdicts.steps[1][4])
    wait_for_slide(reading, qtbot)

    # back and forth, then the last
    key(window, Qt.Key.Key_P)
    wait_for_slide(reading, qtbot)
    assert reading.note_line.text() == ""  # of the aided step
    assert reading.verdicts.buttons[1].isChecked()
    key(window, Qt.Key.Key_U)
    wait_for_slide(reading, qtbot)
    click(reading.verdicts.steps[0][0])
    click(reading.go)
    wait_for_answer(reading, qtbot)
    click(reading.verdicts.steps[0][0])
    assert reading.message.text() == "All slides are read. Thank you."
    assert not reading.verdicts.isEnabled()
    assert not [layer for layer in viewer.layers if layer.visible]
    viewer.close()

    # the second reader, and what comes of both
    with Session(path) as session:
        sitting = Sitting(session.reader("b"))
        while (sheet := sitting.sheet()).sight is not None:
            sitting.decide("lesion" if sheet.undone % 2 else "normal", 3)
            sitting.reveal()
            sitting.decide("lesion" if sheet.undone % 2 else "normal", 3)
        regions = [reading for reading in session.reader("a").readings().values() if reading.regions]
        assert [reading.note for reading in regions] == ["np1"]
    capsys.readouterr()
    assert main(["review", "export", str(path), "-o", str(tmp_path / "v.csv"), "--regions", str(tmp_path / "regions")]) == 0
    rows = [row for row in csv.DictReader(io.StringIO((tmp_path / "v.csv").read_text())) if row["reader"] == "a"]
    assert [row["verdict"] for row in rows] == [
        "normal",
        "normal",
        "lesion",
        "lesion",
        "normal",
        "lesion",
        "lesion",
        "lesion",
        "normal",
        "normal",
    ]
    assert float(rows[4]["seconds"]) > 0
    (drawn,) = (tmp_path / "regions").iterdir()
    ring = json.loads(drawn.read_text())["features"][0]["geometry"]["coordinates"][0]
    assert ring == [[20.5, 10.5], [120.5, 10.5], [120.5, 80.5], [20.5, 80.5], [20.5, 10.5]]
    assert main(["review", "stats", str(path), "-o", str(tmp_path / "stats"), "--positive", "lesion"]) == 0
    assert "kappa" in (tmp_path / "stats" / "statistics.json").read_text()


def all_that_is_said(viewer: Any) -> Iterator[str]:
    """Every text of a window and its children: what is shown, read aloud or copied."""
    from qtpy.QtWidgets import QApplication, QComboBox, QTableWidget, QWidget

    application = QApplication.instance()
    assert isinstance(application, QApplication)
    yield application.clipboard().text()
    for window in application.topLevelWidgets():
        for widget in (window, *window.findChildren(QWidget)):
            for name in (
                "windowTitle",
                "toolTip",
                "accessibleName",
                "accessibleDescription",
                "whatsThis",
                "statusTip",
                "text",
                "objectName",
            ):
                value = getattr(widget, name, None)
                if callable(value):
                    try:
                        yield str(value())
                    except TypeError:
                        continue  # of another kind of widget, which needs arguments
            if isinstance(widget, QComboBox):
                yield from (widget.itemText(number) for number in range(widget.count()))
            if isinstance(widget, QTableWidget):
                for row in range(widget.rowCount()):
                    for column in range(widget.columnCount()):
                        item = widget.item(row, column)
                        if item is not None:
                            yield from (item.text(), item.toolTip())
    yield viewer.title
    yield str(viewer.status)
    yield viewer.canvas.overlays.text.text
    for layer in viewer.layers:
        yield from (layer.name, str(layer.metadata), str(layer.source), repr(layer.data))


@pytest.mark.parametrize("design", ["staged", pytest.param("crossover", marks=pytest.mark.slow)])
def test_nothing_is_said_before_its_stage(
    job: Path,
    tmp_path: Path,
    own_settings: Path,
    open_review: Callable[..., tuple[Any, Any]],
    qtbot: Any,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    design: str,
) -> None:
    """Names and truth never, the network's answers not before their turn: in any text, layer, file, log or export."""
    caplog.set_level(logging.DEBUG)
    truth = tmp_path / "truth.csv"
    truth.write_text("slide_id,label\n" + "".join(f"{name}.svs,carcinoma\n" for name in NAMES[:3]))
    path = make_session(job, tmp_path / "s.sqlite", "--design", design, "--truth", str(truth))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    capfd.readouterr()
    viewer, reading = open_review(path)
    hidden = re.compile("|".join((*NAMES, "oncology-ward", "carcinoma", re.escape(str(job)))))
    answers = {case.id: case.answer for case in reading.session.cases.values()}
    seen: set[str] = set()
    blind = 0

    def search() -> None:
        nonlocal blind
        out, err = capfd.readouterr()
        for text in (*all_that_is_said(viewer), out, err, caplog.text):
            assert not hidden.search(text), text
            if not seen:
                assert not re.search(r"p = \d|\d\.\d%", text), text
        blind += reading.sitting.sheet().sight.answer is None
        for number, row in enumerate(reading.sitting.sheet().rows):
            cell = reading.table.item(number, 3).text()
            assert cell == "" or cell in {answers[case] for case in seen}
            assert cell == row.answer

    for _ in range(3):
        wait_for_slide(reading, qtbot)
        settle(qtbot)
        case = reading.sitting.step.case
        if reading.sitting.sheet().sight.answer is not None:
            seen.add(case)
        search()
        reading.verdicts.steps[0][2].click()
        if reading.sitting.sheet().revealing:
            search()
            reading.reveal()
            seen.add(case)
            wait_for_answer(reading, qtbot)
            search()
            reading.verdicts.steps[0][2].click()
    assert blind >= 1
    viewer.close()
    qtbot.wait(100)
    out, err = capfd.readouterr()
    assert not hidden.search(out + err + caplog.text)
    main(["review", "export", str(path), "-o", str(tmp_path / "v.csv"), "--regions", str(tmp_path / "regions")])
    main(["review", "status", str(path)])
    assert not hidden.search(capfd.readouterr().out.replace(str(tmp_path), ""))
    written = [file for folder in (own_settings, scratch) for file in folder.rglob("*") if file.is_file()] + [tmp_path / "v.csv"]
    for file in written:
        assert not hidden.search(file.name)
        assert not hidden.search(file.read_bytes().decode("latin-1")), file


def test_a_slide_that_cannot_be_read_is_said_without_its_name(
    job: Path, tmp_path: Path, open_review: Callable[..., tuple[Any, Any]], qtbot: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_session(job, tmp_path / "s.sqlite")
    with Session(path) as session:
        broken = session.cases[session.reader("a").steps[0].case]
    place = Path(broken.source)
    content = place.read_bytes()
    place.write_bytes(b"damaged")
    try:
        viewer, reading = open_review(path, None)
        assert reading.reader.isVisible()
        assert not reading.verdicts
        reading.reader.setCurrentText("a")
        click(reading.begin)
        qtbot.waitUntil(lambda: reading.problem.isVisible(), timeout=LIMIT)
        assert reading.problem.text().startswith("slide 1 of 5: its file cannot be read")
        assert not any(name in text for text in all_that_is_said(viewer) for name in NAMES)
        click(reading.next)
        wait_for_slide(reading, qtbot)
        assert not reading.problem.isVisible()
        out, err = capfd.readouterr()
        assert not any(name in out + err for name in NAMES)
    finally:
        place.write_bytes(content)


def test_one_dock_at_a_time(job: Path, tmp_path: Path, open_review: Callable[..., tuple[Any, Any]], qtbot: Any) -> None:
    """The dock for analysis would name the slides: to open it ends the session, and nothing of it stays on the canvas."""
    viewer, reading = open_review(make_session(job, tmp_path / "s.sqlite"))
    viewer.window.add_plugin_dock_widget("streamview", "Panel")
    settle(qtbot)
    assert reading.session is None
    assert not [layer for layer in viewer.layers if layer.visible]
    assert list(viewer.window.dock_widgets) == ["Panel (streamview)"]
    viewer.window.add_plugin_dock_widget("streamview", "Review")
    settle(qtbot)
    assert list(viewer.window.dock_widgets) == ["Review (streamview)"]


def test_a_file_that_is_no_session_is_refused(tmp_path: Path, open_review: Callable[..., tuple[Any, Any]], job: Path, qtbot: Any) -> None:
    _, reading = open_review(make_session(job, tmp_path / "s.sqlite"))
    (tmp_path / "other.sqlite").write_text("no")
    reading.open_session(tmp_path / "other.sqlite")
    assert reading.problem.isVisible()
    assert "other.sqlite" in reading.problem.text()
    assert reading.open_button.isVisible()
