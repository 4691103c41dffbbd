"""The DICOM slide that exports refer to: whose identities they carry, and where its pixels lie in its frame of reference."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamview.errors import StreamviewError
from streamview.results import Saliency
from streamview.slides import open_slide

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Source", "as_stated", "read_source"]

_REMEDY = "DICOM files carry the identities of a DICOM slide, which are never invented: leave out the format dicom"
_FRAME = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageOrientationSlide")
_MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")


@contextmanager
def as_stated() -> Iterator[None]:
    """Let values of the slide that break the standard stay as they are, without the warnings that pydicom gives of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Level 0 of a DICOM slide.

    Parameters
    ----------
    header
        Its instance without pixels. What the standard lets be empty is empty where the file lacks it, and a total pixel matrix without an
        origin, which the standard requires, begins at that of the frame of reference.
    identity
        `Slide.identity` of the slide.
    spacing
        ``(y, x)`` mm per level-0 pixel, as the file states; an mpp that the user gave does not change it.
    """

    header: Dataset
    identity: str
    spacing: tuple[float, float]

    def positions(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert level-0 positions ``(y, x)``, float64 (n, 2), to the frame of reference, ``(x, y, z)`` in mm, float64 (n, 3).

        Pixel k of level 0 has its centre at k, and that of the first pixel is the total pixel matrix's origin (PS3.3, C.8.12.14).
        """
        (origin,) = self.header.TotalPixelMatrixOriginSequence
        offset = [float(origin.get(f"{axis}OffsetInSlideCoordinateSystem") or 0) for axis in "XYZ"]
        along_row, along_column = np.array(self.header.ImageOrientationSlide, np.float64).reshape(2, 3)
        y, x = (points * self.spacing).T
        return np.asarray(offset + x[:, None] * along_row + y[:, None] * along_column)

    def check(self, saliency: Saliency) -> None:
        """Refuse maps of another slide.

        Raises
        ------
        StreamviewError
            Naming the slide.
        """
        if saliency.prediction.identity.source != self.identity:
            raise StreamviewError(
                f"{saliency.prediction.slide_name}: the maps explain another slide; give the DICOM slide that they explain"
            )


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read what exports need of a DICOM slide; pixels, label and macro image are not read.

    Parameters
    ----------
    path
        Any file of the slide.

    Raises
    ------
    StreamviewError
        If highdicom is not installed, the slide is not DICOM, or it lacks its study, series, frame of reference or pixel size.
    SlideError
        If the slide cannot be opened.
    """
    path = Path(path)
    with open_slide(path) as slide:
        if slide.properties.get("openslide.vendor") != "dicom":
            raise StreamviewError(f"{path.name}: is not a DICOM slide ({slide.reader}); {_REMEDY}")
        identity, uid = slide.identity, slide.properties["dicom.SOPInstanceUID"]
    header = _read_header(path, uid)
    lacking = [name for name in _FRAME if not header.get(name)]
    groups = header.get("SharedFunctionalGroupsSequence") or [{}]
    measures = groups[0].get("PixelMeasuresSequence") or [{}]
    spacing = measures[0].get("PixelSpacing")
    lacking += [] if spacing else ["PixelSpacing"]
    if lacking:
        raise StreamviewError(f"{path.name}: has no {', '.join(lacking)}, which its DICOM exports must share; leave out the format dicom")
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)
    if not header.get("TotalPixelMatrixOriginSequence"):
        header.TotalPixelMatrixOriginSequence = [_origin()]
    return Source(header, identity, (float(spacing[0]), float(spacing[1])))


def _origin() -> Dataset:
    from pydicom.dataset import Dataset

    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    return origin


def _read_header(path: Path, uid: str) -> Dataset:
    """The instance of a UID: the file itself, or one beside it."""
    try:
        import highdicom  # noqa: F401
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ModuleNotFoundError as error:
        raise StreamviewError(f"DICOM export needs {error.name}: pip install 'streamview[dicom]'") from None
    with as_stated():
        for candidate in (path, *sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)):
            try:
                if dcmread(candidate, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).get("SOPInstanceUID") == uid:
                    header = dcmread(candidate, stop_before_pixels=True)
                    header.pop("PerFrameFunctionalGroupsSequence", None)  # of a sparse slide, an item a tile
                    header.decode()
                    return header
            except InvalidDicomError:
                continue
    raise StreamviewError(f"{path}: the file of its level 0 ({uid}) is not beside it; put the files of the slide in one folder")
