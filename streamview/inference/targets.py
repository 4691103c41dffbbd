"""What to explain, as a user names it."""

from __future__ import annotations

from collections.abc import Sequence

from streamview.errors import ModelError
from streamview.networks import Model
from streamview.results import Target

__all__ = ["find_target", "find_targets"]


def find_target(model: Model, target: int | str | Target) -> Target:
    """What to explain: a class by name or index, or the difference of two logits as ``"a-b"``.

    A class of just that name comes first. Where hyphens in names leave more than one difference, spaces show which hyphen is the minus:
    ``"grade-1 - grade-2"``.

    Raises
    ------
    ModelError
        When the model has no such class, or several differences may be meant.
    """
    names = model.card.class_names
    if isinstance(target, Target):
        if all(index is None or 0 <= index < len(names) for index in (target.index, target.against)):
            return target
    elif isinstance(target, str):
        if target in names:
            return Target(target, names.index(target))
        differences = _differences(target, names)
        if len(differences) > 1:
            listed = " or ".join(f'"{first} - {second}"' for first, second in differences)
            raise ModelError(f"target {target!r}: may be {listed}; write the one you mean, with spaces around the minus")
        if differences:
            ((first, second),) = differences
            short = f"{first}-{second}"
            clear = short not in names and len(_differences(short, names)) == 1
            return Target(short if clear else f"{first} - {second}", names.index(first), names.index(second))
    elif not isinstance(target, bool) and 0 <= target < len(names):
        return Target(names[target], int(target))
    known = f"{', '.join(names[:10])}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"
    raise ModelError(
        f"target {target if isinstance(target, int) else str(target)!r}: the model {model.card.name} has {known}; name one of them, or two "
        "as a-b for the difference of their logits"
    )


def find_targets(model: Model, targets: Sequence[str]) -> list[Target]:
    """What a user named, each once: as `find_target`, or every class for the word ``"all"`` unless a class is called so.

    Raises
    ------
    ModelError
        As `find_target`.
    """
    names = model.card.class_names
    chosen: list[Target] = []
    for target in targets:
        every = target == "all" and target not in names
        chosen += [Target(name, index) for index, name in enumerate(names)] if every else [find_target(model, target)]
    return list(dict.fromkeys(chosen))


def _differences(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different classes that a text may subtract, by the hyphens with spaces around them if these give any."""
    for minus in (" - ", "-"):
        places = [at for at in range(len(text)) if text.startswith(minus, at)]
        pairs = [(text[:at].strip(), text[at + len(minus) :].strip()) for at in places]
        differences = [(first, second) for first, second in pairs if first in names and second in names and first != second]
        if differences:
            return differences
    return []
