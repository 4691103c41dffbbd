"""Errors name arguments in Python and options on the command line, and natural mistakes say what to pass instead."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import streamview
from streamview.cli.console import complain
from streamview.errors import ModelError, RegionError, SlideError, StreamviewError, name_arguments, name_options
from streamview.evaluation import evaluate
from streamview.inspection.verification import verify
from streamview.labels.regions import Example
from streamview.networks import Model
from streamview.slides.sampling import Sampler

SPOKEN = [
    ("state the slide's with --mpp", "state the slide's with mpp="),
    ("--mpp 0.5: expected a number", "mpp=0.5: expected a number"),
    ("give --weights FILE, or --untrained to use", "give weights=FILE, or untrained=True to use"),
    ("use --device cpu, or see `streamview doctor --mpp`", "use device=cpu, or see `streamview doctor --mpp`"),
    ("name it: -m timm:NAME --weights /a/b.pth", 'name it: load_model("timm:NAME", weights=/a/b.pth)'),
    ("a whole one (-m a.b:c --weights FILE --card card.json), or", 'a whole one (load_model("a.b:c", weights=FILE, card=card.json)), or'),
    ("begin anew with --restart", "begin anew with restart=True"),
    ("(--force trains anyway)", "(force=True trains anyway)"),
    ("--channel DAPI is none; leave out --channel", "channel=DAPI is none; leave out channel="),
    ("choose: --weights /a:b/c.pth:x or --weights /a:b/c.pth:y.z", "choose: weights=/a:b/c.pth:x or weights=/a:b/c.pth:y.z"),
    ("streamview convert --channel N makes a grey slide", "streamview convert --channel N makes a grey slide"),
    ("vips tiffsave IN OUT.tif --tile --pyramid", "vips tiffsave IN OUT.tif --tile --pyramid"),
    ("/data/mpp=0.5/a--region.svs: no such file", "/data/mpp=0.5/a--region.svs: no such file"),
]


@pytest.mark.parametrize(("options", "arguments"), SPOKEN)
def test_a_remedy_is_named_as_the_reader_gives_it(options: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = StreamviewError(options)
    assert str(error) == name_arguments(arguments) == arguments
    assert str(StreamviewError(f"a.svs: {error}")) == f"a.svs: {arguments}"
    assert name_options(arguments) == name_options(options) == options
    complain(f"error: {error}")
    assert capsys.readouterr().err == f"error: {options}\n"


def test_every_option_that_a_message_of_the_core_names_has_its_argument() -> None:
    root = Path(streamview.__file__).parent
    left = []
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] == "cli" or path.name == "doctor.py":
            continue
        texts = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        left += [text for text in texts if "\n" not in text and re.search(r"(?<![\w`-])--[a-z]", name_arguments(text))]
    # whole command lines
    assert [text for text in left if "vips" not in text and "streamview " not in text] == []


IMAGE = np.zeros((64, 64, 3), np.uint8)
REGION = streamview.Region(0, 0, 64, 64)
PASS = r"expected what load_model returns"
MISTAKES: dict[str, tuple[Callable[[Any], object], type[StreamviewError], str]] = {
    "a module": (lambda m: streamview.predict(m.module, IMAGE, mpp=0.5), ModelError, r"is a torch module .*: pass the Model"),
    "a name": (lambda m: streamview.predict("demo", IMAGE), ModelError, rf"model 'demo' is a name; {PASS}: load_model\(.demo.\)"),
    "the class": (lambda m: streamview.saliency(Model, IMAGE), ModelError, rf"model is the class Model; {PASS}"),
    "nothing": (lambda m: streamview.predict(None, IMAGE), ModelError, rf"model is a NoneType; {PASS}"),
    "a module to explain": (lambda m: streamview.saliency(m.module, IMAGE, None, "lesion"), ModelError, "is a torch module"),
    "a module to evaluate": (lambda m: evaluate(m.module, [Example(IMAGE, "normal")]), ModelError, "is a torch module"),
    "a module to tune": (lambda m: streamview.finetune(m.module, [Example(IMAGE, "normal")]), ModelError, "is a torch module"),
    "a module to verify": (lambda m: verify(m.module), ModelError, "is a torch module"),
    "a module to load": (lambda m: streamview.load_model(m.module), ModelError, "expected a name, a folder or a file"),
    "a class to load": (lambda m: streamview.load_model(type(m.module)), ModelError, r"model is the class \w+; expected a name"),
    "a tuple": (lambda m: streamview.predict(m, IMAGE, (0, 0, 64, 64), mpp=0.5), RegionError, r"\(0, 0, 64, 64\): expected stream"),
    "a list": (lambda m: Sampler(streamview.slides.as_slide(IMAGE), [0, 0, 9, 9]), RegionError, r"\[0, 0, 9, 9\]: expected stream"),
    "a class as region": (lambda m: streamview.saliency(m, IMAGE, streamview.Region, mpp=0.5), RegionError, "is the class Region"),
    "a tuple to read": (lambda m: streamview.slides.as_slide(IMAGE).read((0, 0, 9, 9)), RegionError, "is not guessed"),
    "a tuple labelled": (lambda m: Example(IMAGE, "normal", (0, 0, 9, 9)), RegionError, "is not guessed"),
    "a path": (lambda m: streamview.predict(m, "a.svs"), SlideError, "open files with open_slide"),
    "a picture of Pillow": (lambda m: streamview.predict(m, Image.new("RGB", (9, 9))), SlideError, r"np\.asarray\(image\.convert"),
    "a class as slide": (lambda m: streamview.predict(m, SimpleNamespace), SlideError, "is the class SimpleNamespace"),
    "floats": (lambda m: streamview.predict(m, IMAGE / 255), SlideError, r"scale it: \(array \* 255\)"),
    "channels first": (lambda m: streamview.predict(m, IMAGE.transpose(2, 0, 1)), SlideError, r"array\.transpose\(1, 2, 0\)"),
    "a batch": (lambda m: streamview.predict(m, IMAGE[None]), SlideError, r"one image: array\[0\]"),
    "RGBA": (lambda m: streamview.predict(m, np.zeros((9, 9, 4), np.uint8)), SlideError, r"array\[\.\.\., :3\]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return streamview.load_model("demo")


@pytest.mark.parametrize("case", MISTAKES)
def test_natural_mistakes_say_what_to_pass(model: Model, case: str) -> None:
    call, kind, said = MISTAKES[case]
    with pytest.raises(kind, match=said) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_a_tensor_as_slide(model: Model) -> None:
    import torch

    with pytest.raises(SlideError, match=r"pass tensor\.numpy\(\)"):
        streamview.predict(model, torch.zeros(9, 9, 3, dtype=torch.uint8))
