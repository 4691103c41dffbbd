"""How fast the Jupyter widget is in a real JupyterLab: first picture, moves, and tiles against a local HTTP server.

::

    python -m benchmarks.widget [--pictures FOLDER]

The slide has 20,000 x 20,000 px in JPEG tiles. Tiles per second are those that the browser decodes, 512 px each, encoded anew each time, in
turns over the widget's messages and over HTTP from the same kernel; then once more while the network runs on both cores.
`--pictures` instead takes the pictures of the pages: the widget after a run, light and dark, and 320 px wide; a review before the network's
answer and with it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.support.lab import Lab, Tab, start_browser, start_lab, wait_for

__all__ = ["main"]

_SIDE = 20_000  # px of the slide
_TILES = 160  # of one burst
_TURNS = 5

_SETUP = """
import os
os.environ.pop("OMP_NUM_THREADS", None)
import torch, streamview, streamview_jupyter
slide = streamview.open_slide("slide.svs")
model = streamview.load_model("demo")
"""
_VIEW = "v = streamview_jupyter.view(slide)\nv"
_PROBE = "from benchmarks.widget import Probe; p = Probe.over(slide); p"
_SHOWN = """
import streamview, streamview_jupyter
slide = streamview.open_slide("lymph-node.svs")
model = streamview.load_model("demo")
v = streamview_jupyter.view(slide, height="{height}", theme="{theme}")
v
"""


_REVIEW = """
import torch, streamview_jupyter
torch.set_num_threads(1)
r = streamview_jupyter.review("session.sqlite", "a", theme="{theme}")
r
"""


def main() -> None:
    """Measure, or take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="take the pictures of the pages")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as place,
        start_lab(_made(Path(place, "notebooks")), _made(Path(place, "home"))) as lab,
        start_browser() as browser,
    ):
        if options.pictures is None:
            _measure(lab, browser)
        else:
            _take_pictures(lab, browser, options.pictures)
            _take_pictures_of_a_review(lab, browser, options.pictures)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _measure(lab: Lab, browser: Any) -> None:
    from benchmarks.cohort import write_whole_slide

    write_whole_slide(lab.folder / "slide.svs", (_SIDE, _SIDE), 0.4)
    with lab.open(browser, "bench.ipynb", _SETUP, _VIEW, _PROBE, local=True) as tab:
        tab.run(0)
        firsts, moves = [], []
        for _ in range(_TURNS):
            firsts.append(_seconds(tab, "await window.run(1)", "document.querySelector('.sv-root[data-state=ready][data-loaded=true]')"))
        for number in range(10):
            tab.page.evaluate("document.querySelector('.sv-root').dataset.loaded = 'false'")
            x, y = 3000 + 1400 * number, 17_000 - 1400 * number
            moves.append(
                _seconds(
                    tab, f"await window.value('v.goto(x={x}, y={y}, mpp=0.25)')", "document.querySelector('.sv-root[data-loaded=true]')"
                )
            )
        print(f"first picture: {_spread(firsts)} s; a jump to another place at full resolution, all tiles there: {_spread(moves)} s")
        tab.run(2)
        tab.page.wait_for_selector("[data-probe=ready]", state="attached")
        comm, http = [], []
        for _ in range(_TURNS):
            comm.append(_rate(tab, "comm"))
            http.append(_rate(tab, "http"))
        ratio = statistics.median(a / b for a, b in zip(comm, http, strict=True))
        print(f"tiles a second: messages {_spread(comm)}, local HTTP {_spread(http)}, ratio {ratio:.2f}")
        tab.value("torch.set_num_threads(2); job = v.run(model, region='4000,4000,12000,12000')")
        wait_for(lambda: tab.value("print(job.state)") == "running", 120)
        busy = [_rate(tab, "comm") for _ in range(3)]
        state = tab.value("print(job.state); job.cancel()")
        print(f"tiles a second while the network runs on both cores ({state}): {_spread(busy)}")


