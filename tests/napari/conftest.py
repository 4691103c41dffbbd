"""The plugin's tests: logic without a window, and one real window where there is a display."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from streamview.slides.synthetic import write_synthetic_slide

if find_spec("napari") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # Imported here once: on import napari and npe2 give deprecation warnings of their own, which are not this project's to mend.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import npe2  # noqa: F401
        from napari.components import ViewerModel  # noqa: F401
        from napari.layers import Layer  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _settings_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep napari from reading or writing the settings of whoever runs the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NAPARI_CONFIG", str(tmp_path_factory.mktemp("napari") / "settings.yaml"))
    yield
    patch.undo()


@pytest.fixture
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the plugin's settings, of one test alone; ``home`` in it is for what nobody saves."""
    from napari import settings

    folder = tmp_path_factory.mktemp("settings")
    settings._PLUGIN_SETTINGS.clear()
    settings.get_plugin_settings(path_dir=folder)
    settings.get_plugin_settings("streamview").panel.folder = str(folder / "home")
    yield folder
    settings._PLUGIN_SETTINGS.clear()


@pytest.fixture
def window(qapp: Any, own_settings: Path) -> Iterator[Callable[[Any], Any]]:
    """Register a real viewer to be closed after the test."""
    viewers: list[Any] = []

    def keep(viewer: Any) -> Any:
        viewers.append(viewer)
        return viewer

    yield keep
    for viewer in viewers:
        viewer.close()
    qapp.processEvents()


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 768 rows and 1024 columns at 0.5 um/px with a planted lesion; not to be changed."""
    path = tmp_path_factory.mktemp("slide") / "planted.svs"
    write_synthetic_slide(path, size=(768, 1024), mpp=0.5, seed=3)
    return path


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where screenshots go: the folder named by STREAMVIEW_SCREENSHOTS, to be looked at, else a temporary one."""
    folder = Path(os.environ.get("STREAMVIEW_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
