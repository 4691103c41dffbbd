"""Importing the core costs nothing and needs no window."""

import json
import subprocess
import sys

import pytest

HEAVY = "torch zarr tifffile openslide scipy PIL matplotlib napari qtpy PySide6 PyQt6 magicgui anywidget"
CORE = (
    "streamview.cohort.run streamview.demo streamview.system.doctor streamview.cli.commands "
    "streamview.inference.explain streamview.jobs streamview.slides.pyramid"
)


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after some code ran in a fresh process."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import streamview", "from streamview.cli.parser import build_parser; build_parser().format_help()"])
def test_the_package_and_the_help_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code).isdisjoint(HEAVY.split())


def test_the_core_loads_no_gui() -> None:
    loaded = loaded_by("\n".join(f"import {name}" for name in CORE.split()))
    assert {"torch", "zarr"} <= loaded  # the test sees what is loaded
    assert loaded.isdisjoint(("napari", "qtpy", "PySide6", "PyQt6", "magicgui", "anywidget", "streamview_napari"))


def test_every_public_name_is_there() -> None:
    import streamview

    assert dir(streamview) == sorted(streamview.__all__)
    for name in streamview.__all__:
        assert getattr(streamview, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        streamview.nothing_of_the_kind  # noqa: B018


def test_a_session_and_its_statistics_load_no_network() -> None:
    assert "torch" not in loaded_by("import streamview.review, streamview.review.statistics, streamview.review.sitting")
