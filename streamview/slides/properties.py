"""What a slide says of itself, divided into what may travel with its pixels and what may name people or places.

The list names what may travel; everything else stays behind, whatever it is called.
"""

from __future__ import annotations

import re

from streamview.slides.slide import Slide

__all__ = ["all_properties", "hidden_properties", "safe_properties"]

# Optics, pixel size, colour and the make of the scanner. Serial numbers, dates, names of files, people and institutions are not here.
_SAFE = re.compile(
    r"openslide\.(vendor|objective-power|mpp-[xy]|background-color|bounds-(x|y|width|height))"
    r"|aperio\.(AppMag|MPP|ICC Profile|Filtered|Gamma|StripeWidth|OriginalWidth|OriginalHeight)"
    r"|hamamatsu\.(SourceLens|Product|Objective\.Lens\.Magnificant)"
    r"|leica\.(objective|numericalAperture|illumination-source|device-model)"
    r"|mirax\.GENERAL\.(OBJECTIVE_MAGNIFICATION|OBJECTIVE_NAME|CAMERA_TYPE)"
    r"|ventana\.(Magnification|ScannerModel|ScanRes|Gamma)"
    r"|philips\.(DICOM_MANUFACTURER|DICOM_PIXEL_SPACING|DICOM_LOSSY_IMAGE_COMPRESSION_(METHOD|RATIO))"
    r"|dicom\.(Modality|Manufacturer|ManufacturerModelName|PhotometricInterpretation|TransferSyntaxUID|LossyImageCompression(Method|Ratio)?"
    r"|OpticalPathSequence\[\d+\]\.(ObjectiveLensPower|ObjectiveLensNumericalAperture)"
    r"|SharedFunctionalGroupsSequence\[\d+\]\.PixelMeasuresSequence\[\d+\]\.PixelSpacing\[\d+\])"
    r"|ome\.(Pixels\.(PhysicalSize[XYZ](Unit)?|SignificantBits|Type)|Objective\.(NominalMagnification|LensNA|Immersion)"
    r"|(Microscope|Detector)\.(Manufacturer|Model))"
    r"|tiff\.(Make|Model|XResolution|YResolution|ResolutionUnit)"
)
# Of the file and its levels, not of what was scanned: neither kept nor worth hiding.
_STRUCTURE = re.compile(r"openslide\.(level-count|level\[\d+\]\..*|associated\..*|region\[\d+\]\..*|icc-size|quickhash-1)")


def all_properties(slide: Slide) -> dict[str, str]:
    """Everything the slide says of itself, also what may name people."""
    return dict(slide.properties)


def safe_properties(slide: Slide) -> dict[str, str]:
    """Properties that may travel with the pixels: optics, pixel size, vendor and model of the scanner."""
    return {key: value for key, value in slide.properties.items() if _SAFE.fullmatch(key)}


def hidden_properties(slide: Slide) -> tuple[str, ...]:
    """Keys, without values, of the properties that may not travel."""
    return tuple(key for key in slide.properties if not (_SAFE.fullmatch(key) or _STRUCTURE.fullmatch(key)))
