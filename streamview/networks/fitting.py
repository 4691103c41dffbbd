"""Weights into a network: by name and shape, all of them or none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streamview.errors import ModelError
from streamview.networks.checkpoints import Weights
from streamview.networks.hashing import COUNTER

__all__ = ["Fit", "check_finite", "find_fit", "find_misfit", "learn_outputs"]

# what torch.compile, FSDP and activation checkpointing put into names
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BOOKKEEPING = re.compile(
    r"(?:^|[._])(?:acc|loss|crit|metric|auroc|auc|f1|precision|recall|confmat|confusion|kappa|iou|jaccard|dice|specificity|sensitivity|ece|mae|mse"
    r"|r2|class_weight|pos_weight|n_averaged|num_updates)",
    re.IGNORECASE,
)
_SHOWN = 8  # names of what is left out


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Where a file holds the weights of a network.

    Parameters
    ----------
    entry
        Of the file, as in `Weights`.
    prefix
        What stands before every name there, with its dot.
    state
        The weights by the network's names; of a network that they do not fit, what there is.
    misfit
        What is missing, unexpected or of another shape; None: nothing.
    foreign
        Names of the entry that are no part of the network, and are not used.
    """

    entry: str
    prefix: str
    state: Mapping[str, Tensor]
    misfit: str | None
    foreign: tuple[str, ...]

    @property
    def key(self) -> str:
        """What chooses it: ``FILE:KEY``."""
        return ".".join(part for part in (self.entry, self.prefix.rstrip(".")) if part)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed to make it fit, as in `streamview.networks.Model`."""
        changes = [f"the entry {self.entry!r} was taken"] if self.entry else []
        changes += [f"{self.prefix!r} was taken off every name"] if self.prefix else []
        if self.foreign:
            more = f" and {len(self.foreign) - _SHOWN} more" if len(self.foreign) > _SHOWN else ""
            changes.append(f"{', '.join(self.foreign[:_SHOWN])}{more} left out, no part of the network")
        return (", and ".join(changes),) if changes else ()


def find_fit(weights: Weights, expected: Mapping[str, Tensor], *, shapes: bool = True) -> Fit:
    """Find a network's weights in a file, under whatever key and prefix training programs put them.

    Training programs hang the network under ``model.``, ``module.`` and the like, and leave metrics, losses, counters and optimisers beside
    it; BatchNorm's counters may be missing.

    Parameters
    ----------
    weights
        The file.
    expected
        The network's own state.
    shapes
        Whether the shapes must be the network's.

    Returns
    -------
    Fit
        The one that fits; where none does, the nearest, with what is wrong.

    Raises
    ------
    ModelError
        When several fit that hold different values, or none stands under the key that was chosen.
    """
    key = weights.key
    fits = [fit for entry, state in weights.entries.items() for fit in _fits(entry, state, expected, shapes)]
    if not fits:
        entry, state = max(weights.entries.items(), key=lambda item: len(item[1]))
        fits = [_fit(entry, "", state, {name: name for name in state}, expected, shapes)]
    chosen = [fit for fit in fits if key in ("", fit.key)] or [fit for fit in fits if key == fit.entry or fit.key.startswith(f"{key}.")]
    if not chosen:
        names = [fit.key for fit in fits if fit.misfit is None and fit.key]
        expected_key = f"one of {', '.join(names[:_SHOWN])}" if names else "no key, as its weights are at the top"
        raise ModelError(f"{weights.path} holds no weights of this network under {key!r}; expected {expected_key}")
    whole = [fit for fit in chosen if fit.misfit is None]
    different = [fit for fit in whole[1:] if not _equal(fit.state, whole[0].state)]
    if different:
        named = " or ".join(f"--weights {weights.path}:{fit.key}" for fit in (whole[0], *different)[:_SHOWN])
        count = 1 + len(different)
        raise ModelError(f"{weights.path} holds {count} different networks that fit, such as plain and averaged; choose one: {named}")
    return whole[0] if whole else min(chosen, key=_lack)


def _fits(entry: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], shapes: bool) -> list[Fit]:
    """Every prefix under which an entry holds some of the network's weights."""
    plain = {_WRAPPERS.sub("", name): name for name in state}
    names = plain if len(plain) == len(state) else {name: name for name in state}
    needed = {name for name in expected if name.rpartition(".")[2] != COUNTER}
    starts = ((key, start) for key in names for start in (0, *(dot.end() for dot in re.finditer(r"\.", key))))
    prefixes = Counter(key[:start] for key, start in starts if key[start:] in needed)
    return [_fit(entry, prefix, state, names, expected, shapes) for prefix, _ in prefixes.most_common(_SHOWN)]


def _fit(
    entry: str, prefix: str, state: Mapping[str, Tensor], names: Mapping[str, str], expected: Mapping[str, Tensor], shapes: bool
) -> Fit:
    inside = {name.removeprefix(prefix): state[original] for name, original in names.items() if name.startswith(prefix)}
    tops = {name.partition(".")[0] for name in expected}
    missing = {name: tensor for name, tensor in expected.items() if name not in inside and name.rpartition(".")[2] == COUNTER}
    state = {name: tensor for name, tensor in {**missing, **inside}.items() if name in expected}
    # what is not the network's in its own namespace may be a layer that the definition lacks
    strange = [name for name in inside if name not in expected and name.rpartition(".")[2] != COUNTER]
    layers = [name for name in strange if name.partition(".")[0] in tops or not _is_bookkeeping(name, inside[name])]
    foreign = [name for name in names if not name.startswith(prefix)] + [prefix + name for name in strange if name not in layers]
    misfit = find_misfit(expected, {**state, **{name: inside[name] for name in layers}}, shapes=shapes)
    return Fit(entry, prefix, state, misfit, tuple(foreign))


def _is_bookkeeping(name: str, tensor: Tensor) -> bool:
    """Whether it is a counter, a metric's state or the weights of classes in a loss, and no layer."""
    return not tensor.is_floating_point() or (tensor.numel() == max(tensor.shape, default=1) and _BOOKKEEPING.search(name) is not None)


def _lack(fit: Fit) -> int:
    return -len(fit.state)


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    names = [name for name in first if name.rpartition(".")[2] != COUNTER]
    return all(first[name].shape == second[name].shape and bool((first[name] == second[name]).all()) for name in names)


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


def find_misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, shapes: bool = True) -> str | None:
    """Say which weights are missing, unexpected or of another shape, the first of each kind by name; None: all fit.

    Parameters
    ----------
    expected
        The network's own state.
    found
        The weights by name.
    shapes
        Whether to compare these too.
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    other = [key for key in expected if shapes and key in found and _form(expected[key]) != _form(found[key])]
    problems = [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    problems += [f"{len(extra)} unexpected, first {extra[0]}"] if extra else []
    if other:
        first = other[0]
        problems.append(f"{len(other)} of another form, first {first}: {_form(found[first])}, expected {_form(expected[first])}")
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
