"""The `Slide` protocol, and functions that all backends share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from streamview.errors import RegionError, SlideError
from streamview.geometry import Region, as_region
from streamview.slides.notebook import NotebookSlide
from streamview.slides.units import number

__all__ = ["WHITE", "Level", "Slide", "SlideBase", "check_region", "composite", "given_mpp", "output", "positive_mpp", "shape_levels"]

WHITE = (255, 255, 255)
_FINEST, _COARSEST, _OBLONG = 0.05, 20, 4  # um/px of scans, and how much longer than wide a pixel may be
_INCH = 25400.0  # um
_PRINT_DPI = (
    72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 240, 250, 300, 350, 360, 400, 450, 480, 500, 600, 720, 800, 900, 1000, 1200, 1440, 1800,
    2400, 2880, 3600, 4800, 5760, 7200, 9600,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a slide.

    Parameters
    ----------
    shape
        Height and width in pixels of this level.
    downsample
        Level-0 pixels per pixel of this level, (y, x): what the file states (OME-Zarr's scales), else the true ratio of the
        shapes; never rounded. (1.0, 1.0) for level 0.
    tile
        Height and width in pixels of the pieces it is stored in; None when it has none or they are unknown.
    compression
        Of the pieces, such as "jpeg", "jpeg 2000", "zstd", "none"; empty when unknown.
    """

    shape: tuple[int, int]
    downsample: tuple[float, float]
    tile: tuple[int, int] | None = None
    compression: str = ""


@runtime_checkable
class Slide(Protocol):
    """A source of RGB pixels at one or more resolutions; a context manager, safe to read from several threads.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     print(isinstance(slide, streamview.Slide), slide.shape, slide.mpp, len(slide.levels))
    True (512, 768) (0.5, 0.5) 1
    """

    @property
    def name(self) -> str:
        """File name without its folder."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per level-0 pixel, (y, x); None when unknown."""

    @property
    def mpp_source(self) -> str:
        """Where `mpp` comes from, such as "aperio.MPP"; begins with "unknown" when it is None."""

    @property
    def stated_mpp(self) -> tuple[float, float] | None:
        """The file's own mpp, (y, x), if the user has overridden it; None if `mpp` is the file's or the file states none."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Resolutions, finest first."""

    @property
    def background(self) -> tuple[int, int, int]:
        """RGB of glass: as the slide states, else white."""

    @property
    def identity(self) -> str:
        """Hex digest of the pixels' source, independent of the file's name and folder."""

    @property
    def reader(self) -> str:
        """The reader of the file, and why it is used."""

    @property
    def pixel_source(self) -> str:
        """How pixels are decoded, as far as it can change them: reader, channel, kind of transparency; "tiff;channel=0".

        Stable across versions and machines; part of a result's identity.
        """

    @property
    def properties(self) -> Mapping[str, str]:
        """The file's metadata by key, such as "aperio.AppMag"; may name people: see `streamview.slides.properties`."""

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of the pictures beside the scan, such as "label" and "macro"; they are never read."""

    @property
    def icc_profile(self) -> bytes | None:
        """The stored colour profile; it is not applied to pixels."""

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Return uint8 (height, width, 3) RGB, transparent pixels composited on `background`.

        Parameters
        ----------
        region
            In pixels of its level.
        out
            Array to write to and return, uint8 (height, width, 3), each row contiguous; default a new C-contiguous one. After an
            error its content is undefined.

        Raises
        ------
        RegionError
            When the region is not inside its level.
        SlideError
            When a part of the file cannot be read or decoded.
        ValueError
            When `out` is of another shape or type, or its rows are not contiguous.
        """

    def close(self) -> None:
        """Release the file; reading afterwards is an error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class SlideBase(NotebookSlide):
    """The facts about a slide, for backends to inherit; attributes as in `Slide`."""

    reader = "memory"
    pixel_source = "memory"
    stated_mpp: tuple[float, float] | None = None
    properties: Mapping[str, str] = MappingProxyType({})
    associated: tuple[str, ...] = ()
    icc_profile: bytes | None = None
    opened: tuple[str, int | str | None] | None = None  # path or URL, and channel, of a slide that can be opened again

    def __init__(
        self,
        name: str,
        levels: tuple[Level, ...],
        mpp: tuple[tuple[float, float] | None, str],
        identity: str,
        background: tuple[int, int, int] = WHITE,
    ) -> None:
        self.name, self.levels, self.identity, self.background = name, levels, identity, background
        self.shape = levels[0].shape
        self.mpp, self.mpp_source = mpp

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and settings: another process reopens the file."""
        from streamview.slides import open_slide

        if self.opened is None:
            raise TypeError(f"{self.name}: only slides that open_slide opened can be pickled")
        return open_slide, (self.opened[0], None, self.opened[1])

    def close(self) -> None:
        """Nothing to release, unless a backend says so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.shape[1]} x {self.shape[0]} px, {len(self.levels)} levels, mpp {self.mpp}>"


def shape_levels(shapes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels whose downsample is the ratio of their shapes to the first, (y, x)."""
    (height, width) = shapes[0]
    return tuple(Level((h, w), (height / h, width / w)) for h, w in shapes)


