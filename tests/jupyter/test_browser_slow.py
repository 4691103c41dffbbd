"""What takes minutes: cold starts without a hang, a slow link, a large slide, and the accessibility of the widget."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import streamview_jupyter

from tests.support.lab import Lab, wait_for

pytestmark = pytest.mark.slow
_AXE = Path(streamview_jupyter.__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
_VIEW = """
import numpy as np, streamview_jupyter
v = streamview_jupyter.view(np.full((700, 900, 3), (190, 120, 170), np.uint8), mpp=0.5)
v
"""
_LARGE = """
import numpy as np, streamview, streamview_jupyter
from benchmarks.cohort import write_whole_slide
write_whole_slide("large.svs", (20_000, 100_000), 0.1)
v = streamview_jupyter.view("large.svs")
v
"""


def test_twenty_cold_starts_without_a_hang(open_in: Callable[..., Any]) -> None:
    seconds = []
    with open_in("cold.ipynb", _VIEW) as tab:
        for number in range(20):
            if number:
                tab.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
                tab.page.evaluate("document.querySelectorAll('.sv-root').forEach((root) => root.remove())")
            start = time.monotonic()
            tab.run(0)
            tab.ready()
            seconds.append(time.monotonic() - start)
            assert tab.page.locator(".sv-notice").first.is_hidden()
    print(f"cold starts: {sorted(seconds)[10]:.1f} s, {max(seconds):.1f} s at most")


def test_a_kernel_that_is_gone_is_said(open_in: Callable[..., Any]) -> None:
    with open_in("gone.ipynb", _VIEW) as tab:
        tab.run(0)
        tab.ready()
        tab.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        notice = tab.page.locator(".sv-notice").first
        wait_for(notice.is_visible, 90)
        assert "run this cell again" in notice.inner_text()


@contextmanager
def slow_link(port: int, delay: float, rate: float) -> Iterator[int]:
    """A port on this machine that leads to another, each way `delay` s late and with at most `rate` bytes a second."""
    listener = socket.create_server(("127.0.0.1", 0))
    last, lock, ends, threads = [time.monotonic()], threading.Lock(), [listener], []

    def start(target: Callable[..., None], *arguments: Any) -> None:
        threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        threads[-1].start()

    def pump(source: socket.socket, target: socket.socket) -> None:
        waiting: Queue[tuple[float, bytes]] = Queue()

        def deliver() -> None:
            while True:
                due, data = waiting.get()
                time.sleep(max(0.0, due - time.monotonic()))
                try:
                    if not data:
                        target.shutdown(socket.SHUT_WR)
                        return
                    target.sendall(data)
                except OSError:
                    return

        start(deliver)
        while True:
            try:
                data = source.recv(16384)
            except OSError:
                data = b""
            with lock:  # one line for all connections
                begin = max(time.monotonic(), last[0])
                last[0] = begin + len(data) / rate
                due = last[0] + delay
            waiting.put((due, data))
            if not data:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            ends.extend((client, server))
            for pair in ((client, server), (server, client)):
                start(pump, *pair)

    start(accept)
    try:
        yield listener.getsockname()[1]
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for end in ends:
            end.close()


@pytest.mark.timeout(400)
def test_on_a_slow_link_what_is_in_sight_comes_first(lab: Lab, browser: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """200 ms and 1 MB/s, on a slide of 100,000 px: after a chase over the slide only the last place is waited for."""
    with slow_link(int(lab.url.rsplit(":", 1)[1]), 0.1, 1e6) as port:
        far = Lab(f"http://127.0.0.1:{port}", lab.token, lab.folder)
        with far.open(browser, "far.ipynb", _LARGE) as tab:
            tab.page.set_default_timeout(120_000)
            tab.run(0)
            tab.page.wait_for_function("document.querySelector('.sv-root[data-state=ready][data-loaded=true]')", timeout=60_000)
            start = time.monotonic()
            for number in range(12):
                tab.value(f"v.goto(x={8000 * number + 2000}, y={1500 * number + 1000}, mpp=0.5)")
            tab.page.evaluate("document.querySelector('.sv-root').dataset.loaded = 'false'")
            tab.page.wait_for_function("document.querySelector('.sv-root[data-loaded=true]')", timeout=60_000)
            seconds = time.monotonic() - start
    with capsys.disabled():
        print(f"  twelve places in turn on a slow link: the last was there after {seconds:.1f} s")
    assert seconds < 25


@pytest.mark.skipif(not _AXE.exists(), reason="needs axe-core: npm ci in plugins/streamview_jupyter")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(open_in: Callable[..., Any], theme: str) -> None:
    cell = f"""
import streamview, streamview_jupyter
from streamview.slides.synthetic import write_synthetic_slide
write_synthetic_slide("axe.svs", size=(512, 768))
v = streamview_jupyter.view("axe.svs", theme="{theme}")
model = streamview.load_model("demo")
v.run(model, target="lesion").result()
v
"""
    with open_in(f"axe-{theme}.ipynb", cell) as tab:
        tab.run(0)
        tab.ready()
        tab.page.evaluate(_AXE.read_text())
        faults = tab.page.evaluate("axe.run('.sv-root').then((found) => found.violations.map((v) => [v.impact, v.id, v.nodes[0].html]))")
    assert [fault for fault in faults if fault[0] in ("serious", "critical")] == []
    assert faults == []
