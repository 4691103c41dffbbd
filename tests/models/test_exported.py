"""Networks of torch.export are read as data: the same answers as torch's own loader, which runs what the file says and is not used."""

import contextlib
import copy
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from streamview.errors import ModelError
from streamview.networks import load_model
from streamview.networks.cards import assumed_document
from streamview.networks.exported import read_exported
from streamview.networks.graphs import check_sizes
from tests.support.zoo import import_torchvision

FREE = ({2: Dim.AUTO, 3: Dim.AUTO},)


class Net(nn.Module):
    """Shares a weight, slices, splits, concatenates, reshapes by sizes and multiplies by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding="same")
        self.once_more = nn.Conv2d(4, 4, 3, padding=1)
        self.once_more.weight = self.again.weight
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.gelu(self.norm(self.first(image)), approximate="tanh")
        a, b = self.once_more(nn.functional.relu_(self.again(x))).chunk(2, 1)
        x = torch.cat([b, a], 1) * self.scale + torch.tensor(0.25)
        x = x.view(x.shape[0], 2, 2, x.shape[2], x.shape[3]).transpose(1, 2).reshape(x.shape)
        return self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))


def export(module: nn.Module, path: Path, *, shapes: Any = FREE, side: int = 64) -> Path:
    torch.export.save(torch.export.export(module, (torch.randn(1, 3, side, side),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Net().eval(), tmp_path_factory.mktemp("exported") / "net.pt2")


def rewrite(original: Path, path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Copy an archive with its members, named without the folder that holds them, changed."""
    with zipfile.ZipFile(original) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return path


def in_json(name: str, change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], object]:
    def apply(members: dict[str, bytes]) -> None:
        document = json.loads(members[name])
        change(document)
        members[name] = json.dumps(document).encode()

    return apply


def in_model(change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], object]:
    return in_json("models/model.json", change)


def in_weights(change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], object]:
    return in_json("data/weights/model_weights_config.json", lambda document: change(document["config"]))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_exported(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_answers_are_those_of_the_module(original: Path) -> None:
    exported = read_exported(original)
    reference = torch.export.load(original).module()
    x = torch.rand(1, 3, 51, 77, requires_grad=True)
    answer, expected = exported.module(x), reference(x)
    assert torch.equal(answer, expected)
    (gradient,) = torch.autograd.grad(answer[0, 1], x)
    (other,) = torch.autograd.grad(expected[0, 1], x)
    assert torch.equal(gradient, other)
    assert exported.outputs == 2


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shufflenet_v2_x0_5", "mobilenet_v3_small"))]
)
def test_networks_of_torchvision(tmp_path: Path, name: str) -> None:
    module = import_torchvision().models.get_model(name, weights=None, num_classes=3).eval()
    exported = read_exported(export(module, tmp_path / "net.pt2", side=224))
    x = torch.rand(1, 3, 97, 131)
    with torch.no_grad():
        assert torch.allclose(exported.module(x), module(x), atol=1e-6)
    assert {str(node.target) for node in exported.module.graph.nodes if node.op == "call_module"} == set()


