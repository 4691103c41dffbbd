"""Users' own networks: from timm, torchvision or a function of theirs, with their weights and their card."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from streamview_models import folder
from torch import nn

from streamview.cli import main
from streamview.errors import ModelError
from streamview.networks import Model, load_card, load_model
from streamview.networks.cards import assumed_document
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.zoo import import_timm, import_torchvision

FACTORIES = '''
import torch
from torch import nn


def net(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def plain():
    return net(2)


def sized(num_classes=5, width=1):
    return net(num_classes)


def needing(outputs):
    return net(outputs)


def own():
    module = net(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.5)
    return module


def broken(path, depth):
    return None


def text():
    return "a network"


def many():
    return nn.Conv2d(3, 4, 3)


def deep():
    """Needs at least 1500 px."""
    blocks = [layer for _ in range(10) for layer in (nn.MaxPool2d(2), nn.Conv2d(3, 3, 1))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("no images today")


class Wrapped(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.model = net(num_classes)

    def forward(self, x):
        return {"logits": self.model(x)}


constant = 3
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a module of the user's importable; return its name."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "usersnet.py").write_text(FACTORIES)
    (tmp_path / "code" / "halfnet.py").write_text("import no_such_package_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "usersnet", raising=False)
    return "usersnet"


def refusal(spec: str | Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def card_file(path: Path, classes: list[str], architecture: str = "own", **changes: object) -> Path:
    path.write_text(json.dumps(assumed_document(architecture, classes, side=256) | {"spacing_um_px": 0.5} | changes))
    return path


def net(classes: int) -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)]
    return nn.Sequential(*layers).eval()


def assert_same(model: Model, module: nn.Module) -> None:
    x = torch.rand(2, 3, 75, 80)
    with torch.no_grad():
        assert torch.allclose(model.module(x), module(x), atol=1e-6)
    assert not any(part.training for part in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("name", ["plain", "sized", "needing"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.model.net."])
def test_a_function_with_a_checkpoint(mine: str, tmp_path: Path, name: str, prefix: str) -> None:
    module = net(2)
    torch.save({"epoch": 1, "state_dict": {prefix + key: value for key, value in module.state_dict().items()}}, tmp_path / "w.ckpt")
    model = load_model(f"{mine}:{name}", weights=tmp_path / "w.ckpt")
    assert_same(model, module)
    assert model.card.class_names == ("0", "1")  # learned from the weights where the function takes a number
    assert (model.card.mpp, model.card.trained, model.card.architecture) == (None, True, f"{mine}:{name}")
    assert model.notes[0].startswith("w.ckpt: the entry 'state_dict' was taken")
    assert (f"{prefix!r} was taken off every name" in model.notes[0]) == bool(prefix)
    assert model.notes[1].startswith("no card was given: ")
    assert len(model.notes) == 2


def test_a_card_of_ones_own(mine: str, tmp_path: Path) -> None:
    torch.save(net(2).state_dict(), tmp_path / "w.pt")
    card = card_file(tmp_path / "card.json", ["benign", "tumour"], f"{mine}:sized")
    model = load_model(f"{mine}:sized", weights=tmp_path / "w.pt", card=card)
    assert (model.card.class_names, model.card.mpp, model.notes) == (("benign", "tumour"), 0.5, ())
    other = card_file(tmp_path / "other.json", ["benign", "tumour"], "resnet34")
    (note,) = load_model(f"{mine}:sized", weights=tmp_path / "w.pt", card=other).notes
    assert note == f"{other} is for 'resnet34', the network is {mine}:sized"


def test_a_head_of_another_number_of_classes_is_said_so(mine: str, tmp_path: Path) -> None:
    torch.save(net(5).state_dict(), tmp_path / "w.pt")
    card = card_file(tmp_path / "card.json", ["a", "b", "c"])
    text = refusal(f"{mine}:sized", weights=tmp_path / "w.pt", card=card)
    assert "2 of another form, first 5.weight: 5x4 float, expected 3x4 float" in text
    assert "the weights have 5 outputs, the card names 3 classes; fix architecture or num_classes in card.json" in text
    text = refusal(f"{mine}:own", card=card_file(tmp_path / "two.json", ["a", "b"]))
    assert "returns 3 values, but its card names 2 classes; fix num_classes and class_names in " in text


def test_prefixes_come_off_only_where_all_names_then_fit(mine: str, tmp_path: Path) -> None:
    state = net(2).state_dict()
    torch.save({f"model.{key}": value for key, value in state.items()} | {"model.7.weight": torch.ones(2)}, tmp_path / "w.pt")
    text = refusal(f"{mine}:plain", weights=tmp_path / "w.pt")
    assert "1 unexpected, first 7.weight" in text
    assert "choose the network they were trained with" in text
    torch.save({f"model.{key}": value for key, value in state.items() if key != "5.bias"}, tmp_path / "w.pt")
    assert "1 missing, first 5.bias" in refusal(f"{mine}:plain", weights=tmp_path / "w.pt")


def test_a_function_with_weights_of_its_own(mine: str) -> None:
    model = load_model(f"{mine}:own")
    assert model.card.class_names == ("0", "1", "2")
    assert model.notes[0] == "the weights are those that usersnet:own loaded itself"
    assert model.sha256 == load_model(f"{mine}:own", seed=7).sha256
    text = refusal(f"{mine}:plain")
    assert "returned random weights: two calls gave different ones; give weights=FILE, or untrained=True" in text


def test_random_weights_of_a_function(mine: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_model(f"{mine}:sized", untrained=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.sha256 == again.sha256 != other.sha256
    assert (first.card.trained, len(first.card.class_names)) == (False, 5)
    assert len(load_model(f"{mine}:deep", untrained=True).card.class_names) == 2  # counted at a size that it can take
    assert "how many outputs it has is not known; give a card" in refusal(f"{mine}:needing", untrained=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "has no function 'nothing'; check its name"),
        ("plaim", "(near: plain"),
        ("constant", "has no function 'constant'"),
        ("broken", "needs path, depth, but only num_classes or outputs is given"),
        ("text", "returned a str; expected a torch.nn.Module"),
        ("many", "answers a tensor of (1, 4, 222, 222) for one image; expected (1, outputs)"),
        ("Wrapped", "answers a dict for one image; expected (1, outputs): wrap it"),
        ("Failing", "cannot be run on an RGB image (no images today)"),
    ],
)
def test_functions_that_do_not_do(mine: str, function: str, message: str) -> None:
    assert message in refusal(f"{mine}:{function}", untrained=True)


def test_modules_that_are_not_there(mine: str) -> None:
    assert "no module 'nosuchmodule' is found; install it, or run with PYTHONPATH" in refusal("nosuchmodule.sub:build", untrained=True)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):  # a defect of the user's code keeps its traceback
        load_model("halfnet:build", untrained=True)


def test_a_card_never_chooses_code(mine: str, tmp_path: Path) -> None:
    home = tmp_path / "downloaded"
    home.mkdir()
    card_file(home / "card.json", ["a", "b"], f"{mine}:plain")
    safetensors.torch.save_file(net(2).state_dict(), home / "weights.safetensors")
    for options in ({}, {"card": home / "card.json"}, {"weights": home / "weights.safetensors"}, {"untrained": True}):
        text = refusal(home, **options)
        assert "a function to import, which a card may not choose: it may come from a download" in text
        assert f'load_model("{mine}:plain", weights=FILE, card=card.json)' in text
    assert mine not in sys.modules
    for name in ("timm:hf-hub:someone/something", "timm:local-dir:/etc", "torchvision:../evil", "os:system", "timm:a:b"):
        card_file(home / "card.json", ["a", "b"], name)
        if name.startswith("t"):
            import_timm()
        assert f"architecture is {name!r}" in refusal(home)


def test_weights_for_a_network_of_the_registry(tmp_path: Path) -> None:
    module = load_model("resnet18", untrained=True, seed=3).module
    torch.save({"state_dict": {f"net.{key}": value for key, value in module.state_dict().items()}}, tmp_path / "w.pt")
    model = load_model("resnet18", weights=tmp_path / "w.pt")
    assert model.card.trained
    assert_same(model, module)
    state = load_model("demo").module.state_dict()
    state["head.2.weight"], state["head.2.bias"] = torch.ones(4, 64)[:, : state["head.2.weight"].shape[1]].clone(), torch.ones(4)
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    model = load_model("demo", weights=tmp_path / "w.safetensors")
    assert model.card.class_names == ("0", "1", "2", "3")
    assert model.card.licence is None  # that of the demo's own weights says nothing of these
    assert model.card.spacing_um_px == load_card("demo").spacing_um_px
    (note,) = model.notes
    assert note.startswith("no card was given: classes, um/px and normalisation are those of demo's own")


def test_a_checkpoint_for_a_folder_with_a_card(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_bytes((folder("demo") / "card.json").read_bytes())
    module = load_model("demo").module
    torch.save(module.state_dict(), tmp_path / "best.ckpt")
    text = refusal(tmp_path)
    assert "holds best.ckpt, a pickle that can run code when read, and no weights.safetensors" in text
    assert f"(weights={tmp_path / 'best.ckpt'})" in text
    model = load_model(tmp_path, weights=tmp_path / "best.ckpt")
    assert_same(model, module)
    assert (model.card.class_names, model.notes) == (("normal", "lesion"), ())


def test_contradictions(tmp_path: Path) -> None:
    assert "weights and untrained" not in refusal("demo", weights=tmp_path / "w", untrained=True)
    assert "choose one" in refusal("demo", weights=tmp_path / "w", untrained=True)
    assert "does not exist; expected a file of weights" in refusal("demo", weights=tmp_path / "w")
    assert "does not exist; expected a model card" in refusal("demo", card=tmp_path / "c")


def test_non_finite_and_misshapen_checkpoints(mine: str, tmp_path: Path) -> None:
    state = net(2).state_dict()
    state["0.bias"][1] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    assert "1 of 4 values of 0.bias are NaN or infinite" in refusal(f"{mine}:plain", weights=tmp_path / "w.pt")
    # a shape of ten terabytes from one number is refused before anything is done with it
    torch.save(net(2).state_dict() | {"0.bias": torch.zeros(1).expand(10**13)}, tmp_path / "w.pt")
    assert "first 0.bias: 10000000000000 float, expected 4 float" in refusal(f"{mine}:plain", weights=tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:Mapping deprecated model name:UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv3_small_050",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("xception", "inception_v4", "densenet121")),
    ],
)
def test_a_network_of_timm_with_a_checkpoint(tmp_path: Path, name: str) -> None:
    timm = import_timm()
    module = timm.create_model(name, num_classes=2).eval()
    torch.save({"state_dict": {f"model.{key}": value for key, value in module.state_dict().items()}}, tmp_path / "w.ckpt")
    model = load_model(f"timm:{name}", weights=tmp_path / "w.ckpt")
    assert_same(model, module)
    assert model.card.class_names == ("0", "1")
    assert model.card.mpp is None
    config = timm.models.get_pretrained_cfg(name)
    if config is not None:
        assert (model.card.mean, model.card.std) == (config.mean, config.std)
        assert model.card.input_size == (config.input_size[-1],) * 2


def test_untrained_networks_of_timm_and_torchvision_download_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import_timm()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("socket.socket.connect", refuse)
    model = load_model("timm:resnet10t", untrained=True)
    assert (len(model.card.class_names), model.card.trained, model.card.name) == (1000, False, "timm:resnet10t")
    assert len(load_model("torchvision:squeezenet1_1", untrained=True).card.class_names) == 1000
    for spec in ("timm:resnet18", "timm:resnet18.a1_in1k", "torchvision:resnet18"):
        assert "comes without trained weights, and none are downloaded; give weights=FILE, or untrained=True" in refusal(spec)


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("regnet_x_400mf", "mobilenet_v3_small")),
    ],
)
def test_a_network_of_torchvision_with_its_weights(tmp_path: Path, name: str) -> None:
    module = import_torchvision().models.get_model(name, weights=None, num_classes=3).eval()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    model = load_model(f"torchvision:{name}", weights=tmp_path / "w.safetensors")
    assert_same(model, module)
    assert model.card.class_names == ("0", "1", "2")
    assert model.card.mean == (0.485, 0.456, 0.406)


def test_names_that_timm_and_torchvision_do_not_know() -> None:
    import_timm()
    assert "(near: resnet50" in refusal("timm:resnet5O", untrained=True)
    assert "which torchvision does not have for images (near: resnet50" in refusal("torchvision:resnet5O", untrained=True)
    assert "which timm does not know" in refusal("timm:hf-hub:timm/resnet50", untrained=True)


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18"])
@pytest.mark.parametrize("error", [ModuleNotFoundError("none", name="timm"), RuntimeError("operator torchvision::nms does not exist")])
def test_libraries_that_are_missing_or_do_not_fit(monkeypatch: pytest.MonkeyPatch, spec: str, error: Exception) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr("streamview.networks.architectures.importlib.import_module", fail)
    text = refusal(spec, untrained=True)
    assert spec in text
    assert ("pip install 'streamview[models]'" in text) == isinstance(error, ModuleNotFoundError)
    assert ("install the version that fits torch" in text) == isinstance(error, RuntimeError)


def wsinfer(home: Path, architecture: str, module: nn.Module) -> Path:
    """Make a folder as the WSInfer zoo publishes them."""
    home.mkdir()
    document = {
        "spec_version": "1.0", "architecture": architecture, "num_classes": 2, "class_names": ["Other", "Tumor"],
        "patch_size_pixels": 350, "spacing_um_px": 0.25,
        "transform": [
            {"name": "Resize", "arguments": {"size": 224}}, {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": [0.7238, 0.5716, 0.6779], "std": [0.112, 0.1459, 0.1089]}},
        ],
    }  # fmt: skip
    (home / "config.json").write_text(json.dumps(document))
    (home / "torchscript_model.pt").write_bytes(b"never opened")
    (home / "pytorch_model.bin").write_bytes(b"never opened")
    safetensors.torch.save_file(module.state_dict(), home / "model.safetensors")
    return home


@pytest.mark.filterwarnings("ignore:Mapping deprecated model name:UserWarning")
@pytest.mark.parametrize(
    "architecture", ["resnet34", "timm:resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("inception_v4", "xception"))]
)
def test_folders_of_wsinfer_open_unchanged(tmp_path: Path, architecture: str) -> None:
    module = import_timm().create_model(architecture.removeprefix("timm:"), num_classes=2).eval()
    home = wsinfer(tmp_path / "breast-tumor", architecture, module)
    model = load_model(home)
    assert_same(model, module)
    assert (model.card.name, model.card.class_names, model.notes) == ("breast-tumor", ("Other", "Tumor"), ())
    assert model.card.mpp == pytest.approx(0.25 * 350 / 224)
    assert load_card(home) == model.card


@pytest.mark.parametrize("architecture", ["vgg16mod", "preactresnet34"])
def test_networks_that_only_wsinfer_defines(tmp_path: Path, architecture: str) -> None:
    home = wsinfer(tmp_path / "lymphocytes", architecture, nn.Linear(1, 1))
    assert f"architecture is {architecture!r}, a variant of WSInfer's own" in refusal(home)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_as_a_model_and_in_a_folder(tmp_path: Path) -> None:
    script = tmp_path / "torchscript_model.pt"
    torch.jit.save(torch.jit.trace(net(2), torch.zeros(1, 3, 8, 8)), str(script))
    for spec in (script, tmp_path):
        (tmp_path / "card.json").write_bytes((folder("demo") / "card.json").read_bytes())
        assert "is TorchScript, a frozen graph" in refusal(spec)


def test_only_what_has_a_card_gives_one(mine: str) -> None:
    with pytest.raises(ModelError, match="has no card of its own"):
        load_card(f"{mine}:plain")


def test_the_command_line_takes_weights_and_a_card(mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(net(2).state_dict(), tmp_path / "w.pt")
    card = card_file(tmp_path / "card.json", ["benign", "tumour"], f"{mine}:sized")
    slide = tmp_path / "slide.svs"
    write_synthetic_slide(slide, size=(600, 700))
    command = ["predict", "-i", str(slide), "-o", str(tmp_path / "job"), "-m", f"{mine}:sized", "--weights", str(tmp_path / "w.pt")]
    assert main([*command, "--card", str(card)]) == 0
    assert "prob_tumour" in (tmp_path / "job" / "predictions.csv").read_text()
    assert main([*command, "--untrained"]) == 1
    assert "exclude each other; choose one" in capsys.readouterr().err
    command[4] = str(tmp_path / "other")
    assert main(command) == 0
    assert "no card was given: classes are numbered" in capsys.readouterr().err
