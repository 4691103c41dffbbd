"""Networks come from the registry or a folder; whatever does not fit is refused, and pickles are never opened."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from streamview_models import MODELS, folder

from streamview.errors import ModelError
from streamview.networks import load_card, load_model
from tests.support.zoo import import_timm

State = dict[str, torch.Tensor]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Copy the demo's card and weights into a user's folder."""
    home = tmp_path / "mine"
    home.mkdir()
    for name in ("card.json", "weights.safetensors"):
        shutil.copy(folder("demo") / name, home / name)
    return home


def change_weights(home: Path, change: Callable[[State], object]) -> None:
    state = safetensors.torch.load_file(home / "weights.safetensors")
    change(state)
    safetensors.torch.save_file(state, home / "weights.safetensors")


def refusal(spec: str | Path, *, untrained: bool = False) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec, untrained=untrained)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_demo_is_loaded_frozen_in_eval_mode_and_channels_last() -> None:
    model = load_model("demo")
    assert model.card.trained
    assert model.card.class_names == ("normal", "lesion")
    assert model.card.mpp == 0.5
    assert model.file == "weights.safetensors"
    assert model.file_sha256 == hashlib.sha256((folder("demo") / "weights.safetensors").read_bytes()).hexdigest()
    assert not any(module.training for module in model.module.modules())
    for parameter in model.module.parameters():
        assert not parameter.requires_grad
        assert parameter.device.type == "cpu"
        assert parameter.dtype == torch.float32
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last)
    assert (folder("demo") / "weights.safetensors").stat().st_size < 4e6


def test_a_folder_gives_the_same_network_as_the_registry(home: Path) -> None:
    model, reference = load_model(home), load_model("demo")
    x = torch.rand(1, 3, 70, 64)
    assert torch.equal(model.module(x), reference.module(x))
    assert model.card.name == "mine"
    assert model.sha256 == reference.sha256


def test_half_precision_weights_are_computed_in_float32(home: Path) -> None:
    change_weights(home, lambda state: state.update({key: value.half() for key, value in state.items()}))
    assert {parameter.dtype for parameter in load_model(home).module.parameters()} == {torch.float32}


def test_untrained_weights_follow_the_seed_and_leave_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_model("imagenette", untrained=True, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.sha256 == again.sha256 != other.sha256
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True))
    assert not first.card.trained
    assert first.card.mpp is None


def test_untrained_ignores_trained_weights_and_says_so(home: Path) -> None:
    for spec in ("demo", home):
        model = load_model(spec, untrained=True)
        assert not model.card.trained
        assert model.card.sha256 != load_model(spec).card.sha256
        assert model.sha256 != load_model(spec).sha256


def test_bare_names_mean_the_largest() -> None:
    assert load_card("camelyon17") == load_card("camelyon17-8192")
    assert load_card("tupac16").task == "regression"


def test_a_definition_without_weights_needs_untrained() -> None:
    text = refusal("camelyon17-2048")
    assert "'camelyon17-2048' comes without trained weights" in text
    assert "untrained=True" in text


def test_unknown_models_list_near_and_known_ids(tmp_path: Path) -> None:
    text = refusal("camelyon17-2084")
    assert "(near: camelyon17-2048" in text
    assert all(name in text for name in MODELS)
    assert "(near: " not in refusal(tmp_path / "nothing")
    (tmp_path / "w.safetensors").touch()
    assert 'is a file of weights alone; name the network too: load_model("timm:NAME", weights=' in refusal(tmp_path / "w.safetensors")
    (tmp_path / "network.onnx").touch()
    assert "is a file; expected one of demo" in refusal(tmp_path / "network.onnx")


def test_folder_without_card_or_weights(home: Path) -> None:
    (home / "weights.safetensors").unlink()
    assert "weights.safetensors does not exist" in refusal(home)
    (home / "card.json").unlink()
    assert "card.json does not exist" in refusal(home)


def test_unknown_architecture(home: Path) -> None:
    import_timm()
    card = json.loads((home / "card.json").read_text())
    for found, near in (("resnet19", "near: resnet1"), ("../../evil", "expected one of demo")):
        (home / "card.json").write_text(json.dumps(card | {"architecture": found}))
        text = refusal(home)
        assert f"architecture is '{found}'" in text
        assert near in text


def test_missing_unexpected_and_misshaped_weights_are_named(home: Path) -> None:
    def change(state: State) -> None:
        state["extra"] = state.pop("features.3.weight")
        state["head.2.bias"] = torch.zeros(5)

    change_weights(home, change)
    text = refusal(home)
    assert "does not fit its card" in text
    assert "1 missing, first features.3.weight" in text
    assert "1 unexpected, first extra" in text
    assert "first head.2.bias: 5 float, expected 2 float" in text


def test_integer_weights_do_not_fit(home: Path) -> None:
    change_weights(home, lambda state: state.update({"head.2.bias": torch.zeros(2, dtype=torch.int8)}))
    assert "head.2.bias: 2 integer, expected 2 float" in refusal(home)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(home: Path, value: float) -> None:
    change_weights(home, lambda state: state["features.6.bias"].__setitem__(1, value))
    assert "1 of 32 values of features.6.bias are NaN or infinite" in refusal(home)


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "pytorch_model.bin", "model.pth"])
def test_a_pickle_with_code_is_never_opened(home: Path, name: str, zipped: bool) -> None:
    mark = home / "executed"
    (home / "weights.safetensors").unlink()
    if zipped:
        torch.save(Malice(mark), home / name)
    else:
        (home / name).write_bytes(pickle.dumps(Malice(mark)))
    text = refusal(home)
    assert name in text
    assert "pickle" in text
    assert "convert" in text
    assert not mark.exists()
    # the file was a working weapon
    if not zipped:
        pickle.loads((home / name).read_bytes())
        assert mark.exists()


def test_damaged_weights(home: Path) -> None:
    data = (home / "weights.safetensors").read_bytes()
    for damaged in (data[:-100], data[:20], b"", b"not weights"):
        (home / "weights.safetensors").write_bytes(damaged)
        assert "is not a whole safetensors file" in refusal(home)
