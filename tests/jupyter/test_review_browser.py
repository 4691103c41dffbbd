"""A reader's whole session in a real JupyterLab: mouse and keys, a crash in the middle, and what is stored of it."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamview_jupyter

from streamview.cli import main
from streamview.review import Session
from tests.support.lab import Lab, wait_for
from tests.support.review import make_session_of

NAMES = ("muellerin-0417", "szmit-2203", "garza-1190")
CELL = """
import torch, streamview_jupyter
torch.set_num_threads(1)
r = streamview_jupyter.review("clinic/session.sqlite", "a")
r
"""
pytestmark = pytest.mark.slow  # a minute and a half; the same session by messages alone is always run
_AXE = Path(streamview_jupyter.__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def session(lab: Lab) -> Path:
    (lab.folder / "clinic").mkdir()
    return make_session_of(lab.folder / "clinic", NAMES, size=(256, 384))


class Desk:
    """The page as a reader uses it; it keeps all that the browser receives."""

    def __init__(self, tab: Any) -> None:
        self.tab, self.page = tab, tab.page
        self.root = self.page.locator(".sv-root")

    def begin(self) -> None:
        self.page.evaluate("document.querySelectorAll('.sv-root').forEach((root) => root.remove())")
        self.tab.run(0)
        self.tab.ready()
        self.page.locator(".sv-stage").focus()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def wait(self, text: str) -> None:
        self.page.wait_for_selector(f".sv-review:has-text({text!r})")

    def next_turn(self, act: Callable[[], Any], state: str = "ready") -> float:
        """Do what leads to another step; return the seconds until its picture is there."""
        turn = self.root.get_attribute("data-turn")
        start = time.monotonic()
        act()
        self.page.wait_for_function(
            f"(root => root.dataset.turn !== '{turn}' && root.dataset.state === '{state}')(document.querySelector('.sv-root'))"
        )
        seconds = time.monotonic() - start
        self.page.wait_for_timeout(350)  # a verdict within 0.3 s of a turn is taken for a second press
        return seconds


def test_a_whole_session(open_in: Callable[..., Any], lab: Lab, session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Session(session) as opened:
        steps = [step for step in opened.reader("a").steps if step.modality == "aided"]
        answers = [opened.cases[step.case].answer for step in steps]
    with open_in("review.ipynb", CELL, listen=True) as tab:
        desk, page = Desk(tab), tab.page

        def leaks(*words: str) -> list[str]:
            """Those of some words that the page, or what was sent to it, holds: texts, titles, accessible names."""
            texts = [*tab.received, page.content()]
            return [word for word in words for text in texts if word in text]

        desk.begin()
        # the first by mouse: one click for verdict and confidence; the answer comes by itself
        desk.wait("slide 1 of 3 · 3 open")
        page.get_by_role("button", name="lesion, confidence 3 of 5").click()
        desk.wait("Z takes the verdict back")
        assert "slide 1 of 3" in "".join(tab.received)
        assert leaks(*NAMES, "truth-of", *answers, "lesion (p", "normal (p") == []
        desk.wait(answers[0])
        page.wait_for_timeout(350)
        seconds = [desk.next_turn(lambda: page.locator(".sv-verdict > button").first.click())]
        # the second by keys, with a crash after the verdict
        desk.press("1", "4")
        desk.wait("Z takes the verdict back")
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
        desk.begin()
        desk.wait("slide 2 of 3 · 2 open")
        desk.wait("saved")
        assert leaks(answers[1]) == [] or answers[1] == answers[0]
        desk.next_turn(lambda: desk.press("Enter"))
        desk.wait("Confidence 4 is carried over")
        desk.press("m")
        page.keyboard.type("2 foci, 1 mitosis")
        desk.press("Enter")
        seconds.append(desk.next_turn(lambda: desk.press("1")))
        # the third: a verdict that is taken back
        desk.wait("slide 3 of 3 · 1 open")
        desk.press("1", "1")
        desk.wait("Z takes the verdict back")
        desk.press("z")
        page.wait_for_selector(".sv-coming", state="hidden")
        desk.press("2", "5")
        desk.wait("Z takes the verdict back")
        desk.next_turn(lambda: desk.press("Enter"))
        desk.next_turn(lambda: desk.press("2"), "empty")
        desk.wait("All slides are read. Thank you.")
        tab.value("r.close()")
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        saved = lab.folder / "review.ipynb"
        wait_for(lambda: "review of" in saved.read_text().lower())
        assert leaks(*NAMES, "truth-of") == []
        assert not any(name in saved.read_text() for name in (*NAMES, *answers))
    assert main(["review", "export", str(session), "-o", str(tmp_path / "verdicts.csv")]) == 0
    rows = [row for row in csv.DictReader((tmp_path / "verdicts.csv").read_text().splitlines()) if row["reader"] == "a"]
    table = [(row["modality"], row["verdict"], row["confidence"], row["note"]) for row in rows]
    decisions = [("lesion", "3", "normal", ""), ("normal", "4", "normal", "2 foci, 1 mitosis"), ("lesion", "5", "lesion", "")]
    assert table == [
        row
        for first, confidence, final, note in decisions
        for row in (("unaided", first, confidence, ""), ("aided", final, confidence, note))
    ]
    with Session(session) as opened:
        kinds = [event.kind for event in opened.store.events("a")]
        readings = opened.reader("a").readings()
    assert (kinds.count("verdict"), kinds.count("undo")) == (7, 1)
    assert [readings[step].verdict for step in steps] == [final for _, _, final, _ in decisions]
    with capsys.disabled():
        print(f"  from a verdict to the picture of the next slide: {', '.join(f'{each:.2f}' for each in seconds)} s")
    assert min(seconds) < 1


@pytest.mark.slow
@pytest.mark.skipif(not _AXE.exists(), reason="needs axe-core: npm ci in plugins/streamview_jupyter")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_fault_of_accessibility(open_in: Callable[..., Any], session: Path, theme: str) -> None:
    cell = CELL.replace('"a")', f'"b", theme="{theme}")')
    find = "axe.run('.sv-root').then((found) => found.violations.map((v) => [v.impact, v.id, v.nodes[0].html]))"
    with open_in(f"axe-review-{theme}.ipynb", cell) as tab:
        desk = Desk(tab)
        desk.begin()
        desk.page.evaluate(_AXE.read_text())
        if theme == "light":
            desk.press("2", "4")
            desk.wait("Z takes the verdict back")
            assert desk.page.evaluate(find) == []
            desk.wait("With the network")
        desk.page.wait_for_timeout(1000)
        assert desk.page.evaluate(find) == []
        tab.value("r.close()")
