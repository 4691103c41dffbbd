"""One server and one browser for all tests of the widget that need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from tests.support.lab import Lab, Tab, missing, start_browser, start_lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where there is none."""
    reason = missing()
    for item in items:
        if reason and "open_in" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Jupyter server."""
    with start_lab(tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")) as lab:
        yield lab


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def open_in(lab: Lab, browser: Any) -> Callable[..., AbstractContextManager[Tab]]:
    """Open a notebook of some cells; see `Lab.open`."""
    return partial(lab.open, browser)
