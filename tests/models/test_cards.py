"""A WSInfer card is read unchanged; everything wrong in a card is refused by file, field, found and expected."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from streamview.errors import ModelError
from streamview.networks import load_card
from streamview.networks.cards import assumed_document, card_document, parse_card, read_document

# The layout of WSInfer's published breast tumour model.
WSINFER: dict[str, Any] = {
    "spec_version": "1.0",
    "architecture": "resnet34",
    "num_classes": 2,
    "class_names": ["Other", "Tumor"],
    "patch_size_pixels": 350,
    "spacing_um_px": 0.25,
    "transform": [
        {"name": "Resize", "arguments": {"size": 224}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": [0.7238, 0.5716, 0.6779], "std": [0.112, 0.1459, 0.1089]}},
    ],
}


def changed(path: str, value: object) -> dict[str, Any]:
    """Copy the card with one field, named like "transform.0.name", set; ... deletes it."""
    document: Any = copy.deepcopy(WSINFER)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = document
    for key in parents:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return document


def test_a_wsinfer_card_is_read_unchanged() -> None:
    card = parse_card(WSINFER, name="breast", file="config.json")
    assert (card.name, card.architecture, card.class_names) == ("breast", "resnet34", ("Other", "Tumor"))
    assert (card.patch_size_pixels, card.spacing_um_px, card.resize) == (350, 0.25, 224)
    assert card.mean == (0.7238, 0.5716, 0.6779)
    assert card.std == (0.112, 0.1459, 0.1089)
    assert (card.task, card.trained, card.licence, card.use) == ("class", True, None, "Research use only")


def test_the_networks_own_grid_is_coarser_where_patches_were_resized() -> None:
    card = parse_card(WSINFER, name="breast", file="config.json")
    assert card.mpp == pytest.approx(0.25 * 350 / 224)
    assert card.input_size == (224, 224)
    plain = parse_card(changed("transform.0", {"name": "ToTensor"}) | {"transform": [{"name": "ToTensor"}]}, name="x", file="f")
    assert (plain.mpp, plain.input_size) == (0.25, (350, 350))
    assert (plain.mean, plain.std) == ((0, 0, 0), (1, 1, 1))


def test_our_additions() -> None:
    additions = {
        "name": "n", "task": "multilabel", "trained": False, "licence": "MIT", "split": "by patient", "aggregation": "max",
        "calibration": "temperature 1.2", "use": "u", "input_size": [512, 4096],
    }  # fmt: skip
    card = parse_card({**WSINFER, "streamview": additions}, name="x", file="f")
    read = {key: getattr(card, key) for key in additions}
    assert read == additions | {"input_size": (512, 4096)}


def test_unknown_spacing_is_null_not_missing() -> None:
    document = {**WSINFER, "patch_size_pixels": None, "spacing_um_px": None, "transform": [{"name": "ToTensor"}]}
    card = parse_card(document, name="x", file="f")
    assert (card.mpp, card.input_size) == (None, None)


def test_the_hash_is_of_the_content_not_of_its_layout() -> None:
    shuffled = json.loads(json.dumps(dict(reversed(WSINFER.items())), indent=4))
    digest = parse_card(WSINFER, name="x", file="f").sha256
    assert parse_card(shuffled, name="y", file="g").sha256 == digest
    assert parse_card(changed("class_names", ["Other", "Tumour"]), name="x", file="f").sha256 != digest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec_version", "2.0", 'spec_version is "2.0"; expected "1.0"'),
        ("architecture", ..., "architecture is missing"),
        ("architecture", "", 'architecture is ""'),
        ("num_classes", 3, "num_classes is 3; expected 2, the number of class_names"),
        ("class_names", ["a", "a"], 'class_names is ["a", "a"]; expected a list of different texts'),
        ("class_names", [], "class_names is []"),
        ("class_names", "ab", 'class_names is "ab"'),
        ("patch_size_pixels", 0, "patch_size_pixels is 0; expected whole pixels above 0"),
        ("patch_size_pixels", 1.5, "patch_size_pixels is 1.5"),
        ("patch_size_pixels", None, "patch_size_pixels is null; expected the side that patches had before Resize"),
        ("spacing_um_px", ..., "spacing_um_px is missing; expected micrometres per pixel above 0, or null"),
        ("spacing_um_px", 0, "spacing_um_px is 0"),
        ("spacing_um_px", "0.5", 'spacing_um_px is "0.5"'),
        ("spacing_um_px", True, "spacing_um_px is true"),
        ("transform", {}, "transform is {}; expected a list"),
        ("transform", [], "transform is []; expected a list with the step ToTensor"),
        ("transform.0", "Resize", 'transform[0] is "Resize"; expected an object'),
        ("transform.0.name", "CenterCrop", 'transform[0].name is "CenterCrop"; expected one of Resize, ToTensor, Normalize'),
        ("transform.0.name", ["Resize"], 'transform[0].name is ["Resize"]'),
        ("transform.0.name", "ToTensor", "transform[0].arguments.size is 224; expected nothing under this name"),
        ("transform.0.arguments.size", [224, 200], "transform[0].arguments.size is [224, 200]; expected the side of a square"),
        ("transform.0.arguments.max_size", 300, "transform[0].arguments.max_size is 300; expected nothing under this name"),
        ("transform.2.arguments.mean", [0.5], "transform[2].arguments.mean is [0.5]; expected 3 numbers"),
        ("transform.2.arguments.std", [0.5, 0.5, 0], "transform[2].arguments.std is [0.5, 0.5, 0]; expected 3 numbers above 0"),
        ("transform.1", {"name": "Normalize", "arguments": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "Normalize after ToTensor"),
        ("streamview", [], "streamview is []; expected an object"),
        ("streamview.task", "segmentation", 'streamview.task is "segmentation"; expected class or multilabel or regression'),
        ("streamview.trained", "no", 'streamview.trained is "no"; expected true or false'),
        ("streamview.licence", 3, "streamview.licence is 3; expected a text"),
        ("streamview.input_size", [4096, 512], "streamview.input_size is [4096, 512]; expected [smallest, largest]"),
        ("streamview.weights", "../../w", 'streamview.weights is "../../w"; expected nothing under this name'),
    ],
)
def test_wrong_fields(path: str, value: object, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_card(changed(path, value), name="x", file="some/card.json")
    text = str(caught.value)
    assert text.startswith("some/card.json: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b'{"spacing_um_px": NaN}', "NaN is not JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "holds a JSON list; expected an object"),
        (None, "does not exist"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "card.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_document(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("stated", "read"), [("b", ("b",)), (["c", "a"], ("c", "a")), (None, ())])
def test_a_card_may_name_its_classes_of_interest(stated: object, read: tuple[str, ...]) -> None:
    document = assumed_document("net", ["a", "b", "c"])
    document["streamview"] = {} if stated is None else {"positive": stated}
    card = parse_card(document, name="net", file="card.json")
    assert card.positive == read
    assert parse_card(card_document(card), name="net", file="card.json").positive == read
    assert [load_card(name).positive for name in ("demo", "camelyon17", "imagenette")] == [("lesion",), ("metastasis",), ()]


@pytest.mark.parametrize("stated", ["d", [], ["a", "d"], ["a", "a"], 1, None])
def test_a_class_of_interest_is_one_of_the_class_names(stated: object) -> None:
    document = assumed_document("net", ["a", "b", "c"]) | {"streamview": {"positive": stated}}
    expected = r'card\.json: streamview\.positive is .*; expected one of the class_names, or a list of them: \["a"'
    with pytest.raises(ModelError, match=expected):
        parse_card(document, name="net", file="card.json")
