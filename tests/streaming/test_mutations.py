"""The exactness tests notice a broken engine: each mutation here must be caught."""

import pytest
import torch
import torch.nn.functional as F
from networks import seed_network
from oracle import errors
from torch import nn

from streamview.streaming import schedule
from streamview.streaming.ops import window


@pytest.fixture
def image() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 3, 47, 39, dtype=torch.float64)


def test_carry_one_row_short(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = seed_network(blocks=3).double()
    assert max(errors(network, image, tile=(8, 40))) < 1e-10
    first = schedule.Window.first
    monkeypatch.setattr(schedule.Window, "first", lambda self, o, n: min(first(self, o, n) + (self.kernel == 3), n))
    assert _broken(network, image)


def test_zero_instead_of_minus_infinity_in_max_pool(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1)).double()
    nn.init.constant_(network[0].bias, -9)
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    extend = window._extend
    monkeypatch.setattr(window, "_extend", lambda x, rows, cols, piece, value: extend(x, rows, cols, piece, 0.0))
    assert _broken(network, image)


def test_gradient_of_a_carry_lost(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = seed_network(blocks=3).double()
    from streamview.streaming import execute

    reverse = execute.reverse_step
    monkeypatch.setattr(execute, "reverse_step", lambda *args: (reverse(*args)[0], [None] * 99))
    assert _broken(network, image)


def test_last_of_equal_maxima(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)).double()
    flat = torch.ones_like(image)
    assert max(errors(network, flat, tile=(8, 8))) < 1e-10
    run = window.MaxPool._run_halves

    def last(x: torch.Tensor, wants: object) -> object:
        out, saved = run(x.flip(2, 3), wants)
        return out.flip(2, 3), saved

    monkeypatch.setattr(window.MaxPool, "_run_halves", staticmethod(last))
    monkeypatch.setattr(window, "unpack", lambda bits, like: 1 - torch.zeros(bits[1], dtype=like.dtype))
    assert _broken(network, flat)


def _broken(network: nn.Module, image: torch.Tensor) -> bool:
    """Whether the error is plain to see; a mutation may also make torch complain."""
    try:
        return max(errors(network, image, tile=(8, 11))) > 1e-6
    except (RuntimeError, IndexError, ValueError):
        return True


def test_padding_of_the_convolution_is_zero(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, (3, 2), padding="same"), nn.Conv2d(4, 2, 3, padding=1)).double()
    assert max(errors(network, image, tile=(8, 11))) < 1e-10
    pad = F.pad
    monkeypatch.setattr(window.F, "pad", lambda x, p, value=0.0: pad(x, p, value=1.0))
    assert _broken(network, image)
