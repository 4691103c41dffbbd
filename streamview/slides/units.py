"""Lengths as files state them: units by any usual spelling, and numbers with a decimal comma."""

from __future__ import annotations

import math
import unicodedata

__all__ = ["micrometres", "number"]

# (names, abbreviation, in metres) of the prefixes of OME and OME-Zarr
_PREFIXES = (
    ("yotta", "Y", 1e24), ("zetta", "Z", 1e21), ("exa", "E", 1e18), ("peta", "P", 1e15), ("tera", "T", 1e12), ("giga", "G", 1e9),
    ("mega", "M", 1e6), ("kilo", "k", 1e3), ("hecto", "h", 1e2), ("deca", "da", 1e1), ("", "", 1.0), ("deci", "d", 1e-1),
    ("centi", "c", 1e-2), ("milli", "m", 1e-3), ("micro", "\N{GREEK SMALL LETTER MU}", 1e-6), ("micro", "u", 1e-6), ("nano", "n", 1e-9),
    ("pico", "p", 1e-12), ("femto", "f", 1e-15), ("atto", "a", 1e-18), ("zepto", "z", 1e-21), ("yocto", "y", 1e-24),
)  # fmt: skip
_OTHERS = (
    (("Å", "angstrom", "ångström", "ångstrom", "angström"), 1e-10),
    (("micron", "mu", "\N{GREEK SMALL LETTER MU}", "mcm"), 1e-6),
    (("thou", "mil"), 25.4e-6),
    (("li", "line"), 0.0254 / 12),
    (("in", "inch", "inche", '"'), 0.0254),
    (("ft", "foot", "feet"), 0.3048),
    (("yd", "yard"), 0.9144),
    (("mi", "mile"), 1609.344),
    (("pt", "point"), 0.0254 / 72),
    (("ua", "au"), 149597870700.0),
    (("ly",), 9460730472580800.0),
    (("pc", "parsec"), 3.0856775814913673e16),
)
_UNITS = {
    **{f"{name}{metre}": factor for name, _, factor in _PREFIXES for metre in ("meter", "metre")},
    **{f"{symbol}m": factor for _, symbol, factor in _PREFIXES},
    **{unicodedata.normalize("NFKC", name): factor for names, factor in _OTHERS for name in names},
}
_FOLDED = {name.casefold(): factor for name, factor in reversed(_UNITS.items())}  # of two that differ in case alone, the shorter unit last
_FOLDED |= {"mm": 1e-3, "pm": 1e-12}  # MM is no megametre


def micrometres(unit: str) -> float | None:
    """Micrometres in a unit of length; None when it is not known.

    Units of the OME schema and of OME-Zarr, abbreviated or written out, singular or plural, in any case (in that of the schema where case
    tells two apart), with either code point of µ and Å.
    """
    text = unicodedata.normalize("NFKC", unit.replace("Â", "")).strip().strip(".'").strip()  # Â: UTF-8 taken for Latin-1
    for ending in ("/px", "/pixel", " per pixel"):
        text = text.removesuffix(ending).strip()
    for spelling, known in ((text, _UNITS), (text.casefold(), _FOLDED)):
        for name in (spelling, spelling.removesuffix("s")):
            if name and name in known:
                return known[name] * 1e6
    return None


def number(value: object) -> float:
    """A number of a file, also as text with a decimal comma; NaN when it is none."""
    text = str(value).strip()
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return math.nan
