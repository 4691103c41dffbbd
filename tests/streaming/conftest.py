"""Small tensors: threads would only wait for each other."""

from collections.abc import Iterator

import pytest
import torch

from streamview.streaming import step


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fine_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every value grow row by row: small images would otherwise be made at once, and nothing carried from step to step."""
    monkeypatch.setattr(step, "_WORTHWHILE", 1)
