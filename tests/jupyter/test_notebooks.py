"""The notebooks in examples: they run, and what is saved with them is what they give."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from docs.notebooks import FOLDER, LIMIT, clean, code_hash, execute, notebooks

_MISSING = [name for name in ("nbclient", "nbformat", "ipykernel", "pandas", "anywidget") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)}")

NAMES = [path.stem for path in notebooks()]
# what each notebook has to say, on any machine
EXPECTED = {
    "01-first-steps": ["px in", "strongest evidence", "same result: True"],
    "02-streamed-against-conventional": ["shared by both: True"],
    "03-your-own-network": [
        "LesionNet streams",
        "BatchNorm in training mode",
        "attention over the whole image",
        "Control flow that depends on the image",
        "head.2.bias",
        "whole-module.pt",
    ],
    "04-saliency-of-a-slide": ["hotspots.geojson", "peak", "review.html"],
    "05-fine-tune-on-ten-regions": ["expected 10 or more of each", "tuned: accuracy"],
    "06-a-cohort": ["will fail: case-04.svs: truncated", "5 of 6 slides answered", "5 of them before", "written: job/review.html"],
}


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook: Any) -> str:
    return "\n".join(output.text if output.output_type == "stream" else output.data.get("text/html", "") for output in outputs(notebook))


def shape_of(notebook: Any) -> list[list[Any]]:
    """What kinds of outputs each cell has; of texts the words, without numbers, which depend on the machine, and without progress bars."""
    shapes = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kinds: list[Any] = []
        for output in cell.outputs:
            if output.output_type != "stream":
                kinds.append(sorted(set(output.data) - {"text/plain"}))
                continue
            lines = [line for line in output.text.splitlines() if not re.search(r"steps?[,/]|\d/\d|took|forecast|peak memory", line)]
            words = re.sub(r"[-+]?\d[\d.,e+-]*|\b(k|M|G)?B\b", "#", " ".join(lines)).split()
            kinds.append((output.name, [word for word in words if not re.fullmatch(r"[0-9a-f#,.:;()]+", word)]))
        shapes.append(kinds)
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_gives_what_is_saved(name: str, tmp_path: Path) -> None:
    if name.startswith("06") and shutil.which("streamview", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("needs the command streamview: pip install -e .")
    saved, executed = read(name), execute(FOLDER / f"{name}.ipynb", tmp_path)
    clean(executed, tmp_path)
    assert [output for output in outputs(executed) if output.output_type == "error"] == []
    assert shape_of(executed) == shape_of(saved)
    for text in EXPECTED[name]:
        assert text in texts(executed)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_notebook_is_executed_clean_and_small(name: str) -> None:
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    assert notebook.metadata["streamview"]["code_sha256"] == code_hash(notebook), "the code has changed: run `make notebooks`"
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(
        range(1, 1 + sum(cell.cell_type == "code" for cell in notebook.cells))
    )
    assert outputs(notebook)
    assert [output.name for output in outputs(notebook) if output.output_type == "stream" and output.name != "stdout"] == []
    assert [output for output in outputs(notebook) if output.output_type == "error"] == []
    assert path.stat().st_size <= LIMIT
    pictures = re.sub(r"[A-Za-z0-9+/=]{200,}", "", path.read_text(encoding="utf-8"))
    assert re.findall(r"(?<![\w.])/(?:home|work|tmp|root|Users|private|var)/", pictures) == []
    assert "widget-view" not in pictures
    for text in EXPECTED[name]:
        assert text in texts(notebook)
    assert any(
        output.output_type != "stream" and ("image/png" in output.data or "<img" in output.data.get("text/html", ""))
        for output in outputs(notebook)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_says_for_whom_it_is_and_links_to_what_exists(name: str) -> None:
    pages = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    title, audience, *_ = pages[0].split("\n\n")
    assert title.startswith("# ")
    assert audience.startswith("For ")
    assert "Runs in about" in " ".join(audience.split())
    if not name.startswith("02"):
        assert "Research use only" in pages[0]
    for target in re.findall(r"\]\(([^)]+)\)", "\n".join(pages)):
        if not target.startswith("https://"):
            assert (FOLDER / target.split("#")[0]).exists(), target


def test_the_view_is_saved_as_a_picture() -> None:
    cell = next(cell for cell in read("04-saliency-of-a-slide").cells if cell.source.endswith("\nviewer"))
    (output,) = cell.outputs
    assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG\r\n\x1a\n")


def test_every_notebook_is_in_the_contents() -> None:
    contents = (FOLDER / "README.md").read_text()
    assert sorted(re.findall(r"\]\(([\w-]+)\.ipynb\)", contents)) == NAMES
    assert sorted(EXPECTED) == NAMES


def test_cleaning_leaves_no_trace_of_the_machine(tmp_path: Path) -> None:
    import nbformat

    view = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
        "text/plain": f"<Thing at 0x7f12ab in {tmp_path}/tmpq1_x/slide.svs>",
    }
    written = [
        nbformat.v4.new_output("stream", name="stdout", text=f"10%\r100%\r\n\x1b[1m{tmp_path}/a.svs\x1b[0m"),
        nbformat.v4.new_output("stream", name="stdout", text="\nend  "),
        nbformat.v4.new_output("display_data", data=view, metadata={"isolated": True}),
    ]
    cell = nbformat.v4.new_code_cell("1", outputs=written, metadata={"execution": {"iopub.status.busy": "2026"}})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    clean(notebook, tmp_path)
    first, second = notebook.cells[0].outputs
    assert first.text == "100%\na.svs\nend"
    assert second.data == {"text/plain": "<Thing in slide.svs>"}
    assert "2026" not in json.dumps(notebook)
