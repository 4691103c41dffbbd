"""Model cards: a network's expected pixels and the meaning of its outputs.

A card is WSInfer's ``config.json``, read unchanged (schema 1.0,
https://github.com/SBU-BMI/wsinfer-zoo/blob/main/wsinfer_zoo/schemas/model-config.schema.json), with our additions under the
one key ``streamview``, all optional: ``name``, ``task``, ``trained``, ``licence``, ``split``, ``aggregation``,
``calibration``, ``use``, ``warning``, ``input_size``, ``stain``, ``answers``, ``positive``. Beyond the schema, ``patch_size_pixels``
and ``spacing_um_px`` may be null: unknown.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from streamview.errors import ModelError

__all__ = ["ModelCard", "Stain", "Task", "assumed_document", "card_document", "parse_card", "read_document"]

Task = Literal["class", "multilabel", "regression"]
"""What the outputs are: one class of several (softmax), independent labels (sigmoid), or regressed values."""

_TEXTS = ("name", "licence", "split", "aggregation", "calibration", "use", "warning")
_ARGUMENTS = {"Resize": {"size", "interpolation", "antialias"}, "ToTensor": set[str](), "Normalize": {"mean", "std", "inplace"}}
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Stain:
    """The stain of a network's training tissue.

    Parameters
    ----------
    name
        Such as ``"H&E"``, ``"IHC"``, ``"fluorescence"``.
    od_mean, od_std
        Optical density, ``log10(glass / pixel)``, of the red, green and blue of tissue: mean and standard deviation over the training
        regions of each one's own mean; None: not measured.
    """

    name: str
    od_mean: tuple[float, ...] | None = None
    od_std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A network's inputs and outputs; every field was checked by `parse_card`.

    Parameters
    ----------
    name
        Name of the model.
    architecture
        An id of ``streamview_models.MODELS``, ``timm:NAME``, ``torchvision:NAME``, or a bare timm name as WSInfer writes it; if the caller
        chose the network, the caller's text.
    class_names
        Name of every output, in order.
    patch_size_pixels, spacing_um_px
        Side of the training patches, px, and their um/px; None: unknown.
    resize
        Side to which the patches were then resized, px; None: they were not.
    mean, std
        Mean and standard deviation of the red, green and blue of pixels scaled to 0..1: the input is ``(pixel / 255 - mean) / std``.
    task
        Kind of the outputs.
    trained
        False: the weights are random, and every output must say so.
    licence, split, aggregation, calibration
        Licence of the weights; split of the training data; aggregation of regions to slides; calibration of probabilities; None: not
        stated.
    use
        Intended use of the model.
    warning
        A warning for users, shown with every answer; None: none.
    input_size
        Smallest and largest side of the training regions, px of the network's grid; None: unknown.
    sha256
        Hash of the card as canonical JSON (sorted keys, no spaces, UTF-8).
    stain
        Stain of the training tissue; None: not stated.
    answers
        Default unit of one answer: the whole "region", or each "patch" of it. A WSInfer card that states its patches, without our key,
        is for patches.
    positive
        The classes of interest, such as the lesion's: maps explain them by default, and hotspots are theirs. Empty: none stated.
    """

    name: str
    architecture: str
    class_names: tuple[str, ...]
    patch_size_pixels: int | None
    spacing_um_px: float | None
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task
    trained: bool
    licence: str | None
    split: str | None
    aggregation: str | None
    calibration: str | None
    use: str
    input_size: tuple[int, int] | None
    sha256: str
    warning: str | None = None
    stain: Stain | None = None
    answers: Literal["region", "patch"] = "region"
    positive: tuple[str, ...] = ()

    @property
    def mpp(self) -> float | None:
        """Um/px of the network's grid, coarser than ``spacing_um_px`` if patches were downsized; None: unknown."""
        if self.spacing_um_px is None or self.resize is None or self.patch_size_pixels is None:
            return self.spacing_um_px
        return self.spacing_um_px * self.patch_size_pixels / self.resize


