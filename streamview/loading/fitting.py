"""Weights into a network: by name and shape, all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streamview.errors import ModelError
from streamview.loading.checkpoints import Weights

__all__ = ["check_finite", "find_misfit", "learn_outputs", "strip_prefix"]


def strip_prefix(weights: Weights, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take a prefix off the names of the weights where all share it and the rest then are the network's names exactly.

    Training frameworks hang the network under ``model.``, ``module.`` and the like.

    Returns
    -------
    tuple
        The weights by the network's names, and what was taken off, "" for nothing.
    """
    state = dict(weights.state)
    prefix = ""
    while state.keys() != expected.keys():
        heads = {key.partition(".")[0] for key in state}
        if len(heads) != 1 or not all("." in key for key in state):
            return dict(weights.state), ""
        (head,) = heads
        prefix += f"{head}."
        state = {key.removeprefix(f"{head}."): tensor for key, tensor in state.items()}
    return state, prefix


def learn_outputs(small: Mapping[str, Tensor], large: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """How many outputs weights were trained for: from the tensors whose shape follows that number; None: they do not say.

    Parameters
    ----------
    small, large
        States of the network with 7 and with 11 outputs.
    state
        Weights by the network's names.
    """
    for key, tensor in small.items():
        shapes = list(zip(tensor.shape, large[key].shape, strict=True))
        if (7, 11) in shapes and key in state and state[key].dim() == len(shapes):
            return int(state[key].shape[shapes.index((7, 11))])
    return None


def find_misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Say which weights are missing, unexpected or of another shape, the first of each kind by name; None: all fit.

    Parameters
    ----------
    expected
        The network's own state.
    found
        The weights by name.
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    shapes = [key for key in expected if key in found and _form(expected[key]) != _form(found[key])]
    problems = [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    problems += [f"{len(extra)} unexpected, first {extra[0]}"] if extra else []
    if shapes:
        first = shapes[0]
        problems.append(f"{len(shapes)} of another form, first {first}: {_form(found[first])}, expected {_form(expected[first])}")
    return "; ".join(problems) or None


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are NaN or infinite, naming their source and the first tensor that holds some."""
    for key, tensor in state.items():
        # single precision holds every value of the half and eighth ones, which not every operator takes
        finite = torch.isfinite(tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float())
        if not finite.all():
            found = f"{int((~finite).sum())} of {tensor.numel()} values of {key} are NaN or infinite"
            raise ModelError(f"{source}: {found}; expected finite weights: export them again")


def _form(tensor: Tensor) -> str:
    kind = "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "integer"
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {kind}"
