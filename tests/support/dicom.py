"""A DICOM whole slide image made on the spot, by pydicom alone: RGB, without compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

VL_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
ROTATED = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)  # rows run towards -y and columns towards -x, as in most scanners' files


def write_dicom_slide(
    folder: Path,
    pixels: NDArray[np.uint8],
    *,
    spacing: tuple[float, float] = (0.0005, 0.0005),
    offset: tuple[float, float] = (20.0, 40.0),
    orientation: tuple[float, ...] = ROTATED,
    levels: int = 1,
    tile: int = 128,
    sparse: bool = False,
) -> Path:
    """Write ``level-<n>.dcm``, each half the one before, and a label image, and return the path of level 0.

    `spacing` is ``(y, x)`` in mm, `offset` that of the first pixel's centre, ``(x, y)`` in mm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for level in range(levels):
        factor = 2**level
        _write(
            folder / f"level-{level}.dcm", pixels[::factor, ::factor], level, factor, spacing, offset, orientation, tile, "VOLUME", sparse
        )
    _write(folder / "label.dcm", np.full((64, 64, 3), 200, np.uint8), 90, 1, spacing, offset, orientation, 64, "LABEL", False)
    return folder / "level-0.dcm"


def _write(path, pixels, number, factor, spacing, offset, orientation, tile, flavour, sparse) -> None:  # type: ignore[no-untyped-def]
    height, width = pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    padded = np.zeros((down * tile, across * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    frames = padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2)
    one = Dataset()
    one.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE" if number in (0, 90) else "RESAMPLED"]
    one.SOPClassUID, one.SOPInstanceUID = VL_WSI, f"1.2.3.4.{number + 1}"
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    one.PyramidUID = "1.2.3.9"
    one.SpecificCharacterSet = "ISO_IR 100"
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Müller^Änne", "P1", "", ""
    one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber, one.ReferringPhysicianName = "20260102", "101112", "S1", "A1", ""
    one.ContentDate, one.ContentTime, one.AcquisitionDateTime = "20260102", "101112", "20260102101112"
    one.Modality, one.SeriesNumber, one.InstanceNumber = "SM", 1, number + 1
    one.Manufacturer, one.ManufacturerModelName, one.DeviceSerialNumber, one.SoftwareVersions = "maker", "model", "1", "1"
    one.PositionReferenceIndicator = "SLIDE_CORNER"
    one.Rows = one.Columns = tile
    one.TotalPixelMatrixRows, one.TotalPixelMatrixColumns, one.TotalPixelMatrixFocalPlanes = height, width, 1
    one.NumberOfFrames, one.NumberOfOpticalPaths = down * across, 1
    one.ImagedVolumeWidth, one.ImagedVolumeHeight, one.ImagedVolumeDepth = width * spacing[1] * factor, height * spacing[0] * factor, 1.0
    one.ImageOrientationSlide = list(orientation)
    origin = Dataset()
    centre = (factor - 1) / 2 * np.array([spacing[1] * np.array(orientation[:3]), spacing[0] * np.array(orientation[3:])]).sum(0)
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = (
        float(o + c) for o, c in zip(offset, centre, strict=False)
    )
    origin.ZOffsetInSlideCoordinateSystem = 0.0
    one.TotalPixelMatrixOriginSequence = [origin]
    one.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    if sparse:
        one.PerFrameFunctionalGroupsSequence = [_place(y, x) for y in range(0, down * tile, tile) for x in range(0, across * tile, tile)]
    organisation = Dataset()
    organisation.DimensionOrganizationUID = "1.2.3.5"
    one.DimensionOrganizationSequence = [organisation]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
    one.BitsAllocated = one.BitsStored = 8
    one.HighBit, one.PixelRepresentation = 7, 0
    one.BurnedInAnnotation, one.LossyImageCompression, one.VolumetricProperties = "NO", "00", "VOLUME"
    one.SpecimenLabelInImage = "YES" if flavour == "LABEL" else "NO"
    one.FocusMethod, one.ExtendedDepthOfField, one.AcquisitionContextSequence = "AUTO", "NO", []
    one.ContainerIdentifier, one.IssuerOfTheContainerIdentifierSequence = "C1", []
    one.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID, specimen.SpecimenPreparationSequence = "S1", "1.2.3.6", []
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    one.SpecimenDescriptionSequence = [specimen]
    optical, measures, kind, shared = Dataset(), Dataset(), Dataset(), Dataset()
    optical.OpticalPathIdentifier = "1"
    optical.IlluminationTypeCodeSequence = [_code("111744", "DCM", "Brightfield illumination")]
    optical.IlluminationColorCodeSequence = [_code("371251000", "SCT", "White")]
    one.OpticalPathSequence = [optical]
    measures.PixelSpacing, measures.SliceThickness = [spacing[0] * factor, spacing[1] * factor], 0.001
    kind.FrameType = one.ImageType
    shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = [measures], [kind]
    reference = Dataset()
    reference.OpticalPathIdentifier = "1"
    shared.OpticalPathIdentificationSequence = [reference]
    one.SharedFunctionalGroupsSequence = [shared]
    one.PixelData = frames.tobytes()
    one["PixelData"].VR = "OB"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(path, one, enforce_file_format=True)


def _place(y: int, x: int) -> Dataset:
    """Where a tile lies in the total pixel matrix; openers need no more."""
    frame, place = Dataset(), Dataset()
    place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = y + 1, x + 1
    frame.PlanePositionSlideSequence = [place]
    return frame


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
