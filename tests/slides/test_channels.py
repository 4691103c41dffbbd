import numpy as np
import pytest
import tifffile

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides import open_slide

NAMES = ["DAPI", "FITC", "Cy5"]


def planes(dtype=np.uint8, count=3):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, 150, 200), dtype, endpoint=True)


def write(path, values, bits=None, names=NAMES):
    metadata = {"axes": "CYX", "Channel": {"Name": names}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    if bits is not None:
        metadata["SignificantBits"] = bits
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(values, subifds=1, tile=(64, 64), photometric="minisblack", metadata=metadata)
        writer.write(values[:, ::2, ::2], subfiletype=1, tile=(64, 64), photometric="minisblack", metadata=None)
    return path


def test_without_a_choice_what_was_found_is_named(tmp_path):
    path = write(tmp_path / "a.ome.tif", planes(np.uint16))
    with pytest.raises(SlideError, match=r"3 channels of 16 bit: DAPI, FITC, Cy5 .*expected 8-bit RGB.*--channel"):
        open_slide(path)


@pytest.mark.parametrize("channel", [1, "1", "FITC"])
def test_a_channel_of_8_bits_is_read_as_it_is_at_every_level(tmp_path, channel):
    values = planes()
    with open_slide(write(tmp_path / "a.ome.tif", values), channel=channel) as slide:
        assert slide.reader == "its tiles, read directly: channel 1 (FITC) as grey"
        assert slide.mpp == (0.5, 0.5)
        assert np.array_equal(slide.read(Region(0, 0, 150, 200)), np.repeat(values[1, :, :, None], 3, 2))
        assert np.array_equal(slide.read(Region(5, 7, 60, 80, 1)), np.repeat(values[1, 10:130:2, 14:174:2, None], 3, 2))


@pytest.mark.parametrize(("bits", "high"), [(None, 65535), (12, 4095)])
def test_16_bits_are_scaled_from_a_range_that_is_named(tmp_path, bits, high):
    values = (planes(np.uint16).astype(np.uint32) * high // 65535).astype(np.uint16)
    with open_slide(write(tmp_path / "a.ome.tif", values, bits), channel="DAPI") as slide:
        assert slide.reader.endswith(f"channel 0 (DAPI) as grey, 0 to {high} of its 16 bit shown as 0 to 255")
        expected = np.floor(values[0].astype(float) * 255 / high + 0.5)
        assert np.abs(slide.read(Region(0, 0, 150, 200))[..., 1] - expected).max() <= 1


def test_channels_of_one_file_are_different_sources(tmp_path):
    path = write(tmp_path / "a.ome.tif", planes())
    with open_slide(path, channel=0) as first, open_slide(path, channel=1) as second:
        assert first.identity != second.identity


def test_unknown_channels_and_kinds_are_refused(tmp_path, synthetic_slide):
    path = write(tmp_path / "a.ome.tif", planes(), names=["DAPI", "DAPI", "Cy5"])
    for channel in (3, -1, "9", "TRITC", "DAPI"):
        with pytest.raises(SlideError, match=rf"channel=\s?{channel} is none of them; give a number from 0 to 2"):
            open_slide(path, channel=channel)
    with pytest.raises(SlideError, match="leave out channel="):
        open_slide(synthetic_slide.path, channel=0)
    floats = write(tmp_path / "f.ome.tif", planes().astype(np.float32))
    with pytest.raises(SlideError, match=r"3 channels of float32.*expected channels of 8 or 16 bit"):
        open_slide(floats, channel=0)
