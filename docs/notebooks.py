"""Execute the notebooks in ``examples`` and save them with their outputs: ``make notebooks``, or ``python docs/notebooks.py 01 04``.

What differs from machine to machine is left out of what is saved: paths, times of execution, and views without their widget.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
LIMIT = 700_000  # bytes of a notebook
_VIEW = "application/vnd.jupyter.widget-view+json"
_PALETTE = 256  # colours of a picture that is saved
_TIMEOUT = 300  # s for a cell


def notebooks() -> list[Path]:
    """Return the notebooks, in the order of reading."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path) -> Any:
    """Return a notebook, run from top to bottom by a new kernel.

    Parameters
    ----------
    path
        The notebook, which stays as it is.
    folder
        The kernel's temporary files and settings go there.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell raises.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    paths = [ROOT, ROOT / "plugins", ROOT / "models"]
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # for !streamview
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(folder),
        "COLUMNS": "120",
    }
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        store_widget_state=False,
    )
    client.execute(env=environment)
    return notebook


def code_hash(notebook: Any) -> str:
    """Return a hash of the code cells: the same in a saved notebook as when its outputs were made."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def clean(notebook: Any, folder: Path) -> None:
    """Leave out of an executed notebook what is of this machine and this moment, and make its pictures small.

    Parameters
    ----------
    notebook
        Is changed.
    folder
        The temporary folder, whose path is removed from texts.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "streamview": {"code_sha256": code_hash(notebook)},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _plain(output.text, folder)
                continue
            output.metadata = {}
            data = output.data
            data.pop(_VIEW, None)  # without the kernel's widget a view is an error message; its picture stays
            if "<img" in data.get("text/html", ""):
                data.pop("image/png", None)  # the same picture twice
            for kind, content in data.items():
                if kind == "image/png":
                    data[kind] = _small(content)
                elif isinstance(content, str):
                    data[kind] = _plain(content, folder)


def save(notebook: Any, path: Path) -> None:
    """Write a notebook.

    Raises
    ------
    ValueError
        When it is larger than `LIMIT`.
    """
    import nbformat

    text = nbformat.writes(notebook) + "\n"
    if len(text) > LIMIT:
        raise ValueError(f"{path.name} has {len(text):,} bytes, of {LIMIT:,} at most: make its pictures smaller")
    path.write_text(text, encoding="utf-8")


def _joined(outputs: list[Any]) -> list[Any]:
    """Pieces of one stream that came one after the other as one, whenever the kernel sent them."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _plain(text: str, folder: Path) -> str:
    """A text without the temporary folder, and without what a terminal has overwritten."""
    text = re.sub(rf"(?:/private)?{re.escape(str(folder))}(?:/tmp\w+)?/?", "", text.replace("\r\n", "\n"))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    # table styles and objects have random names
    text = re.sub(r"\bT_[0-9a-f]{5}", "T_table", re.sub(r" at 0x[0-9a-f]+", "", text))
    return "\n".join(line.rpartition("\r")[2].rstrip() for line in text.split("\n"))


def _small(picture: str) -> str:
    """A PNG in few colours, which the eye does not miss."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        small, file = (
            image.convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE),
            io.BytesIO(),
        )
    small.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def main(names: list[str]) -> None:
    """Execute those whose file name begins with one of `names`; without any, all."""
    for path in notebooks():
        if names and not path.name.startswith(tuple(names)):
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            notebook = execute(path, folder)
            clean(notebook, folder)
        save(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
