"""Fixtures shared by all tests: the real test data where it exists, and slides made on the spot."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamview.cli import main
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.commands import Run
from tests.support.leaks import Opened
from tests.support.slides import SyntheticSlide


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of windows last: napari and Qt stay in memory, and other tests bound the memory of this same process."""
    items.sort(key=lambda item: "napari" in item.path.parts)


# torch.export tells this logger of every tensor, and pytest would keep it all
logging.getLogger("torch.__trace").disabled = True

_SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides, which is not part of the project."""
    if not (_SHARED / "MANIFEST.md").is_file():
        pytest.skip(f"no real test data at {_SHARED}")
    return _SHARED.resolve()


@pytest.fixture(scope="session")
def synthetic_slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """An Aperio-like SVS of odd size (1501 rows, 2203 columns, two levels) with a lesion; not to be changed."""
    path = tmp_path_factory.mktemp("synthetic") / "synthetic.svs"
    return SyntheticSlide(path, write_synthetic_slide(path, size=(1501, 2203), seed=4), 0.5)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return its status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Fail a test that leaves a file or a thread open; what fixtures of a wider scope opened before it stays theirs."""
    before = Opened.now()
    yield
    leaks = before.leaks()
    assert not leaks, f"left open: {', '.join(leaks)}"
