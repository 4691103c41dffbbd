"""A real JupyterLab or Notebook in a headless browser; nothing may leave the machine."""

from __future__ import annotations

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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_PACKAGES = ("anywidget", "jupyterlab", "notebook", "playwright")
_MISSING = [name for name in _PACKAGES if find_spec(name) is None]
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
_KERNEL = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where there is none."""
    reason = f"needs {', '.join(_MISSING)}" if _MISSING else "needs chromium" if _chromium() is None else ""
    for item in items:
        if reason and "open_in" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server of JupyterLab and Notebook on a free port, with settings of its own."""
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    settings = home / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    paths = [ROOT, ROOT / "plugins", ROOT / "models"]
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
        _await(lambda: _answers(lab) or process.poll() is not None, 60)
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


def _await(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came in time"
        time.sleep(0.1)


@dataclass
class Tab:
    """One page with a notebook.

    Parameters
    ----------
    page
        Of playwright.
    outside
        Addresses beyond this machine that were asked for, and were refused.
    """

    page: Any
    outside: list[str] = field(default_factory=list)

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
        import numpy as np

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
        import base64

        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=_chromium(), headless=True, args=_FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def open_in(lab: Lab, browser: Any) -> Callable[..., AbstractContextManager[Tab]]:
    """Open a notebook of these cells; what it asks of another machine fails the test."""

    @contextmanager
    def opened(name: str, *cells: str, app: str = "lab", size: tuple[int, int] = (1280, 900), scheme: str = "light") -> Iterator[Tab]:
        lab.notebook(name, *cells)
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(30_000)
        tab = Tab(page)

        def check(route: Any) -> None:
            if route.request.url.startswith((lab.url, "data:", "blob:")):
                route.continue_()
            else:
                tab.outside.append(route.request.url)
                route.abort()

        page.route("**/*", check)
        place = f"lab/tree/{name}?reset&" if app == "lab" else f"notebooks/{name}?"
        try:
            page.goto(f"{lab.url}/{place}token={lab.token}")
            page.wait_for_function(f"{_KERNEL}?.connectionStatus === 'connected'", timeout=60_000)
            yield tab
        except BaseException:
            page.screenshot(path=str(lab.folder / f"{name}.png"))
            raise
        finally:
            page.evaluate("window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown()")
            context.close()
        assert tab.outside == []

    return opened