def test_loading_gives_a_frozen_model_with_a_card(original: Path, tmp_path: Path) -> None:
    model = load_model(original)
    assert (model.card.name, model.card.class_names, model.card.mpp) == ("net", ("0", "1"), None)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert not any(module.training for module in model.module.modules())
    assert model.notes[0].startswith("no card was given")
    (tmp_path / "card.json").write_text(json.dumps(assumed_document("mine", ["benign", "tumour"])))
    named = load_model(original, card=tmp_path / "card.json")
    assert (named.card.class_names, named.sha256, named.notes) == (("benign", "tumour"), model.sha256, ())
    (tmp_path / "card.json").write_text(json.dumps(assumed_document("mine", ["a", "b", "c"])))
    with pytest.raises(ModelError, match=r"returns 2 values, but .* names 3 classes"):
        load_model(original, card=tmp_path / "card.json")
    for options in ({"untrained": True}, {"weights": original}):
        with pytest.raises(ModelError, match="holds a network with its weights"):
            load_model(original, **options)
    with pytest.raises(ModelError, match=r"give it as the model itself: load_model\(.net\.pt2.\)"):
        load_model("demo", weights=original)


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.filterwarnings("ignore")
def test_example_inputs_that_run_code_are_never_read(original: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save((Trap(mark),), buffer)
    path = rewrite(original, tmp_path / "net.pt2", lambda members: members.update({"data/sample_inputs/model.pt": buffer.getvalue()}))
    read_exported(path)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert mark.exists()  # torch's own loader runs it


@pytest.mark.filterwarnings("ignore")
def test_guards_that_run_code_are_never_run(original: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    guard = f"__import__('os').system('touch {mark}') == 0"
    path = rewrite(original, tmp_path / "net.pt2", in_model(lambda document: document.update(guards_code=[guard])))
    assert "holds under a condition that is not understood: " in refusal(path)
    assert not mark.exists()
    torch.export.load(path).module()(torch.rand(1, 3, 64, 64))
    assert mark.exists()  # torch's own loader runs it


@pytest.mark.filterwarnings("ignore")
def test_sizes_that_run_code_are_never_evaluated(original: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    def change(document: Any) -> None:
        size = document["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][2]["as_expr"]
        size["expr_str"] = f"__import__('os').system('touch {mark}')"

    path = rewrite(original, tmp_path / "net.pt2", in_model(change))
    assert "was exported for certain heights and widths only" in refusal(path)
    assert not mark.exists()


def of_nodes(change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], object]:
    return in_model(lambda document: change(document["graph_module"]["graph"]["nodes"]))


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.os.system", "torch.ops.aten.from_file.default", "torch.ops.aten.save.default", "torch.ops.mylib.run.default",
        "_operator.attrgetter", "math.exp", "torch.ops.higher_order.while_loop", "torch.ops.aten.__class__.__init__", "#ext:run",
        "torch.ops.aten.warn.default", "torch.ops.aten.rand.default", "os.system",
    ],
)  # fmt: skip
def test_only_operators_on_tensors_are_taken(original: Path, tmp_path: Path, target: str) -> None:
    path = rewrite(original, tmp_path / "net.pt2", of_nodes(lambda nodes: nodes[3].update(target=target)))
    text = refusal(path)
    assert "export the network without it" in text
    assert target in text


def rename(nodes: Any) -> None:
    node = next(node for node in nodes if "conv2d" in node["target"])
    node["outputs"][0]["as_tensor"]["name"] = "x = __import__('os').system('true') #"


def hang(document: Any) -> None:
    spec = next(spec for spec in document["graph_module"]["signature"]["input_specs"] if "parameter" in spec)
    name = spec["parameter"]["parameter_name"]
    spec["parameter"]["parameter_name"] = f'{name}"); __import__("os").system("true'


def test_names_are_never_code(original: Path, tmp_path: Path) -> None:
    assert "expected letters, digits and underscores" in refusal(rewrite(original, tmp_path / "a.pt2", of_nodes(rename)))
    refusal(rewrite(original, tmp_path / "b.pt2", in_model(hang)))

    def both(members: dict[str, bytes]) -> None:
        in_model(hang)(members)
        in_weights(lambda config: config.update({f'{name}"); __import__("os").system("true': config[name] for name in list(config)}))(
            members
        )

    assert "which is no path of a module" in refusal(rewrite(original, tmp_path / "c.pt2", both))


ON_CUDA = {"name": "device", "arg": {"as_device": {"type": "cuda"}}, "kind": 2}


def pickled(config: Any) -> None:
    next(iter(config.values()))["use_pickle"] = True


def first_meta(**changes: Any) -> Callable[[Any], object]:
    return lambda config: next(iter(config.values()))["tensor_meta"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_weights(pickled), "is pickled, which runs code when read"),
        (lambda members: members.update({"data/weights/model.pt": b""}), "holds pickled weights"),
        (lambda members: members.update({"data/aotinductor/model/a.so": b""}), "holds compiled machine code"),
        (lambda members: members.update({"models/other.json": b"{}"}), "holds 2 networks"),
        (lambda members: members.pop("models/model.json"), "holds 0 networks"),
        (lambda members: members.update({"models/model.json": b"{"}), "is not a whole archive of torch.export"),
        (lambda members: members.update({"models/model.json": b"[" * 100_000}), "is not a whole archive of torch.export"),
        (lambda members: members.update({"models/model.json": b"[]"}), "is not a whole archive of torch.export"),
        (lambda members: members.update({"byteorder": b"big"}), "big-endian"),
        (lambda members: members.update({"data/weights/weight_0": b""}), "reaches outside its 0 values"),
        (lambda members: members.update({"data/weights/weight_0": bytes(7)}), "is not a whole archive"),
        (lambda members: members.pop("data/weights/weight_0"), "is not a whole archive"),
        (in_model(lambda document: document["schema_version"].update(major=9)), "is of schema 9, expected 8"),
        (in_weights(first_meta(sizes=[{"as_int": 2**40}], strides=[{"as_int": 0}])), "reaches outside"),
        (in_weights(first_meta(storage_offset={"as_int": 10**6})), "reaches outside"),
        (in_weights(first_meta(sizes=[{"as_int": -1}], strides=[{"as_int": 1}])), "reaches outside"),
        (in_weights(first_meta(dtype=99)), "is of a type that is not understood"),
        (of_nodes(lambda nodes: nodes.pop(1)), "is not a whole archive"),
        (of_nodes(lambda nodes: nodes[0]["inputs"].append(ON_CUDA)), "as device"),
    ],
)  # fmt: skip
def test_archives_that_lie(original: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], object], message: str) -> None:
    assert message in refusal(rewrite(original, tmp_path / "net.pt2", change))


