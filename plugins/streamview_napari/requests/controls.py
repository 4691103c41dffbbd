"""What sections ask the user, as typed frozen requests: the type of a field makes its control, its name the option of a command line.

The types below are those of fields that are read, shown or bounded in a way of their own; ``panels/forms`` makes a control of each. The
options of a field stand in its `Annotated`, its tip in the docstring of its class.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType

from streamview.inference.compute import Compute
from streamview.results import ExplanationMethod, Method, Precision
from streamview.results.methods import MethodName
from streamview_napari.requests.inference import RegionChoice

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "DEVICES", "PRECISIONS", "ClassName", "Count", "Device", "DisplayControls", "Folder", "Fraction", "LabelControls", "Memory",
    "Micrometres", "ModelName", "Palette", "Percent", "Percentile", "Rate", "RunControls", "Share", "command_options", "read_memory",
]  # fmt: skip

Device = Literal["auto", "cpu", "cuda"]
DEVICES: dict[Device, str] = {"auto": "automatic", "cpu": "cpu"}
"""The devices that every machine has, for people."""
PRECISIONS: dict[Precision, str] = {precision: precision for precision in ("float32", "bf16", "fp16")}
"""Arithmetics, for people."""

ModelName = NewType("ModelName", str)
"""A network, as for `streamview.load_model`."""
Palette = NewType("Palette", str)
"""Key of `streamview.results.display.PALETTES`."""
ClassName = NewType("ClassName", str)
"""A class that a region may have, or a new one; empty where none is chosen."""
Memory = NewType("Memory", str)
"""An amount such as ``"2GB"``; empty: half of what is free."""
Folder = NewType("Folder", Path)
"""A folder that need not be there yet."""
Count = NewType("Count", int)
Rate = NewType("Rate", float)
Share = NewType("Share", float)
"""0 to 1, written in per cent."""
Micrometres = NewType("Micrometres", float)
Percent = NewType("Percent", float)
"""0 to 1, on a slider in per cent."""
Percentile = NewType("Percentile", float)
Fraction = NewType("Fraction", float)
"""0 to 1, on a slider."""


@dataclass(frozen=True, slots=True)
class RunControls:
    """Which network runs where, and how.

    Parameters
    ----------
    model
        The network that answers. Those marked (random weights) come without trained ones.
    region
        Which part of the slide the network sees. Sizes in px are those of the network's grid.
    device
        Where it is computed; automatic takes a CUDA graphics card where there is one.
    precision
        Arithmetic of the streamed part. bf16 and fp16 halve the memory and are fast on recent graphics cards; the answer changes slightly.
    memory
        Bound on the memory of the program (CUDA: of the card), such as 2GB; empty: half of what is free.
    even_glass
        Glass further than 64 µm from the tissue gets one colour: it takes no time and has no map. For whole slides.
    method
        How it is explained. SmoothGrad, integrated gradients and occlusion go over the region many times, Grad-CAM once.
    maps
        Compute what the answer rests on. Without maps only the prediction is computed, in a third of the time or less.
    """

    model: Annotated[ModelName, {"label": "Model"}] = ModelName("")
    region: Annotated[RegionChoice, {"label": "Region"}] = "2048"
    device: Annotated[Device, {"label": "Device"}] = "auto"
    precision: Annotated[Precision, {"label": "Precision"}] = "float32"
    memory: Annotated[Memory, {"label": "Memory", "placeholder": "auto"}] = Memory("")
    even_glass: Annotated[bool, {"label": "Even glass"}] = False
    method: Annotated[MethodName, {"label": "Method"}] = "gradient"
    maps: Annotated[bool, {"label": "Maps"}] = True

    @property
    def compute(self) -> Compute:
        """Where and how, for the core."""
        method = ExplanationMethod(self.method)
        return Compute(
            self.device, self.memory or None, precision=self.precision, method=method, glass="flat" if self.even_glass else "as-scanned"
        )


@dataclass(frozen=True, slots=True)
class DisplayControls:
    """How a map is shown; what is not the map's own bears the names of `streamview.results.display.Recipe`.

    Parameters
    ----------
    method
        Class evidence shows the extent, gradient x input the detail; the paper's is for reproduction.
    blur_um
        Standard deviation of the Gaussian blur, in µm; 0: each pixel as computed.
    threshold
        What lies below this share of the cap is hidden.
    cap_percentile
        The cap: percentile of the map's positive values that gets the full colour.
    opacity
        Of the colours; the outline stays. Keys [ and ].
    colours
        Colours from nothing to the cap. Teal to lime stands out best from haematoxylin and eosin.
    glass
        Show nothing where the slide is empty.
    lock
        Keep this map's cap, for all maps of its kind: colours then mean the same on every slide.
    """

    method: Annotated[Method, {"label": "Map"}] = "evidence"
    blur_um: Annotated[Micrometres, {"label": "Blur, µm", "max": 30}] = Micrometres(6.0)
    threshold: Annotated[Percent, {"label": "Hide below", "max": 95}] = Percent(0.15)
    cap_percentile: Annotated[Percentile, {"label": "Cap", "min": 90}] = Percentile(99.9)
    opacity: Annotated[Fraction, {"label": "Opacity"}] = Fraction(0.45)
    colours: Annotated[Palette, {"label": "Colours"}] = Palette("teal-lime")
    glass: Annotated[bool, {"label": "Hide on glass"}] = True
    lock: Annotated[bool, {"label": "One scale for all"}] = False


@dataclass(frozen=True, slots=True)
class LabelControls:
    """What the next region is labelled.

    Parameters
    ----------
    label
        The class of the regions that you draw next. Classes that the network does not have mean a new head.
    patient
        Whose tissue it is: one patient's regions never both train and validate. Unnamed: each slide is a patient.
    """

    label: Annotated[ClassName, {"label": "Class"}] = ClassName("")
    patient: Annotated[str, {"label": "Patient", "placeholder": "the slide's own"}] = ""


def read_memory(text: str) -> Memory:
    """Return an amount of memory as it was written.

    Raises
    ------
    MemoryBudgetError
        When it is none.
    """
    if text:
        from streamview.streaming.memory import parse_bytes

        parse_bytes(text)
    return Memory(text)


def command_options(request: DataclassInstance, usual: DataclassInstance) -> list[str]:
    """Return the options of a command line for what of a request is not as usual: a field ``batch_size`` is ``--batch-size VALUE``."""
    words: list[str] = []
    for field in fields(usual):
        value: Any = getattr(request, field.name)
        if value == getattr(usual, field.name):
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words
