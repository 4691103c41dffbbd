"""A review without a browser: what the messages of a reader do, and that nothing is sent, logged or saved before its turn."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("anywidget")

import streamview_jupyter
from streamview_jupyter.actions import Decide, Draw, Go, Judge, Note, Open, Rest, Reveal, Undo, parse_action
from streamview_jupyter.messages import MessageError

from streamview.errors import ReviewError
from streamview.review import Session
from tests.support.lab import wait_for
from tests.support.review import make_session_of

NAMES = ("miller", "smith", "garcia")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_session_of(tmp_path_factory.mktemp("hospital-seven"), NAMES, size=(256, 384))


@pytest.fixture
def session(made: Path, tmp_path: Path) -> Path:
    """A session in which nothing was read."""
    path = tmp_path / "session.sqlite"
    path.write_bytes(made.read_bytes())
    return path


class Wire:
    """A review whose messages to the browser are kept: all that leaves the kernel."""

    def __init__(self, session: Path) -> None:
        self.review = streamview_jupyter.review(session, "a")
        self.sent: list[str] = [self.state()]
        self.buffers: list[bytes] = []
        self.review.comm.send = self._keep  # of the comm: custom messages and state alike

    def _keep(self, data: Any = None, metadata: Any = None, buffers: Any = None) -> None:
        self.sent.append(json.dumps([data, metadata], default=repr))
        self.buffers += [bytes(each) for each in buffers or ()]

    def state(self) -> str:
        """What a saved notebook, and a page that is loaded again, hold of it, without the bundle."""
        return json.dumps({name: value for name, value in self.review.get_state().items() if name not in ("_esm", "_css")}, default=repr)

    @property
    def sheet(self) -> dict[str, Any]:
        return dict(self.review._review)

    def act(self, type: str, **values: Any) -> dict[str, Any]:
        """Send an action, and return the panel when it and all that follows are done."""
        performed = self.sheet["performed"]
        assert self.review.handle({"type": type, "turn": self.sheet["turn"], **values}) is None
        if type != "rest":
            wait_for(lambda: self.sheet["performed"] > performed)
        self.settle()
        return self.sheet

    def settle(self) -> None:
        review = self.review
        for thread in (review._worker, review._reader, review._worker, review._opened._thread):
            thread.submit(int).result(20)

    def tiles(self) -> None:
        """Ask for the tiles of all that is shown, as the browser does."""
        slide, layers = self.review._slide, self.review._layers
        tiles = [[0, slide["epoch"], 8, 0, 0], *([layer["number"], layer["epoch"], 0, 0, 0] for layer in layers)]
        count = len(self.buffers)
        self.review.handle({"type": "tiles", "client": "ab", "needed": tiles, "dropped": []})
        wait_for(lambda: len(self.buffers) >= count + len(tiles))


@pytest.fixture
def wire(session: Path) -> Iterator[Wire]:
    wire = Wire(session)
    yield wire
    wire.review.close()


def events(session: Path) -> list[tuple[str, str, Any]]:
    with Session(session) as opened:
        return [(event.kind, event.modality, event.values) for event in opened.store.events("a")]


def test_a_whole_session_at_three_actions_a_slide(wire: Wire, session: Path) -> None:
    for number in range(3):
        sheet = wire.sheet
        assert (sheet["title"], sheet["answer"], sheet["undone"]) == (f"slide {number + 1} of 3", None, 3 - number)
        sheet = wire.act("decide", verdict=1, confidence=4)
        assert (sheet["verdict"], sheet["revealing"], sheet["countdown"]) == ("normal", True, 2.0)
        sheet = wire.act("reveal")
        assert (sheet["stage"], sheet["before"], sheet["confidence"]) == ("With the network's answer", "normal", 4)
        assert sheet["answer"].startswith(("lesion (p", "normal (p"))
        assert len(wire.review._layers) == 1
        wire.act("decide", verdict=2, confidence=None)
    sheet = wire.sheet
    assert (sheet["title"], sheet["message"], sheet["undone"]) == ("", "All slides are read. Thank you.", 0)
    assert (wire.review._slide["width"], wire.review._layers) == (0, [])
    verdicts = [(modality, values["verdict"], values["confidence"]) for kind, modality, values in events(session) if kind == "verdict"]
    assert verdicts == [("unaided", "normal", 4), ("aided", "lesion", 4)] * 3
    assert wire.act("undo")["title"] == "slide 3 of 3"


@pytest.mark.slow
def test_the_answer_comes_by_itself_unless_the_verdict_is_taken_back(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamview_jupyter.review_widget.GRACE", 1.5)
    wire.act("decide", verdict=1, confidence=1)
    assert wire.act("undo")["revealing"] is False
    wire.act("decide", verdict=1, confidence=1)
    assert wire.act("go", way="next")["title"] == "slide 2 of 3"
    wire.act("decide", verdict=2, confidence=2)
    assert wire.act("hold")["countdown"] is None
    time.sleep(1.8)
    assert (wire.sheet["title"], wire.sheet["answer"]) == ("slide 2 of 3", None)
    assert wire.act("go", way="previous")["revealing"]
    time.sleep(1.8)
    assert wire.sheet["answer"] is None  # one who comes back decides when
    wire.act("decide", verdict=2, confidence=2)
    assert wait_for(lambda: wire.sheet["answer"])
    assert wire.act("undo")["error"] == "this verdict is locked: the network's answer has been seen"


def test_what_was_meant_for_another_slide_is_not_done(wire: Wire, session: Path) -> None:
    turn = wire.sheet["turn"]
    wire.act("go", way="next")
    count = len(events(session))
    for message in (
        {"type": "decide", "verdict": 1, "confidence": 1},
        {"type": "rest", "view": [0, 0, 9, 9]},
        {"type": "note", "text": "x"},
    ):
        wire.review.handle({**message, "turn": turn})
    wire.settle()
    assert len(events(session)) == count
    assert wire.sheet["verdict"] is None


def test_notes_regions_hotspots_and_the_view_are_stored(wire: Wire, session: Path) -> None:
    assert wire.act("note", text=" small\n focus ")["note"] == "small focus"
    assert wire.act("draw", region=[10, 20, 30, 40])["error"] == ""
    assert wire.act("draw", region=[370, 250, 300, 300])["error"] == ""
    assert "inside the slide" in wire.act("draw", region=[5000, 0, 3, 3])["error"]
    assert [region["points"][2] for region in wire.review._regions] == [[40, 60], [384, 256]]
    wire.act("draw", region=None)
    wire.act("rest", view=[1.5, 2, 30, 40])
    wire.act("decide", verdict=1, confidence=3)
    wire.act("note", text="small focus, no mitoses")
    wire.review.viewport = [5.0, 6.0, 70.0, 80.0]
    wire.act("reveal")
    assert wire.sheet["note"] == ""
    while not wire.sheet["hotspots"]:  # not every slide has one
        wire.act("decide", verdict=1, confidence=3)
        wire.act("decide", verdict=1, confidence=3)
        wire.act("reveal")
    x, y, width, height = wire.sheet["hotspots"][0]["box"]
    assert 0 <= x < x + width <= 384
    assert 0 <= y < y + height <= 256
    assert wire.act("judge", hotspot=0, right=False)["hotspots"][0]["right"] is False
    assert "expected one of" in wire.act("judge", hotspot=99, right=True)["error"]
    stored = events(session)
    drawn = [values["features"] for kind, _, values in stored if kind == "regions"]
    assert [len(each) for each in drawn] == [1, 2, 1]
    assert drawn[-1][0]["geometry"]["coordinates"][0][0] == [10, 20]
    assert [values["view"] for kind, _, values in stored if kind == "rest" and values["view"]][:2] == [[1.5, 2, 30, 40], [5, 6, 70, 80]]
    assert next(values["note"] for kind, _, values in stored if kind == "verdict") == "small focus"
    assert [values["note"] for kind, _, values in stored if kind == "note"] == ["small focus", "small focus, no mitoses"]
    assert ("hotspot", "aided", {"hotspot": 1, "right": False}) in stored


def test_it_goes_on_where_it_was(session: Path) -> None:
    first = Wire(session)
    first.act("open", number=1)
    first.act("rest", view=[20, 30, 100, 80])
    second = Wire(session)  # as after a crash: the first was not closed
    assert second.sheet["title"] == "slide 2 of 3"
    assert second.review.viewport == [20, 30, 100, 80]
    for wire in (first, second):
        wire.review.close()
        wire.review.close()
    with pytest.raises(ReviewError, match="has no reader c, only a, b"):
        streamview_jupyter.review(session, "c")


def test_nothing_leaves_before_its_turn(session: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    hidden = [*NAMES, "hospital-seven", "truth-of", "oncology-ward", "/job"]
    with Session(session) as opened:
        answers = {case.answer for case in opened.cases.values()}
    wire = Wire(session)

    def leaks(words: Any) -> list[str]:
        texts = [*wire.sent, wire.state(), json.dumps(wire.review._repr_mimebundle_(), default=repr), caplog.text, *capfd.readouterr()]
        texts += [repr(wire.review), repr(wire.review.slide), *(buffer.decode("latin-1") for buffer in wire.buffers)]
        return [word for word in words for text in texts if word.lower() in text.lower()]

    wire.tiles()
    for way in ("next", "next", "next", "previous", "undone"):
        wire.act("go", way=way)
        wire.tiles()
    wire.act("open", number=0)
    for number in range(3):
        wire.act("decide", verdict=1, confidence=2)
        wire.tiles()
        if number == 0:
            assert leaks([*hidden, *answers, "p = ", "evidence"]) == []
        wire.act("reveal")
        wire.tiles()
        assert wire.sheet["answer"] in answers
        wire.review.handle({"type": "value", "client": "ab", "layer": wire.review._layers[0]["number"], "y": 20, "x": 30})
        wire.act("decide", verdict=1, confidence=None)
        assert wire.review._layers == []
    assert leaks(hidden) == []
    assert leaks(["lesion (p"]) != []  # what is looked through is what is sent
    wire.review.close()


def test_a_file_that_cannot_be_read_is_said_without_its_name(
    session: Path, made: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    def refuse(place: str) -> Callable[..., Any]:
        def raise_error(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{place}/miller.svs: broken")

        return raise_error

    wire = Wire(session)
    monkeypatch.setattr("streamview.review.blinding.open_slide", refuse("open"))
    wire.act("go", way="next")
    sheet = wire.act("go", way="next")
    assert sheet["error"] == "slide 3 of 3: its file cannot be read; tell whoever leads the session, and go on with another"
    assert (wire.review._slide["name"], wire.review._slide["width"]) == ("slide 3 of 3", 0)
    assert wire.act("decide", verdict=1, confidence=2)["error"].startswith("slide 3 of 3 is not shown, and a verdict is of what was seen")
    assert not [values for kind, _, values in events(session) if kind == "verdict"]
    monkeypatch.undo()
    assert wire.act("go", way="next")["error"] == ""
    monkeypatch.setattr(wire.review.slide._slide, "read", refuse("read"), raising=False)
    wire.review.handle({"type": "tiles", "client": "ab", "needed": [[0, wire.review._slide["epoch"], 8, 0, 0]], "dropped": []})
    assert wait_for(lambda: [text for text in wire.sent if "slide 1 of 3: its file cannot be read" in text])
    monkeypatch.undo()
    wire.act("decide", verdict=1, confidence=2)
    monkeypatch.setattr("streamview.review.blinding.slide_maps", refuse("maps"))
    sheet = wire.act("reveal")
    assert sheet["answer"]
    assert "the network's maps cannot be read" in sheet["error"]
    wire.act("decide", verdict=1, confidence=2)
    monkeypatch.undo()
    wire.act("open", number=0)
    (layer,) = wire.review.layers
    monkeypatch.setattr(layer.source, "tile", refuse("tile"))
    wire.review.handle({"type": "tiles", "client": "ab", "needed": [[layer.number, layer.epoch, 0, 0, 0]], "dropped": []})
    assert wait_for(lambda: [text for text in wire.sent if "slide 1 of 3: a part of it cannot be read" in text])
    monkeypatch.setattr("streamview_jupyter.review_widget.Sitting.move", refuse("move"))
    assert wire.act("go", way="next")["error"] == "unexpected internal error (RuntimeError): nothing was stored"
    monkeypatch.undo()
    monkeypatch.setattr("streamview_jupyter.review_widget.Sitting.sheet", refuse("sheet"))
    assert "unexpected" in wire.act("go", way="next")["error"]
    monkeypatch.undo()
    wire.review.close()
    assert not re.search("|".join(NAMES), " ".join([*wire.sent, caplog.text]))


def test_actions_are_parsed() -> None:
    assert parse_action({"type": "decide", "turn": 3, "verdict": 2, "confidence": None}) == Decide(3, 2, None)
    assert parse_action({"type": "note", "turn": 3, "text": "a"}) == Note(3, "a")
    assert parse_action({"type": "go", "turn": 3, "way": "undone"}) == Go(3, "undone")
    assert parse_action({"type": "open", "turn": 3, "number": 5}) == Open(3, 5)
    assert parse_action({"type": "undo", "turn": 3}) == Undo(3)
    assert parse_action({"type": "reveal", "turn": 3}) == Reveal(3)
    assert parse_action({"type": "judge", "turn": 3, "hotspot": 1, "right": True}) == Judge(3, 1, True)
    assert parse_action({"type": "draw", "turn": 3, "region": [1, 2, 3, 4]}) == Draw(3, (1, 2, 3, 4))
    assert parse_action({"type": "rest", "turn": 3, "view": [1, 2.5, 3, 4]}) == Rest(3, (1, 2.5, 3, 4))
    assert parse_action({"type": "hello", "client": "ab"}) is None
    for content, words in (
        ({"type": "decide", "verdict": 1, "confidence": 1}, "turn: expected a whole number"),
        ({"type": "decide", "turn": 1, "verdict": "1", "confidence": 1}, "verdict"),
        ({"type": "note", "turn": 1, "text": "a" * 2001}, "at most 2000"),
        ({"type": "go", "turn": 1, "way": ["next"]}, "expected one of next, previous, undone"),
        ({"type": "judge", "turn": 1, "hotspot": 1, "right": 1}, "true or false"),
        ({"type": "draw", "turn": 1, "region": [1, 2, 3]}, r"\[x, y, width, height\]"),
        ({"type": "draw", "turn": 1, "region": [1, 2, 0, 3]}, "of 1 or more"),
        ({"type": "rest", "turn": 1, "view": [1, 2, float("nan"), 3]}, "view: expected a number"),
    ):
        with pytest.raises(MessageError, match=words):
            parse_action(content)


def test_malformed_actions_do_no_harm(wire: Wire, session: Path) -> None:
    odd = [
        None,
        True,
        -1,
        0,
        3,
        2**40,
        1.5,
        float("nan"),
        "",
        "../../etc/passwd",
        "\ud800",
        [],
        {},
        [1, 2, 3, 4],
        [1] * 9,
        {"type": "undo"},
    ]
    rng = random.Random(3)
    real: list[dict[str, Any]] = [
        {"type": "decide", "verdict": 1, "confidence": 4}, {"type": "note", "text": "a"}, {"type": "go", "way": "next"},
        {"type": "open", "number": 1}, {"type": "undo"}, {"type": "reveal"}, {"type": "hold"}, {"type": "rest", "view": [1, 2, 3, 4]},
        {"type": "judge", "hotspot": 0, "right": True}, {"type": "draw", "region": [1, 2, 3, 4]},
    ]  # fmt: skip
    for _ in range(1500):
        content = {**rng.choice(real), "turn": wire.sheet["turn"]}
        content[rng.choice([*content, "path"])] = rng.choice(odd)
        answer = wire.review.handle(content)
        assert answer is None or answer["type"] == "error"
        assert "unexpected" not in json.dumps(answer)
    wire.settle()
    assert "unexpected" not in "".join(wire.sent)
    with Session(session) as opened:
        opened.store.check()
        words = {event.values["verdict"] for event in opened.store.events("a") if event.kind == "verdict" and event.values}
    assert words <= {"normal", "lesion"}
