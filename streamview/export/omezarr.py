"""Write all maps of a result as a self-contained OME-Zarr, with the display recipe for viewers."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import zarr

from streamview.errors import StreamviewError
from streamview.files import atomic
from streamview.progress import Progress, Report
from streamview.results import Method, Saliency, save_saliency
from streamview.results.display import Recipe

__all__ = ["stored_recipe", "write_ome_zarr"]

_KEY = "streamview_display"


def write_ome_zarr(saliency: Saliency, recipe: Recipe, path: str | os.PathLike[str], report: Report | None = None) -> Path:
    """Write all maps of a result, raw float32, and a display recipe.

    Parameters
    ----------
    saliency
        In memory, or opened from disk.
    recipe
        The recipe with which viewers open it.
    path
        The folder, ``NAME.ome.zarr``; written completely or not at all.
    report
        Called after every file of a stored result; may raise `Cancelled`.

    Raises
    ------
    StreamviewError
        If the name has another suffix, the disk is full, or the path cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(".ome.zarr"):
        raise StreamviewError(f"{path.name}: expected a name that ends in .ome.zarr")
    with atomic.replacing(path) as temporary:
        if saliency.path is None:
            save_saliency(saliency, temporary)
        else:
            progress = Progress("OME-Zarr", sum(each.is_file() for each in saliency.path.rglob("*")), report)

            def copy(source: str, target: str) -> str:
                progress.advance()
                return shutil.copy2(source, target)

            shutil.copytree(saliency.path, temporary, copy_function=copy)
        zarr.open_group(temporary, mode="r+").attrs[_KEY] = asdict(recipe) | {"colours": list(recipe.colours)}
    return path


def stored_recipe(path: str | os.PathLike[str]) -> Recipe | None:
    """Return the display recipe of a stored result; None if it has none in the format of this version."""
    try:
        values: Any = zarr.open_group(Path(path), mode="r").attrs.get(_KEY)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Recipe)} or values["method"] not in get_args(Method):
        return None
    numbers = ("blur_um", "cap_percentile", "threshold", "floor_percentile", "opacity", "lacking")
    valid = all(isinstance(values[name], int | float) and 0 <= values[name] < 1e6 for name in numbers)
    valid = valid and max(values["cap_percentile"], values["floor_percentile"]) <= 100 and max(values["threshold"], values["opacity"]) <= 1
    valid = valid and all(isinstance(values[name], bool) for name in ("outline", "heat", "glass"))
    valid = valid and (values["cap"] is None or (isinstance(values["cap"], int | float) and 0 < values["cap"] < float("inf")))
    palette = values["colours"]
    valid = valid and isinstance(palette, list) and len(palette) >= 2 and all(map(_is_colour, palette))
    return Recipe(**(values | {"colours": tuple(palette)})) if valid else None


def _is_colour(text: object) -> bool:
    return isinstance(text, str) and len(text) == 7 and text[0] == "#" and all(digit in "0123456789abcdef" for digit in text[1:].lower())
