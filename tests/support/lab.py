"""A real JupyterLab or Notebook in a headless browser; nothing may leave the machine."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["Lab", "Tab", "missing", "start_browser", "start_lab", "wait_for"]

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("anywidget", "jupyterlab", "notebook", "playwright")
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
_KERNEL = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"


def missing() -> str:
    """Say what a browser test needs and is not here; empty if nothing."""
    packages = [name for name in _PACKAGES if find_spec(name) is None]
    return f"needs {', '.join(packages)}" if packages else "" if _chromium() else "needs chromium"


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Lab:
    """A running Jupyter server.

    Parameters
    ----------
    url, token
        Where, and what lets one in.
    folder
        Holds the notebooks.
    """

    url: str
    token: str
    folder: Path

    def notebook(self, name: str, *cells: str) -> None:
        """Write a notebook."""
        import nbformat

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, self.folder / name)

    @contextmanager
    def open(
        self,
        browser: Any,
        name: str,
        *cells: str,
        app: str = "lab",
        size: tuple[int, int] = (1280, 900),
        scheme: str = "light",
        local: bool = False,
        listen: bool = False,
    ) -> Iterator[Tab]:
        """Open a notebook of these cells; what it asks of another machine, unless `local` of another port, is an error.

        `listen` keeps all that the server sends over sockets, and the messages of the console, in `Tab.received`.
        """
        self.notebook(name, *cells)
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(30_000)
        tab = Tab(page)

        if listen:
            page.on("websocket", lambda socket: socket.on("framereceived", tab.keep))
            page.on("console", lambda message: tab.keep(message.text))

        def check(route: Any) -> None:
            if route.request.url.startswith((self.url, "data:", "blob:", *(["http://127.0.0.1:"] if local else []))):
                route.continue_()
            else:
                tab.outside.append(route.request.url)
                route.abort()

        page.route("**/*", check)
        place = f"lab/tree/{name}?reset&" if app == "lab" else f"notebooks/{name}?"
        try:
            page.goto(f"{self.url}/{place}token={self.token}")
            page.wait_for_function(f"{_KERNEL}?.connectionStatus === 'connected'", timeout=60_000)
            yield tab
        except BaseException:
            page.screenshot(path=str(self.folder / f"{name}.png"))
            raise
        finally:
            page.evaluate("window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown()")
            context.close()
        assert tab.outside == [], f"asked for outside this machine: {tab.outside}"


@contextmanager
def start_lab(folder: Path, home: Path) -> Iterator[Lab]:
    """Run a server of JupyterLab and Notebook on a free port, with settings of its own in `home`."""
    settings = home / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    paths = [_ROOT, _ROOT / "plugins", _ROOT / "models"]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "lab" / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "lab" / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    options = ["--ip=127.0.0.1", f"--port={port}", "--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True"]
    options += ["--JupyterNotebookApp.expose_app_in_browser=True", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    log = (home / "log").open("wb")
    command = [sys.executable, "-m", "jupyter", "lab", *options]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    lab = Lab(f"http://127.0.0.1:{port}", token, folder)
    try:
        wait_for(lambda: _answers(lab) or process.poll() is not None, 60)
        assert process.poll() is None, (home / "log").read_text()
        yield lab
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _answers(lab: Lab) -> bool:
    try:
        with urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=2) as answer:
            return bool(json.load(answer))
    except OSError:
        return False


@contextmanager
def start_browser() -> Iterator[Any]:
    """Run a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=_chromium(), headless=True, args=_FLAGS)
        yield running
        running.close()


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Return what a condition returns, once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"nothing came in {seconds:g} s"
        time.sleep(0.05)
    return value


@dataclass
class Tab:
    """One page with a notebook.

    Parameters
    ----------
    page
        Of playwright.
    outside
        Addresses beyond this machine that were asked for, and were refused.
    received
        What came over sockets and to the console, if it is kept; see `Lab.open`.
    """

    page: Any
    outside: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)

    def keep(self, received: str | bytes) -> None:
        """Add to `received`."""
        self.received.append(received if isinstance(received, str) else received.decode("latin-1"))

    def run(self, cell: int, *, wait: bool = True) -> None:
        """Run a cell; `wait`: until the kernel is idle."""
        self.page.evaluate(
            """async ([cell, wait]) => {
                const app = window.jupyterapp;
                const panel = app.shell.currentWidget;
                await panel.sessionContext.ready;
                panel.content.activeCellIndex = cell;
                const done = app.commands.execute('notebook:run-cell');
                if (wait) await done;
            }""",
            [cell, wait],
        )

    def set_cell(self, cell: int, source: str) -> None:
        """Write another source into a cell."""
        self.page.evaluate(
            "([cell, source]) => window.jupyterapp.shell.currentWidget.content.widgets[cell].model.sharedModel.setSource(source)",
            [cell, source],
        )

    def value(self, code: str) -> str:
        """Run code in the kernel beside the notebook, and return what it prints."""
        return self.page.evaluate(
            """async (code) => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const future = kernel.requestExecute({ code, store_history: false });
                let text = '';
                future.onIOPub = (message) => {
                    if (message.header.msg_type === 'stream') text += message.content.text;
                    if (message.header.msg_type === 'error') text += message.content.ename + ': ' + message.content.evalue;
                };
                await future.done;
                return text.trim();
            }""",
            code,
        )

    def ready(self, count: int = 1) -> None:
        """Wait until so many views show their slide."""
        self.page.wait_for_function(f"document.querySelectorAll('.sv-root[data-state=ready]').length >= {count}", timeout=30_000)

    def pixels(self, selector: str, which: int = 0) -> Any:
        """The pixels of a canvas, uint8 (h, w, 4)."""
        width, height, data = self.page.evaluate(
            """([selector, which]) => {
                const canvas = document.querySelectorAll(selector)[which];
                const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                let text = '';
                for (let i = 0; i < data.length; i += 32768) text += String.fromCharCode(...data.subarray(i, i + 32768));
                return [canvas.width, canvas.height, btoa(text)];
            }""",
            [selector, which],
        )
        import numpy as np

        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)
