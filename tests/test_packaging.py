"""The wheel holds the four packages with all they read at run time, and nothing else."""

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "streamview": ROOT / "streamview",
    "streamview_napari": ROOT / "plugins/streamview_napari",
    "streamview_jupyter": ROOT / "plugins/streamview_jupyter",
    "streamview_models": ROOT / "models/streamview_models",
}
BUILDING = {"js", "node_modules", "package.json", "package-lock.json", "build.mjs", "tsconfig.json"}  # what the widget is built from


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(home).as_posix()}"
        for package, home in PACKAGES.items()
        for path in home.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.relative_to(home).parts[0] not in BUILDING
    }
    assert found == expected
    kinds = {Path(name).suffix for name in found} | {Path(name).name for name in found}
    assert {".yaml", ".safetensors", "card.json", "py.typed", "widget.js", "widget.css"} <= kinds


def test_the_metadata_name_the_licence_the_extras_and_the_entry_points(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    assert (fields["Name"], fields["Requires-Python"], fields["License-Expression"]) == ("streamview", ">=3.11", "Apache-2.0")
    assert set(fields.get_all("Provides-Extra")) == {
        "napari",
        "jupyter",
        "cluster",
        "tables",
        "models",
        "dicom",
        "tensorboard",
        "test",
        "docs",
        "all",
    }
    base = {requirement for requirement in fields.get_all("Requires-Dist") if "extra ==" not in requirement}
    assert not [requirement for requirement in base if requirement.lower().startswith(("napari", "pyside", "pyqt", "qt"))]
    points = wheel.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "streamview = streamview.cli:main" in points
    assert "streamview = streamview_napari:napari.yaml" in points


def test_the_viewers_extra_names_what_the_plugin_imports(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist")
    named = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements if "extra == 'napari'" in requirement}
    imported = {
        found
        for path in PACKAGES["streamview_napari"].rglob("*.py")
        for found in re.findall(r"^\s*(?:from|import) (napari|npe2|magicgui|qtpy|superqt|skimage)\b", path.read_text(), re.MULTILINE)
    }
    assert {{"skimage": "scikit-image"}.get(name, name) for name in imported} <= named
    assert "magicgui" in imported


def test_every_package_that_an_extra_names_is_pinned(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line and not line.startswith("#")}
    named = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in fields.get_all("Requires-Dist")}
    assert named <= pinned