def check_region(name: str, levels: tuple[Level, ...], region: Region) -> None:
    """Refuse a region that is not inside its level.

    Raises
    ------
    RegionError
        Naming the region, the level's size and the remedy.
    """
    region = as_region(region)
    if region.level >= len(levels):
        raise RegionError(f"{name}: no level {region.level}; it has levels 0 to {len(levels) - 1}")
    height, width = levels[region.level].shape
    if not region.inside((height, width)):
        raise RegionError(
            f"{name}: region {region} (X,Y,WIDTH,HEIGHT) lies outside level {region.level},"
            f" which is {width} x {height} px; give a region inside it"
        )


def output(region: Region, out: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """Return the array for a read: the caller's, or a new one.

    Raises
    ------
    ValueError
        If the caller's is not uint8 (height, width, 3) with contiguous rows, or is read-only.
    """
    shape = (*region.shape, 3)
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8 or out.strides[1:] != (3, 1) or not out.flags.writeable:
        found = f"{out.dtype} {out.shape} of strides {out.strides}"
        raise ValueError(f"out is {found}: expected writeable uint8 {shape} with contiguous rows, strides (any, 3, 1)")
    return out


def positive_mpp(y: object, x: object, source: str, *, measured: bool = False) -> tuple[tuple[float, float] | None, str]:
    """Convert a file's values (numbers, text or None) to an mpp (y, x) and its source, or None and why it is unknown.

    If one of the two is missing, pixels are taken as square. Files often contain print or screen resolutions, wrong units or
    placeholders: values that are implausible for a scan are rejected, unless they are known to be `measured`.
    """
    if y is None and x is None:
        return None, "unknown"
    stated = [number(x if y is None else y), number(y if x is None else x)]
    if not all(math.isfinite(value) and value > 0 for value in stated):
        return None, f"unknown ({source} states {y if x is None else x}, not a positive number)"
    mpp = stated[0], stated[1]
    if measured:
        return mpp, source
    dpi = next((dpi for dpi in _PRINT_DPI if all(abs(value * dpi / _INCH - 1) < 1e-4 for value in mpp)), None)
    across = " across, ".join(dict.fromkeys(f"{value:.4g}" for value in reversed(mpp)))
    found = f"{source} states {across}{' down' if 'across' in across else ''} um/px"
    if dpi is not None:
        return None, f"unknown ({found}, {dpi} dpi: a resolution of print, no measurement; state the slide's with --mpp)"
    if min(mpp) < _FINEST * (1 - 1e-6) or max(mpp) > _COARSEST * (1 + 1e-6) or max(mpp) > _OBLONG * min(mpp):
        expected = f"expected {_FINEST} to {_COARSEST} and near-square pixels of a scan"
        return None, f"unknown ({found}, {expected}; state the slide's with --mpp)"
    return mpp, source


def given_mpp(mpp: float) -> tuple[tuple[float, float], str]:
    """Check an mpp given by the user.

    Raises
    ------
    SlideError
        If it is not a positive number.
    """
    checked, _ = positive_mpp(mpp, mpp, "", measured=True)
    if checked is None:
        raise SlideError(f"--mpp {mpp}: expected micrometres per pixel, a positive number such as 0.5")
    return checked, "given (--mpp)"


def composite(rgba: npt.NDArray[np.uint8], background: tuple[int, int, int], *, premultiplied: bool = False) -> npt.NDArray[np.uint8]:
    """Composite uint8 (H, W, 4), with straight or premultiplied alpha, on a background; returns C-contiguous uint8 (H, W, 3)."""
    rgb = np.ascontiguousarray(rgba[..., :3])
    clear = np.nonzero(rgba[..., 3] != 255)
    if len(clear[0]):
        pixels = rgba[clear].astype(np.uint32)
        alpha = pixels[:, 3:]
        colours = pixels[:, :3] * (255 if premultiplied else alpha)
        rgb[clear] = ((colours + np.asarray(background, np.uint32) * (255 - alpha) + 127) // 255).clip(max=255)
    return rgb
