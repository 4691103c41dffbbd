"""What training programs leave behind: read where the network is in it whole, refused where it is not, never in part."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from streamview_models import folder
from torch import Tensor, nn

from streamview.errors import ModelError
from streamview.networks import Model, load_model
from streamview.networks.hashing import hash_tensors

State = dict[str, Tensor]
STATE: State = safetensors.torch.load_file(folder("demo") / "weights.safetensors")
OTHER: State = {name: tensor + 1 for name, tensor in STATE.items()}
ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def under(prefix: str, state: State = STATE) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def load(folder_: Path, content: object, key: str = "") -> Model:
    torch.save(content, folder_ / "w.pth")
    return load_model("demo", weights=f"{folder_ / 'w.pth'}{key and ':'}{key}")


def refusal(folder_: Path, content: object, key: str = "") -> str:
    with pytest.raises(ModelError) as caught:
        load(folder_, content, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


GOOD: dict[str, tuple[object, str]] = {
    "plain": (STATE, ""),
    "averaged": ({"n_averaged": torch.tensor(5), **under("module.")}, "'module.' was taken off every name, and n_averaged left out"),
    "compiled": (under("_orig_mod."), ""),
    "compiled inside": ({name.replace("features.", "features._orig_mod."): tensor for name, tensor in STATE.items()}, ""),
    "compiled in DDP": (under("module._orig_mod."), "'module.' was taken off"),
    "FSDP": (under("_fsdp_wrapped_module."), ""),
    "Lightning": ({"epoch": 3, "state_dict": under("model."), "optimizer_states": [ADAM], "loops": {}}, "'model.' was taken"),
    "Lightning with a metric": ({"state_dict": under("net.") | {"val_auroc.preds": torch.zeros(9)}}, "val_auroc.preds left out"),
    "Lightning with a loss": ({"state_dict": under("net.") | {"criterion.weight": torch.ones(2)}}, "criterion.weight left out"),
    "a metric without a prefix": (STATE | {"train_acc.tp": torch.zeros(3)}, "train_acc.tp left out"),
    "a confusion matrix": (STATE | {"confmat.confmat": torch.zeros(2, 2, dtype=torch.long)}, "confmat.confmat left out"),
    "many metrics": (under("m.") | {f"acc.{n}": torch.zeros(1) for n in range(20)}, "acc.7 and 12 more left out"),
    "MMEngine": ({"meta": {"epoch": 1}, "state_dict": STATE, "message_hub": {}, "optimizer": ADAM}, "the entry 'state_dict'"),
    "DeepSpeed": ({"module": under("module."), "optimizer": ADAM, "ds_version": "0.1"}, "the entry 'module'"),
    "timm": ({"arch": "demo", "state_dict": STATE, "args": argparse.Namespace(lr=0.1), "metric": np.float64(0.5)}, "'state_dict'"),
    "two alike": ({"state_dict": STATE, "state_dict_ema": {name: tensor.clone() for name, tensor in STATE.items()}}, "'state_dict'"),
    "nested": ({"checkpoint": {"student": {"network": under("backbone.")}}}, "the entry 'checkpoint.student.network'"),
    "a list": ([under("module."), ADAM], "the entry '0'"),
    **{
        key: ({key: STATE, "epoch": 1, "optimizer": ADAM}, f"the entry {key!r} was taken")
        for key in ("model", "state_dict_ema", "ema", "ema_state_dict", "model_ema", "params", "params_ema", "model_state", "net")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_what_is_whole_is_read(tmp_path: Path, case: str) -> None:
    content, said = GOOD[case]
    model = load(tmp_path, content)
    assert model.sha256 == load_model("demo").sha256
    assert said in model.notes[0]
    assert bool(said) == model.notes[0].startswith("w.pth: ")


def several(first: str, second: str) -> dict[str, object]:
    return {
        "entries": {first: STATE, second: OTHER},
        "prefixes": {"state_dict": under(f"{first}.") | under(f"{second}.", OTHER)},
        "flat": under(f"{first}.") | under(f"{second}.", OTHER),
    }


@pytest.mark.parametrize(
    ("first", "second"), [("state_dict", "state_dict_ema"), ("student", "teacher"), ("model", "model_ema"), ("params", "params_ema")]
)
@pytest.mark.parametrize("form", ["entries", "prefixes", "flat"])
def test_of_several_networks_one_is_chosen(tmp_path: Path, first: str, second: str, form: str) -> None:
    content = several(first, second)[form]
    text = refusal(tmp_path, content)
    above = "state_dict." if form == "prefixes" else ""
    for name in (first, second):
        assert f"{tmp_path / 'w.pth'}:{above}{name}" in text
    assert "choose one" in text
    chosen = [load(tmp_path, content, f"{above}{name}") for name in (first, second)]
    expected = [load(tmp_path, state) for state in (STATE, OTHER)]
    assert [model.sha256 for model in chosen] == [model.sha256 for model in expected]
    text = refusal(tmp_path, content, "nothing")
    assert f"holds no weights of this network under 'nothing'; expected one of {above}{first}, {above}{second}" in text


def test_a_file_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    reference = load_model("demo").sha256
    for name in ("w:ema.pth", "w.pth:a"):
        torch.save({"a": STATE, "b": OTHER}, tmp_path / name)
        assert load_model("demo", weights=f"{tmp_path / name}:a").sha256 == reference
    torch.save(STATE, tmp_path / "x.pth:a")
    assert load_model("demo", weights=tmp_path / "x.pth:a").sha256 == reference
    with pytest.raises(ModelError, match=r"gone\.pth:a does not exist"):
        load_model("demo", weights=tmp_path / "gone.pth:a")
    torch.save(STATE, tmp_path / "y.pth")
    with pytest.raises(ModelError, match="holds no weights of this network under 'a'; expected no key"):
        load_model("demo", weights=f"{tmp_path / 'y.pth'}:a")


def without(last: bool) -> State:
    gone = list(STATE)[-1 if last else 0]
    return {name: tensor for name, tensor in STATE.items() if name != gone}


BAD: dict[str, tuple[object, str]] = {
    "a weight is missing": (without(last=False), f"1 missing, first {next(iter(STATE))}"),
    "a weight is missing under a prefix": ({"state_dict": under("model.", without(last=True))}, f"1 missing, first {list(STATE)[-1]}"),
    "a layer more of a known part": (STATE | {"features.99.bias": torch.zeros(3)}, "1 unexpected, first features.99.bias"),
    "a layer more": (STATE | {"attention.weight": torch.zeros(3, 3)}, "1 unexpected, first attention.weight"),
    "a norm more": (under("m.") | {"m.norm.weight": torch.ones(3), "m.norm.bias": torch.ones(3)}, "2 unexpected, first norm.weight"),
    "a factor more": (STATE | {"logit_scale": torch.tensor(2.0)}, "1 unexpected, first logit_scale"),
    "an optimiser alone": ({"optimizer": ADAM}, "missing, first"),
    "averages without names": ({"ema": {"decay": 0.9, "shadow_params": list(STATE.values())}}, "holds no tensors under 'ema'"),
    "another network": ({"state_dict": {"a.weight": torch.zeros(2, 2)}}, "missing, first"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_nothing_is_loaded_in_part(tmp_path: Path, case: str) -> None:
    content, said = BAD[case]
    assert said in refusal(tmp_path, content)


def test_a_head_for_other_classes_is_not_replaced_unasked(tmp_path: Path) -> None:
    torch.save(STATE | {"head.2.bias": torch.zeros(5), "head.2.weight": torch.zeros(5, 64)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"head\.2\.weight: 5x64 float, expected 2x64 float; the weights have 5 outputs"):
        load_model("demo", weights=tmp_path / "w.pth", card=folder("demo") / "card.json")


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_counters_of_batch_norm_do_not_matter() -> None:
    state = Normed().state_dict()
    counted = state | {"1.num_batches_tracked": torch.tensor(7)}
    assert hash_tensors(state) == hash_tensors(counted) == hash_tensors({k: v for k, v in state.items() if "num_batches" not in k})


SAVE: dict[str, Callable[[Path], object]] = {
    "w.pth": lambda path: torch.save(STATE, path),
    "legacy.pt": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "l.ckpt": lambda path: torch.save({"state_dict": under("model."), "epoch": 3}, path),
    "reversed.safetensors": lambda path: safetensors.torch.save_file(dict(reversed(STATE.items())), path, metadata={"a": "b"}),
    "double.pth": lambda path: torch.save({name: tensor.double() for name, tensor in STATE.items()}, path),
    "strided.pth": lambda path: torch.save(
        {n: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in STATE.items()}, path
    ),
}


@pytest.mark.parametrize("name", SAVE)
def test_the_same_tensors_are_the_same_network_in_any_file(tmp_path: Path, name: str) -> None:
    SAVE[name](tmp_path / name)
    model = load_model("demo", weights=tmp_path / name)
    assert model.sha256 == load_model("demo").sha256
    assert (model.file, model.file_sha256) == (name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())


def test_other_tensors_are_another_network() -> None:
    reference = hash_tensors(STATE)
    first, *_ = STATE
    assert hash_tensors(OTHER) != reference
    assert hash_tensors({("x" if name == first else name): tensor for name, tensor in STATE.items()}) != reference
    assert hash_tensors({name: tensor.flatten() for name, tensor in STATE.items()}) != reference
    assert hash_tensors({name: -tensor if name == first else tensor for name, tensor in STATE.items()}) != reference
    assert hash_tensors({"a": torch.zeros(2)}) != hash_tensors({"a": torch.zeros(2, dtype=torch.int32)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\n<html>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an error message of a file server"),
        (b"", "an empty file"),
        (bytes(4096), "a file of zeros"),
        (safetensors.torch.save(STATE)[:-10], "it is cut short: "),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file"),
        (b"\x89PNG\r\n", "a PNG picture"),
    ],
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, content: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load_model("demo", weights=tmp_path / name)