def test_values_that_are_not_finite(original: Path, tmp_path: Path) -> None:
    nan = np.array([np.nan], np.float32).tobytes()

    def change(members: dict[str, bytes]) -> None:
        members["data/weights/weight_0"] = nan + members["data/weights/weight_0"][4:]

    assert "1 of 108 values of first.weight are NaN or infinite" in refusal(rewrite(original, tmp_path / "net.pt2", change))


def test_truncated_archives(original: Path, tmp_path: Path) -> None:
    data = original.read_bytes()
    for length in range(0, len(data), len(data) // 40):
        (tmp_path / "net.pt2").write_bytes(data[:length])
        assert "is not a whole archive" in refusal(tmp_path / "net.pt2")


def test_networks_for_one_size(tmp_path: Path) -> None:
    text = refusal(export(Net().eval(), tmp_path / "net.pt2", shapes=None))
    assert "was exported for images of 1 x 3 x 64 x 64 alone" in text
    assert "torch.export.Dim.AUTO" in text
    limited = ({2: Dim("h", min=32, max=512), 3: Dim.AUTO},)
    assert "for certain heights and widths only" in refusal(export(Net().eval(), tmp_path / "limited.pt2", shapes=limited))


class Branching(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) if image.shape[2] > 2 * image.shape[3] else image.amax((2, 3))


class Grey(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3))


class Two(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image.mean((2, 3)), image.amax((2, 3))


def test_networks_that_cannot_be_used(tmp_path: Path) -> None:
    text = refusal(export(Branching().eval(), tmp_path / "a.pt2"))
    assert "holds only where " in text
    assert ", unlike images of 999 x " in text
    assert "was exported in training mode" in refusal(export(Net().train(), tmp_path / "b.pt2"))
    assert "was exported in training mode" in refusal(export(nn.Sequential(nn.Dropout(), Grey()).train(), tmp_path / "c.pt2"))
    assert "answers 2 values" in refusal(export(Two().eval(), tmp_path / "d.pt2"))
    assert "answers (1, 4, ?, ?); expected (N, outputs)" in refusal(export(nn.Conv2d(3, 4, 3).eval(), tmp_path / "e.pt2"))
    torch.export.save(torch.export.export(Grey(), (torch.randn(1, 1, 64, 64),), dynamic_shapes=FREE), tmp_path / "f.pt2")
    assert "was exported for input of 1 x 1 x any x any; expected N x 3 x H x W" in refusal(tmp_path / "f.pt2")


@pytest.mark.parametrize(
    ("guard", "understood"),
    [
        ("(1 + (((-1) + L['x'].size()[3]) // 32)) != 1", True),
        ("(max(1, L['x'].size()[3] // 4)*max(1, L['x'].size()[2] // 4)) != 1", True),
        ("not (L['x'].size()[2] < 3) and L['x'].size()[3] >= 2 or False", True),
        ("L['y'].size()[2] > 1", False),
        ("L['x'].size()[2]**2 > 1", False),
        ("L['x'].size()[2] // 0 > 1", False),
        ("(lambda: 1)()", False),
        ("open('f')", False),
        ("L['x'].size()[9] > 1", False),
        ("'a' > 'b'", False),
        ("1 +", False),
        ("9" * 5000, False),
    ],
)
def test_conditions_are_parsed_not_run(guard: str, understood: bool) -> None:
    symbol = {"as_expr": {"expr_str": "Symbol('s0', positive=True, integer=True)"}}
    other = copy.deepcopy(symbol)
    other["as_expr"]["expr_str"] = "Symbol('s1', positive=True, integer=True)"
    sizes: list[dict[str, Any]] = [{"as_int": 1}, {"as_int": 3}, symbol, other]
    if understood:
        check_sizes(sizes, {}, [guard], "x", "net.pt2")
    else:
        with pytest.raises(ModelError, match="under a condition that is not understood"):
            check_sizes(sizes, {}, [guard], "x", "net.pt2")
    with pytest.raises(ModelError, match="for certain heights and widths only"):
        check_sizes([*sizes[:3], symbol], {}, [], "x", "net.pt2")
