"""One identity, one answer: whatever decides the pixels that a network sees is in the key."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.explain import predict
from streamview.inference.identity import identify
from streamview.networks import Model, load_model
from streamview.results import Identity, Prediction
from streamview.slides import Slide, as_slide, open_slide
from streamview.slides.pyramid import build_pyramid
from streamview.slides.slide import Level, SlideBase, composite, output
from tests.support.slides import SyntheticSlide

SIDE = 96
WHOLE = Region(0, 0, SIDE, SIDE)


class Virtual(SlideBase):
    """A file of two channels, a coarser level that is no mean of the finer one, and a transparent corner."""

    def __init__(self, file: int, mpp: float, channel: int, levels: int, background: int) -> None:
        shapes = ((SIDE, SIDE), (SIDE // 2, SIDE // 2))[:levels]
        level = tuple(Level(shape, (SIDE / shape[0], SIDE / shape[1])) for shape in shapes)
        glass = (background,) * 3
        super().__init__("virtual", level, ((mpp, mpp), "file"), f"file {file}", glass)
        self.pixel_source = f"memory;channel={channel}"
        self._pixels = [composite(pixels(file, channel, number), glass) for number in range(levels)]

    def read(self, region: Region, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        out = output(region, out)
        out[...] = self._pixels[region.level][region.y : region.y_stop, region.x : region.x_stop]
        return out


@cache
def pixels(file: int, channel: int, level: int) -> NDArray[np.uint8]:
    side = SIDE >> level
    rgba = np.random.default_rng([file, channel, level]).integers(0, 256, (side, side, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[: side // 3, : side // 3, 3] = 128
    return rgba


@dataclass(frozen=True)
class Asked:
    """What may decide an answer."""

    file: int = 0
    stated: float = 0.5
    given: float | None = None
    channel: int = 0
    levels: int = 2
    background: int = 255
    region: Region = WHOLE
    pad_to: int | None = None
    precision: Any = "float32"
    weights: int = 0
    mean: float = 0.5

    def slide(self) -> Slide:
        return as_slide(Virtual(self.file, self.stated, self.channel, self.levels, self.background), self.given)


ASKED = st.builds(
    Asked,
    file=st.integers(0, 1),
    stated=st.sampled_from([0.25, 0.499, 0.5, 1.0]),
    given=st.sampled_from([None, 0.25, 0.499, 0.5]),
    channel=st.integers(0, 1),
    levels=st.integers(1, 2),
    background=st.sampled_from([240, 255]),
    region=st.sampled_from([Region(0, 0, SIDE, SIDE), Region(0, 0, 64, 80), Region(8, 16, 64, 80)]),
    pad_to=st.sampled_from([None, 128, 160]),
    precision=st.sampled_from(["float32", "bf16"]),
    weights=st.integers(0, 1),
    mean=st.sampled_from([0.5, 0.6]),
)


@cache
def model(weights: int, mean: float) -> Model:
    """A network for 1 um/px; its digests are those that loading would give."""
    torch.manual_seed(weights)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    card = replace(load_model("demo").card, spacing_um_px=1.0, mean=(mean,) * 3, sha256=f"card {mean}", stain=None, input_size=None)
    return Model(module.requires_grad_(False), card, f"weights {weights}")


@cache
def answer(asked: Asked) -> Prediction:
    network, slide = model(asked.weights, asked.mean), asked.slide()
    return predict(network, slide, asked.region, pad_to=asked.pad_to, compute=Compute(tile=(64, 64), precision=asked.precision))


BASE = Asked()


@settings(max_examples=40, deadline=None)
@given(first=ASKED, second=ASKED)
@example(BASE, replace(BASE, given=0.25))
@example(replace(BASE, stated=0.499), replace(BASE, stated=0.499, given=0.25))
@example(BASE, replace(BASE, given=0.5))
@example(BASE, replace(BASE, channel=1))
@example(BASE, replace(BASE, levels=1))
@example(BASE, replace(BASE, background=240))
@example(BASE, replace(BASE, pad_to=128))
@example(replace(BASE, pad_to=160), replace(BASE, pad_to=128))
@example(BASE, replace(BASE, precision="bf16"))
@example(BASE, replace(BASE, region=Region(8, 16, 64, 80)))
def test_two_runs_with_one_key_have_equal_answers(first: Asked, second: Asked) -> None:
    one, two = answer(first), answer(second)
    if one.identity.key == two.identity.key:
        np.testing.assert_array_equal(one.logits, two.logits)
    if not np.array_equal(one.logits, two.logits):
        assert one.identity.key != two.identity.key


@settings(max_examples=12, deadline=None)
@given(asked=ASKED)
def test_the_identity_is_known_before_the_run_and_survives_json(asked: Asked) -> None:
    network = model(asked.weights, asked.mean)
    identity = identify(network, asked.slide(), asked.region, precision=asked.precision, pad_to=asked.pad_to)
    assert identity == answer(asked).identity
    again = Identity.from_dict(json.loads(json.dumps(identity.to_dict())))
    assert (again, again.key, again.policy) == (identity, identity.key, identity.policy)


@settings(max_examples=12, deadline=None)
@given(asked=ASKED, region=st.sampled_from([Region(0, 0, 64, 80), Region(8, 16, 64, 80)]))
def test_a_policy_is_everything_but_the_region(asked: Asked, region: Region) -> None:
    assume(asked.region != region)
    one, two = answer(asked).identity, answer(replace(asked, region=region)).identity
    assert one.key != two.key
    assert one.policy == two.policy


FULL = Identity(
    "a", "b", "c", Region(0, 0, 4, 4), (0.5, 0.5), "float32", (8, 8), (0.25, 0.25), "given", "tiff", (255, 255, 255), (1.0, 1.0), 1
)
OTHERS: dict[str, object] = {
    "region": Region(0, 0, 4, 5),
    "mpp": (1.0, 1.0),
    "padded": (8, 9),
    "slide_mpp": (0.3, 0.3),
    "background": (254, 255, 255),
    "level": (2.0, 2.0),
    "sampling": 2,
}


@pytest.mark.parametrize("name", [field.name for field in fields(Identity)])
def test_every_field_is_in_the_key(name: str) -> None:
    assert replace(FULL, **{name: OTHERS.get(name, "other")}).key != FULL.key  # type: ignore[arg-type]


def test_records_of_earlier_versions_keep_their_keys() -> None:
    values = {
        "weights_sha256": "ab", "card_sha256": "cd", "source": "s", "region": {"y": 1, "x": 2, "height": 3, "width": 4, "level": 0},
        "mpp": [0.5, 0.5], "precision": "float32",
    }  # fmt: skip
    old = Identity.from_dict(values)
    assert old.sampling is None
    assert old.to_dict() == values
    assert old.key.startswith("d8f77dba0d0f76cb")


def test_the_mpp_given_is_part_of_the_identity(synthetic_slide: SyntheticSlide) -> None:
    network, region = load_model("demo"), Region(600, 300, 320, 320)
    with (
        open_slide(synthetic_slide.path) as plain,
        open_slide(synthetic_slide.path, 0.25) as finer,
        open_slide(synthetic_slide.path, 0.5) as same,
    ):
        answers = [predict(network, slide, region) for slide in (plain, finer, same)]
    assert [answer.identity.slide_mpp_source for answer in answers] == ["file", "given", "given"]
    assert not np.array_equal(answers[0].logits, answers[1].logits)
    assert np.array_equal(answers[0].logits, answers[2].logits)
    assert len({answer.identity.key for answer in answers}) == 3
    (said,) = [warning for warning in answers[1].warnings if "as given" in warning]
    assert said.startswith("The slide was read at 0.25 um/px, as given, but its file states 0.5: ")
    assert "a factor of 2" in said
    assert answers[0].warnings == answers[2].warnings == ()


def test_the_mpp_given_for_a_pyramid_is_compared_with_its_own(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    with open_slide(synthetic_slide.path) as slide:
        build_pyramid(slide, tmp_path / "a.ome.zarr").close()
    with open_slide(tmp_path / "a.ome.zarr", 1.0) as given, open_slide(tmp_path / "a.ome.zarr") as plain:
        assert (given.stated_mpp, plain.stated_mpp) == ((0.5, 0.5), None)
        assert as_slide(given, 2.0).stated_mpp == (0.5, 0.5)