def _seconds(tab: Tab, action: str, condition: str) -> float:
    """Seconds from an action until an element is there."""
    return tab.page.evaluate(
        f"""async () => {{
            const panel = window.jupyterapp.shell.currentWidget;
            window.run = async (cell) => {{
                panel.content.activeCellIndex = cell;
                document.querySelectorAll('.sv-root').forEach((root) => (root.dataset.state = 'old'));
                await window.jupyterapp.commands.execute('notebook:run-cell');
            }};
            window.value = (code) => panel.sessionContext.session.kernel.requestExecute({{ code }}).done;
            const start = performance.now();
            {action};
            while (!{condition}) {{
                if (performance.now() - start > 60000) throw new Error('nothing came in 60 s');
                await new Promise((resolve) => setTimeout(resolve, 5));
            }}
            return (performance.now() - start) / 1000;
        }}"""
    )


def _rate(tab: Tab, how: str) -> float:
    tab.page.evaluate("document.querySelector('[data-probe]').dataset.rate = ''")
    tab.value(f"p.begin('{how}', {_TILES})")
    rate = wait_for(lambda: tab.page.evaluate("document.querySelector('[data-probe]').dataset.rate"), 120)
    return float(rate)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _take_pictures(lab: Lab, browser: Any, folder: Path) -> None:
    from streamview.slides.synthetic import write_synthetic_slide

    write_synthetic_slide(lab.folder / "lymph-node.svs", size=(4096, 4096), mpp=0.5, seed=6)
    for theme, width in (("light", 1280), ("dark", 1280), ("light", 340)):
        height = "560px" if width > 400 else "420px"
        with lab.open(browser, f"{theme}-{width}.ipynb", _SHOWN.format(theme=theme, height=height), size=(1280, 900), scheme=theme) as tab:
            if theme == "dark":
                tab.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
            tab.run(0)
            tab.ready()
            if width < 400:  # as in a narrow column
                tab.page.evaluate(f"document.querySelector('.sv-root').style.width = '{width - 20}px'")
            tab.value("job = v.run(model, region=[1400, 900, 2048, 2048]); job.result(); v.goto(x=2424, y=1924, mpp=2.6)")
            tab.page.wait_for_timeout(2500)
            name = f"jupyter-{theme}.jpg" if width > 400 else "jupyter-narrow.jpg"
            tab.page.locator(".sv-root").screenshot(path=str(folder / name), type="jpeg", quality=88)


def _take_pictures_of_a_review(lab: Lab, browser: Any, folder: Path) -> None:
    """A reader's own verdict, then the network's answer; in a dark theme, and in a narrow column."""
    from tests.support.review import make_session_of

    make_session_of(lab.folder, [f"patient-{number}" for number in range(5)], size=(1536, 2048))
    with lab.open(browser, "review.ipynb", _REVIEW.format(theme="light"), size=(1280, 900)) as tab:
        page = tab.page
        tab.run(0)
        tab.ready()
        decide_twice(tab)
        page.get_by_role("button", name="lesion, confidence 4 of 5").click()
        page.wait_for_selector(".sv-coming:not([hidden])")
        page.wait_for_timeout(700)
        page.locator(".sv-root").screenshot(path=str(folder / "review-blind.jpg"), type="jpeg", quality=88)
        page.wait_for_selector(".sv-hotspots li")
        page.mouse.move(10, 10)
        page.keyboard.press("j")
        page.wait_for_timeout(2000)
        page.locator(".sv-root").screenshot(path=str(folder / "review-aided.jpg"), type="jpeg", quality=88)
        page.evaluate("document.querySelector('.sv-root').style.width = '340px'")
        page.wait_for_timeout(1500)
        page.locator(".sv-root").screenshot(path=str(folder / "review-narrow.jpg"), type="jpeg", quality=88)
        tab.value("r.close()")
    with lab.open(browser, "dark.ipynb", _REVIEW.format(theme="dark"), size=(1280, 900), scheme="dark") as tab:
        tab.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
        tab.run(0)
        tab.ready()
        tab.page.wait_for_selector(".sv-hotspots li")
        tab.page.wait_for_timeout(1500)
        tab.page.locator(".sv-root").screenshot(path=str(folder / "review-dark.jpg"), type="jpeg", quality=88)
        tab.value("r.close()")


