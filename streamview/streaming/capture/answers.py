"""What a network returns beside tensors: the types of its mappings, which graphs of calls do not keep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

__all__ = ["retyped"]


def retyped(answer: Any) -> Callable[[Any], Any] | None:
    """How an answer made of plain dicts becomes one of the types of this one; None where they are the same."""
    if not _differs(answer):
        return None
    template = _emptied(answer)

    def retype(plain: Any) -> Any:
        return _filled(template, plain)

    return retype


def _differs(answer: Any) -> bool:
    if isinstance(answer, dict):
        return type(answer) is not dict or any(map(_differs, answer.values()))
    return isinstance(answer, tuple | list) and any(map(_differs, answer))


def _emptied(answer: Any) -> Any:
    """The same structure without tensors."""
    if isinstance(answer, dict):
        empty = copy.copy(answer)
        for key, value in answer.items():
            empty[key] = _emptied(value)
        return empty
    return [_emptied(part) for part in answer] if isinstance(answer, tuple | list) else None


def _filled(template: Any, plain: Any) -> Any:
    if isinstance(template, dict):
        filled = copy.copy(template)
        for key in template:
            filled[key] = _filled(template[key], plain[key])
        return filled
    if isinstance(template, list) and isinstance(plain, tuple | list):
        parts = [_filled(part, value) for part, value in zip(template, plain, strict=True)]
        return type(plain)(*parts) if hasattr(plain, "_fields") else type(plain)(parts)
    return plain
