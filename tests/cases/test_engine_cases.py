"""Networks on which the engine was silently wrong, crashed, hung or leaked: each is now right, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import pytest

from streamview.errors import StreamviewError


def exact(line: str) -> bool:
    """Whether the difference is rounding, or the network refused."""
    stated = re.match(r"difference (\S+)", line)
    return line.startswith("refused: ") or (stated is not None and float(stated[1]) < 1e-12)


def computed(line: str) -> bool:
    """As `exact`, where a refusal will not do."""
    return exact(line) and not line.startswith("refused: ")


CASES: dict[str, Callable[[str], bool]] = {
    "weights_used_twice": lambda line: "gradients 1.000000 " in line,
    "parametrised_subclass": exact,
    "patched_forward": exact,
    "branch_on_type": exact,
    "stale_capture": computed,
    "streamed_inside": lambda line: line == "ended",
    # of operations, tracers and channels
    "exported_maximum": computed,
    "pooling_by_own_size": computed,
    "constants_pile_up": lambda line: "left: 0, new: 0" in line,
    "other_channel_counts": computed,
    "layers_that_do_not_fit": lambda line: line.startswith("refused: ") and "1" in line,
    # of the contract with autograd
    "unused_branch": lambda line: ": None" in line,
    "spectral_norm_runs_more_often": lambda line: ": False" in line,
}


def test_every_case_is_here(engine_cases: ModuleType) -> None:
    assert {case.__name__ for case in engine_cases.CASES} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, engine_cases: ModuleType) -> None:
    try:
        line = getattr(engine_cases, name)()
    except StreamviewError as error:
        line = f"refused: {error}"
    assert CASES[name](line), line
