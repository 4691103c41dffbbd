import numpy as np
import pytest
import tifffile

from streamview.slides import as_slide, open_slide
from streamview.slides.properties import all_properties, hidden_properties, safe_properties

# Keys as vendors write them, of what must never travel.
PRIVATE = [
    "aperio.Filename", "aperio.User", "aperio.Date", "aperio.Time", "aperio.ScanScope ID", "aperio.ImageID", "aperio.Title",
    "aperio.Barcode", "hamamatsu.NDP.S/N", "hamamatsu.Created", "hamamatsu.Reference", "mirax.GENERAL.SLIDE_NAME",
    "mirax.GENERAL.PROJECT_NAME", "leica.barcode", "leica.creation-date", "leica.device-version", "ventana.BuildDate",
    "ventana.UserName", "ventana.Barcode1D", "philips.PIM_DP_UFS_BARCODE", "philips.DICOM_OPERATOR_NAME",
    "philips.DICOM_ACQUISITION_DATETIME", "dicom.PatientName", "dicom.PatientID", "dicom.PatientBirthDate", "dicom.AccessionNumber",
    "dicom.StudyDate", "dicom.ContainerIdentifier", "dicom.DeviceSerialNumber",
    "dicom.ContributingEquipmentSequence[0].InstitutionName", "dicom.SpecimenDescriptionSequence[0].SpecimenIdentifier",
    "tiff.ImageDescription", "tiff.DateTime", "tiff.Artist", "tiff.HostComputer", "tiff.Copyright", "openslide.comment",
    "openslide.barcode", "ome.Image.Name", "ome.Experimenter.LastName", "ome.AcquisitionDate", "ome.Microscope.SerialNumber",
    "aperio.MPP\n", "xaperio.MPP", "aperio.MPPx",
]  # fmt: skip
SAFE = {"aperio.AppMag": "20", "aperio.MPP": "0.5", "openslide.vendor": "aperio", "tiff.Make": "Hamamatsu", "dicom.Manufacturer": "Leica"}


def test_only_what_is_listed_travels():
    slide = as_slide(np.zeros((4, 4, 3), np.uint8))
    slide.properties = SAFE | dict.fromkeys(PRIVATE, "Jane Doe") | {"openslide.level[0].width": "4", "openslide.level-count": "1"}
    assert safe_properties(slide) == SAFE
    assert set(hidden_properties(slide)) == set(PRIVATE)
    assert all_properties(slide) == slide.properties


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "boxes_0.dcm", "test3-DAPI-2-387.ndpi", "OS-1-detail.ome.tif"])
def test_nothing_of_people_dates_or_places_travels_from_real_files(shared_data, name):
    with open_slide(shared_data / "slides" / name) as slide:
        safe, hidden = safe_properties(slide), hidden_properties(slide)
    assert safe
    words = ("date", "time", "user", "name", "patient", "id", "s/n", "serial", "institution", "comment", "description")
    named = [key for key in safe if any(word == part for part in key.lower().replace("[", ".").split(".") for word in words)]
    assert not named
    assert not {"CMU-1", "CPAPERIOCS", "b414003d-95c6-48b0-9369-8010ed517ba7", "SLIDE_1", "PixelMed"} & set(safe.values())
    assert hidden


def test_pictures_beside_the_scan_are_named_and_the_profile_is_kept(shared_data):
    with open_slide(shared_data / "slides/CMU-1-Small-Region.svs") as slide:
        assert slide.associated == ("label", "macro", "thumbnail")
        assert slide.icc_profile is None
    with open_slide(shared_data / "slides/boxes.tiff") as slide:
        assert slide.icc_profile is not None
        assert len(slide.icc_profile) == 588
        assert slide.icc_profile[36:40] == b"acsp"


def test_a_tiff_says_what_its_tags_say(tmp_path):
    path = tmp_path / "a.tif"
    tags = [("Make", 2, 0, "Maker", True), ("Model", 2, 0, "One", True), ("Artist", 2, 0, "Jane Doe", True)]
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", extratags=tags, metadata=None, iccprofile=b"profile")
    with open_slide(path) as slide:
        assert safe_properties(slide) == {"tiff.Make": "Maker", "tiff.Model": "One"}
        assert "tiff.Artist" in hidden_properties(slide)
        assert slide.icc_profile == b"profile"
