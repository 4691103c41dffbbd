"""What the browser may ask: parsed, bounded, and never the cause of an exception or of a file that is read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("anywidget")

from streamview_jupyter.messages import CancelJob, ChangeDisplay, Hello, MessageError, RawValue, Tile, Tiles, parse

import streamview
from tests.test_display import spot_saliency

_TILE = [0, 0, 8, 0, 0]
_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 1.5, float("nan"), float("inf"), -0.0, "", "x", "../../etc/passwd", "/etc/passwd", "a" * 5000, [],
    [[]],    {}, [_TILE] * 300, [[0] * 6], {"type": "tiles"}, "file:///etc/passwd", "\ud800", b"bytes",
)  # fmt: skip


def of_slide(saliency: Any, slide: Any) -> Any:
    identity = replace(saliency.prediction.identity, source=slide.identity)
    return replace(saliency, prediction=replace(saliency.prediction, identity=identity))


@pytest.fixture(scope="module")
def view() -> Iterator[Any]:
    import streamview_jupyter

    rgb = np.full((600, 700, 3), 200, np.uint8)
    view = streamview_jupyter.view(rgb, mpp=0.5)
    view.sent = []
    view.send = lambda content, buffers=None: view.sent.append((content, buffers))
    yield view
    view.close()


def test_requests_are_parsed() -> None:
    assert parse({"type": "hello", "client": "ab"}) == Hello("ab")
    asked = parse({"type": "tiles", "client": "ab", "needed": [_TILE], "dropped": []})
    assert asked == Tiles("ab", (Tile(0, 0, 8, 0, 0),), ())
    assert parse({"type": "value", "client": "ab", "layer": 1, "y": 2, "x": 3.5}) == RawValue("ab", 1, 2.0, 3.5)
    assert parse({"type": "display", "layer": 1, "changes": {"opacity": 0.5}}) == ChangeDisplay(1, {"opacity": 0.5})
    assert parse({"type": "cancel", "job": 3}) == CancelJob(3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected an object"),
        ({"type": "open", "path": "/etc/passwd"}, "expected one of hello, tiles, value, display, cancel"),
        ({"type": "hello", "client": ""}, "client"),
        ({"type": "hello", "client": "a" * 37}, "client"),
        ({"type": "tiles", "client": "a", "needed": [_TILE] * 257, "dropped": []}, "at most 256"),
        ({"type": "tiles", "client": "a", "needed": [[0, 0, 8, 0, True]], "dropped": []}, "whole number"),
        ({"type": "tiles", "client": "a", "needed": [[0, 0, 8, 0, -1]], "dropped": []}, "whole number"),
        ({"type": "tiles", "client": "a", "needed": [[0, 0, 8, 0]], "dropped": []}, r"\[layer, epoch, level, row, column\]"),
        ({"type": "value", "client": "a", "layer": 1, "y": float("nan"), "x": 0}, "y: expected a number"),
        ({"type": "display", "layer": 1, "changes": {}}, "what was changed"),
        ({"type": "display", "layer": 1, "changes": {"opacity": 2}}, "opacity: expected a number from 0 to 1"),
        ({"type": "display", "layer": 1, "changes": {"cap": 0}}, "cap"),
        ({"type": "display", "layer": 1, "changes": {"saliency": 1}}, "expected opacity"),
        ({"type": "display", "layer": 1, "changes": {"__class__": 1}}, "expected opacity"),
        ({"type": "display", "layer": 1, "changes": {"colormap": ["viridis"]}}, "colormap: expected one of teal-lime"),
        ({"type": "display", "layer": 1, "changes": {"visible": 1}}, "true or false"),
    ],
)
def test_what_is_no_request_is_refused(content: Any, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        parse(content)


def test_malformed_messages_do_no_harm(view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 mutations of real messages, on a view with a map."""
    layer = view.add_saliency(of_slide(spot_saliency(256), view.slide))
    opened: list[Any] = []
    monkeypatch.setattr("builtins.open", lambda *a, **k: opened.append(a) or (_ for _ in ()).throw(OSError("refused")))
    rng = random.Random(17)
    real = [
        {"type": "hello", "client": "ab"},
        {"type": "tiles", "client": "ab", "needed": [_TILE, [layer.number, 0, 0, 0, 0]], "dropped": [_TILE]},
        {"type": "value", "client": "ab", "layer": layer.number, "y": 20, "x": 30.5},
        {"type": "display", "layer": layer.number, "changes": {"opacity": 0.5, "colormap": "viridis"}},
        {"type": "cancel", "job": 1},
    ]

    def mutated(value: Any, depth: int = 0) -> Any:
        if rng.random() < (0.15 if depth else 0.02):
            return rng.choice(_ODD)
        if isinstance(value, dict):
            changed = {key: mutated(each, depth + 1) for key, each in value.items() if rng.random() > 0.05}
            if rng.random() < 0.1:
                changed[rng.choice(["path", "type", "blur_um", "__class__", "layer", ""])] = rng.choice(_ODD)
            return changed
        if isinstance(value, list):
            return [mutated(each, depth + 1) for each in value] * rng.choice([1, 1, 1, 2])
        return value

    answers = 0
    for number in range(10_000):
        content = mutated(rng.choice(real))
        answer = view.handle(content)
        assert answer is None or answer["type"] in ("welcome", "value", "error"), content
        if answer is not None:
            json.dumps(answer, allow_nan=False)
            answers += answer["type"] == "error"
            assert "unexpected" not in answer.get("text", ""), content
        if number % 500 == 0:
            assert sum(map(len, view._server._waiting.values())) <= 8 * 256
    assert answers > 1000
    assert len(view.sent) < 60_000
    assert view._server.kept_bytes <= 64 * 2**20
    assert opened == []


def test_selections_are_cut_to_the_slide(view: Any) -> None:
    view.selection = [-50, 500, 200, 300]
    assert view.selection == [0, 500, 150, 100]
    with pytest.raises(Exception, match="expected"):
        view.selection = [5000, 0, 10, 10]
    view.selection = None
    with pytest.raises(streamview.StreamviewError, match="inside level 0"):
        view.run(None, region=[0, 0, 5000, 10])
    assert view._region(None) == streamview.Region(0, 0, 600, 700)
    assert view._region("10,20,30,40") == streamview.Region(20, 10, 40, 30)