def decide_twice(tab: Tab) -> None:
    """Read a slide with the keys: an own verdict, the network's answer, the same verdict again."""
    page = tab.page
    page.locator(".sv-stage").focus()
    for keys, state in (("24", "revealing"), (["Enter"], "aided"), ("2", "done")):
        turn = page.get_attribute(".sv-root", "data-turn")
        for key in keys:
            page.keyboard.press(key)
        if state == "revealing":
            page.wait_for_selector(".sv-coming:not([hidden])")
        else:
            page.wait_for_function(f"document.querySelector('.sv-root').dataset.turn !== '{turn}'")
            page.wait_for_timeout(400)  # sooner, a verdict is taken for a second press


def _probe() -> Any:
    import http.server
    import threading

    import anywidget
    import traitlets
    from streamview_jupyter.messages import Tile
    from streamview_jupyter.server import TileServer
    from streamview_jupyter.sources import SlidePixels

    class Probe(anywidget.AnyWidget):
        """Asks for a burst of tiles, and says how many came in a second."""

        _esm = """
        export default { render({ model, el }) {
          el.dataset.probe = "ready";
          let begin = 0, left = 0;
          const came = (bytes) => createImageBitmap(new Blob([bytes], { type: "image/jpeg" })).then(() => {
            left -= 1;
            if (!left) el.dataset.rate = String(model.get("count") / ((performance.now() - begin) / 1000));
          });
          model.on("change:turn", async () => {
            const tiles = model.get("tiles");
            left = tiles.length;
            begin = performance.now();
            if (model.get("how") === "comm") {
              model.send({ needed: tiles });
            } else {
              const place = `http://127.0.0.1:${model.get("port")}`;
              for (const tile of tiles) fetch(`${place}/${tile.join("/")}`).then((answer) => answer.arrayBuffer()).then(came);
            }
          });
          model.on("msg:custom", (content, buffers) => buffers.forEach(came));
        } };
        """
        how = traitlets.Unicode("comm").tag(sync=True)
        count = traitlets.Int(0).tag(sync=True)
        turn = traitlets.Int(0).tag(sync=True)
        port = traitlets.Int(0).tag(sync=True)
        tiles: traitlets.List[Any] = traitlets.List().tag(sync=True)

        @classmethod
        def over(cls, slide: Any) -> Probe:
            """Make one whose tiles are of a slide's finest level."""
            source = SlidePixels(slide)
            probe = cls()
            probe.source = source
            probe.server = TileServer(lambda content, buffers: probe.send(content, buffers))
            probe.on_msg(lambda _, content, buffers: probe.server.wait_for("probe", tuple(Tile(*tile) for tile in content["needed"])))

            class Handler(http.server.BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"

                def do_GET(self) -> None:
                    data = source.tile(Tile(*map(int, self.path.strip("/").split("/")))).data
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.send_header("Access-Control-Allow-Origin", "*")
                    self.end_headers()
                    self.wfile.write(data)

                def log_message(self, *_: Any) -> None:
                    """Say nothing."""

            web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=web.serve_forever, daemon=True).start()
            probe.port = web.server_port
            return probe

        def begin(self, how: str, count: int) -> None:
            """Ask for a burst, none of whose tiles is kept."""
            epoch = self.turn + 1
            self.server.set_source(0, epoch, self.source)
            first = 7 * epoch % 20
            self.how, self.count = how, count
            self.tiles = [[0, epoch, self.source.levels, first + n // 16, 10 + n % 16] for n in range(count)]
            self.turn = epoch

    return Probe


def __getattr__(name: str) -> Any:
    """``Probe``, made when it is asked for: anywidget is imported only in the notebook."""
    if name == "Probe":
        return _probe()
    raise AttributeError(name)


if __name__ == "__main__":
    main()
