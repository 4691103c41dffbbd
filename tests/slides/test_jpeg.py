"""Strict decoding, compared with libjpeg itself and with OpenSlide, which takes libjpeg's warnings for errors."""

import random
from io import BytesIO

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streamview.slides.jpeg import decode_jpeg

SIDE = 128


def tissue(seed=0):
    """Smooth, with some grain, as tissue is."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 230, (SIDE // 16, SIDE // 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return smooth + rng.integers(0, 8, smooth.shape, np.uint8)


def encode(pixels, **options):
    return imagecodecs.jpeg8_encode(pixels, level=80, **options)


def decode(data):
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    decode_jpeg(data, out)
    return out


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize("pixels", [tissue(), np.full((SIDE, SIDE, 3), 243, np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)])
def test_whole_streams_are_as_libjpeg_has_them(pixels, subsampling):
    data = encode(pixels, subsampling=subsampling)
    assert np.array_equal(decode(data), imagecodecs.jpeg8_decode(data))
    assert np.array_equal(decode(data + b"\0\0\xff"), imagecodecs.jpeg8_decode(data)), "padding is no damage"


def test_progressive_streams_are_decoded():
    file = BytesIO()
    Image.fromarray(tissue()).save(file, "jpeg", progressive=True)
    assert np.array_equal(decode(file.getvalue()), imagecodecs.jpeg8_decode(file.getvalue()))


def test_streams_with_restarts_are_decoded_and_their_gaps_found():
    file = BytesIO()
    Image.fromarray(tissue()).save(file, "jpeg", restart_marker_blocks=8)
    data = file.getvalue()
    assert np.array_equal(decode(data), imagecodecs.jpeg8_decode(data))
    gap = data.index(b"\xff\xd1")
    with pytest.raises(ValueError, match="end before the picture does"):
        decode(data[: gap - 60] + data[gap:])


@given(st.integers(0, 3), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_cut_streams_are_refused_also_where_an_end_was_put_behind(seed, share):
    data = encode(tissue(seed))
    scan = data.index(b"\xff\xda") + 14
    cut = data[: scan + int((len(data) - 2 - scan) * share)].rstrip(b"\xff")
    for damaged in (cut, cut + b"\xff\xd9", cut + bytes(len(data) - len(cut))):
        with pytest.raises((ValueError, RuntimeError)):
            decode(damaged)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\0" * 100, b"\xff\xd8" + b"\xff" * 50, b"\xff\xd8\xff\xda\0\0"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises((ValueError, RuntimeError)):
        decode(data)


def test_a_picture_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        decode(encode(tissue()[:64]))


def test_flipped_bits_are_refused_where_openslide_refuses_them_and_else_read_alike_but_for_the_last_block(tmp_path):
    path, rng, stream = tmp_path / "a.svs", random.Random(5), BytesIO()
    Image.fromarray(tissue()).save(stream, "jpeg", quality=80)
    described = f"Aperio Image Library v11.2.1\r\n{SIDE}x{SIDE} [0,0 {SIDE}x{SIDE}] ({SIDE}x{SIDE}) JPEG/RGB Q=80|AppMag = 20|MPP = 0.5"
    options = {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg", "description": described, "metadata": None}
    shape = (SIDE, SIDE, 3)
    tifffile.imwrite(path, iter([stream.getvalue()]), shape=shape, dtype=np.uint8, tile=(SIDE, SIDE), **options)
    whole = path.read_bytes()
    offset, count = whole.index(stream.getvalue()), len(stream.getvalue())
    scan = whole.index(b"\xff\xda", offset) + 14
    refused = missed = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(scan, offset + count - 2)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        data = bytes(damaged[offset : offset + count])
        try:
            pixels = decode(data)
        except (ValueError, RuntimeError):
            pixels = None
        try:
            with openslide.OpenSlide(path) as slide:
                expected = np.asarray(slide.read_region((0, 0), 0, (SIDE, SIDE)))[..., :3]
        except openslide.OpenSlideError:
            refused += 1
            if pixels is not None:  # the data end within the last block: other bits behind them change nothing else
                missed += 1
                changed = np.argwhere(pixels != imagecodecs.jpeg8_decode(data[:-2] + b"\x55" * 64 + data[-2:]))
                assert (changed[:, :2] >= SIDE - 24).all()
        else:
            assert np.array_equal(pixels, expected)
    assert 5 < refused < 195
    assert missed < refused / 2