def read_document(path: Path) -> dict[str, Any]:
    """Read a card's file as JSON without checking its fields.

    Raises
    ------
    ModelError
        If the file is missing, not UTF-8, not JSON (NaN and Infinity are not), or not an object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; expected a model card (WSInfer's config.json schema) of this name") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); expected a model card in WSInfer's config.json schema") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path} holds a JSON {type(document).__name__}; expected an object with WSInfer's config.json keys")
    return document


def parse_card(document: Mapping[str, Any], *, name: str, file: str) -> ModelCard:
    """Check a card's document field by field.

    Parameters
    ----------
    document
        The parsed JSON.
    name
        Name of the model if the card states none.
    file
        The card's name in messages.

    Raises
    ------
    ModelError
        If a field is missing, invalid or unknown; the message names the file, the field, its value and what was expected.
    """
    card = _Fields(document, file)
    card.get("spec_version", lambda v: v == "1.0", '"1.0"')
    class_names = tuple(card.get("class_names", _are_different_texts, "a list of different texts"))
    card.get("num_classes", lambda v: _is_side(v) and v == len(class_names), f"{len(class_names)}, the number of class_names")
    patch = card.get("patch_size_pixels", lambda v: v is None or _is_side(v), "whole pixels above 0, or null where unknown")
    spacing = card.get("spacing_um_px", lambda v: v is None or _is_positive(v), "micrometres per pixel above 0, or null where unknown")
    resize, mean, std = _read_transform(card)
    if resize is not None and patch is None:
        card.refuse("patch_size_pixels", "the side that patches had before Resize, px")
    ours = _Fields(card.get("streamview", _is_object, "an object", default={}), file, "streamview.")
    ours.only((*_TEXTS, "task", "trained", "input_size", "stain", "answers", "positive"))
    texts = {key: ours.get(key, _is_text, "a text", default=None) for key in _TEXTS}
    side = resize or patch
    has_patches = patch is not None and spacing is not None
    answers = ours.get(
        "answers",
        lambda v: v == "region" or (v == "patch" and has_patches),
        "region, or patch where patch_size_pixels and spacing_um_px are stated",
        default="patch" if has_patches and "streamview" not in document else "region",
    )
    return ModelCard(
        name=texts["name"] or name,
        architecture=card.get("architecture", _is_text, "the id of a network"),
        class_names=class_names,
        patch_size_pixels=patch,
        spacing_um_px=None if spacing is None else float(spacing),
        resize=resize,
        mean=mean,
        std=std,
        task=ours.get("task", lambda v: v in get_args(Task), " or ".join(get_args(Task)), default="class"),
        trained=ours.get("trained", lambda v: isinstance(v, bool), "true or false", default=True),
        licence=texts["licence"],
        split=texts["split"],
        aggregation=texts["aggregation"],
        calibration=texts["calibration"],
        use=texts["use"] or "Research use only",
        warning=texts["warning"],
        input_size=_read_input_size(ours, default=(side, side) if side else None),
        sha256=hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest(),
        stain=_read_stain(ours),
        answers=answers,
        positive=_read_positive(ours, class_names),
    )


def card_document(card: ModelCard) -> dict[str, Any]:
    """Return a card as a JSON document; inverse of `parse_card` except for the digest."""
    transform: list[dict[str, Any]] = [] if card.resize is None else [{"name": "Resize", "arguments": {"size": card.resize}}]
    transform += [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": list(card.mean), "std": list(card.std)}}]
    texts = {key: getattr(card, key) for key in _TEXTS}
    return {
        "spec_version": "1.0",
        "architecture": card.architecture,
        "num_classes": len(card.class_names),
        "class_names": list(card.class_names),
        "patch_size_pixels": card.patch_size_pixels,
        "spacing_um_px": card.spacing_um_px,
        "transform": transform,
        "streamview": {
            "task": card.task,
            "trained": card.trained,
            **{key: text for key, text in texts.items() if text is not None},
            **({} if card.input_size is None else {"input_size": list(card.input_size)}),
            **({} if card.stain is None else {"stain": _stain_document(card.stain)}),
            **({} if card.answers == "region" else {"answers": card.answers}),
            **({"positive": list(card.positive)} if card.positive else {}),
        },
    }


def _stain_document(stain: Stain) -> dict[str, Any]:
    measured = {key: value for key, value in (("od_mean", stain.od_mean), ("od_std", stain.od_std)) if value is not None}
    return {"name": stain.name, **{key: list(value) for key, value in measured.items()}}


def assumed_document(
    architecture: str,
    class_names: Sequence[str],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    side: int | None = None,
) -> dict[str, Any]:
    """Return a card document for a network without a card.

    Parameters
    ----------
    architecture
        Its name.
    class_names
        Name of every output.
    mean, std
        Mean and standard deviation of the training pixels, scaled to 0..1; None: pixels are only scaled.
    side
        Side of the training images, px; None: unknown.
    """
    transform: list[dict[str, Any]] = [{"name": "ToTensor"}]
    if mean is not None and std is not None:
        transform.append({"name": "Normalize", "arguments": {"mean": list(mean), "std": list(std)}})
    return {
        "spec_version": "1.0",
        "architecture": architecture,
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "patch_size_pixels": side,
        "spacing_um_px": None,
        "transform": transform,
    }


def _read_transform(card: _Fields) -> tuple[int | None, tuple[float, ...], tuple[float, ...]]:
    """Read the list of transforms: the side that patches are resized to, mean, std."""
    resize: int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    seen: list[str] = []
    for index, value in enumerate(card.get("transform", lambda v: isinstance(v, list), "a list")):
        step = _Fields(value, card.file, f"transform[{index}].")
        step.only(("name", "arguments"))
        name = step.get("name", lambda v: v in list(_ARGUMENTS), f"one of {', '.join(_ARGUMENTS)}: nothing else can be applied to a slide")
        arguments = _Fields(step.get("arguments", _is_object, "an object", default={}), card.file, f"transform[{index}].arguments.")
        arguments.only(_ARGUMENTS[name])
        if name in seen or (name == "Normalize" and "ToTensor" not in seen):
            step.refuse("name", "each transform once, and Normalize after ToTensor")
        seen.append(name)
        if name == "Resize":
            size = arguments.get("size", _is_square, "the side of a square, whole pixels above 0")
            resize = size[0] if isinstance(size, list) else size
        elif name == "Normalize":
            mean = tuple(map(float, arguments.get("mean", lambda v: _are_three(v, _is_number), "3 numbers: red, green, blue")))
            std = tuple(map(float, arguments.get("std", lambda v: _are_three(v, _is_positive), "3 numbers above 0: red, green, blue")))
    if "ToTensor" not in seen:
        card.refuse("transform", "a list with the step ToTensor, which scales pixels to 0..1")
    return resize, mean, std


def _read_input_size(ours: _Fields, default: tuple[int, int] | None) -> tuple[int, int] | None:
    expected = "[smallest, largest] side of the regions trained on, whole pixels"
    size = ours.get("input_size", _are_two_sides, expected, default)
    return size if size is None else (size[0], size[1])


def _read_positive(ours: _Fields, class_names: tuple[str, ...]) -> tuple[str, ...]:
    def check(value: Any) -> bool:
        return _are_different_texts(value) and set(value) <= set(class_names) if isinstance(value, list) else value in class_names

    named = ours.get("positive", check, f"one of the class_names, or a list of them: {_shown(list(class_names))}", default=[])
    return (named,) if isinstance(named, str) else tuple(named)


def _read_stain(ours: _Fields) -> Stain | None:
    values = ours.get("stain", _is_object, "an object", default=None)
    if values is None:
        return None
    stain = _Fields(values, ours.file, "streamview.stain.")
    stain.only(("name", "od_mean", "od_std"))
    numbers = "3 numbers of 0 or more: red, green, blue"
    mean, std = (
        stain.get(key, lambda v: _are_three(v, lambda n: _is_number(n) and n >= 0), numbers, None) for key in ("od_mean", "od_std")
    )
    if (mean is None) != (std is None) or (mean is not None and not sum(mean)):
        stain.refuse("od_mean", "both od_mean and od_std or neither, and some absorption")
    name = stain.get("name", _is_text, "a text such as H&E")
    return Stain(name, None if mean is None else tuple(map(float, mean)), None if std is None else tuple(map(float, std)))


class _Fields:
    """One JSON object, read field by field; every error names the file, the field, its value and what was expected."""

    def __init__(self, values: object, file: str, prefix: str = "") -> None:
        self.file, self._prefix = file, prefix
        if not isinstance(values, Mapping):
            raise ModelError(f"{file}: {prefix.rstrip('.')} is {_shown(values)}; expected an object")
        self._values: Mapping[str, Any] = values

    def refuse(self, key: str, expected: str) -> NoReturn:
        value = _shown(self._values[key]) if key in self._values else "missing"
        raise ModelError(f"{self.file}: {self._prefix}{key} is {value}; expected {expected}")

    def only(self, allowed: Collection[str]) -> None:
        for key in self._values:
            if key not in allowed:
                self.refuse(key, f"nothing under this name; understood here: {', '.join(sorted(allowed)) or 'no argument'}")

    def get(self, key: str, check: Callable[[Any], bool], expected: str, default: Any = _REQUIRED) -> Any:
        if key not in self._values and default is not _REQUIRED:
            return default
        if key not in self._values or not check(self._values[key]):
            self.refuse(key, expected)
        return self._values[key]


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_different_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_text, values)) and len(set(values)) == len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_two_sides(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(map(_is_side, values)) and values[0] <= values[1]


def _is_square(value: Any) -> bool:
    return _is_side(value) or (isinstance(value, list) and len(value) in (1, 2) and all(map(_is_side, value)) and len(set(value)) == 1)


def _are_three(values: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(map(check, values))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
