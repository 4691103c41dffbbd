"""Files of weights are read as data: nothing in them is run, whatever they are called and however they were made."""

import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from streamview.errors import ModelError
from streamview.networks import checkpoints
from streamview.networks.checkpoints import archive_kind, read_weights

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2, dtype=torch.float16)}


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.mark}",)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (STATE, None),
        (OrderedDict(STATE), None),
        ({key: nn.Parameter(value.float()) for key, value in STATE.items()}, None),
        ({"epoch": 3, "state_dict": STATE, "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{}]}, "state_dict"),
        ({"model_state_dict": STATE, "loss": torch.tensor(0.1)}, "model_state_dict"),
        ({"model": STATE, "args": {"lr": 1}}, "model"),
    ],
)
def test_state_dicts_alone_and_in_checkpoints(tmp_path: Path, content: object, entry: str | None, legacy: bool) -> None:
    path = tmp_path / "w.ckpt"
    path.write_bytes(saved(content, _use_new_zipfile_serialization=not legacy))
    weights = read_weights(path)
    assert (weights.path, weights.key) == (path, "")
    state = weights.entries[entry or ""]
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key].float(), STATE[key].float()) for key in STATE)
    assert weights.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_and_views_of_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(24.0)
    torch.save({"a": whole[:12].view(3, 4).t(), "b": whole[12:].to(torch.bfloat16)}, tmp_path / "w.pt")
    state = read_weights(tmp_path / "w.pt").entries[""]
    assert torch.equal(state["a"], whole[:12].view(3, 4).t())
    assert state["b"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.bin", "w.safetensors", "w"])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw 2", "raw 4", "nested"])
def test_code_is_never_run_and_is_named(tmp_path: Path, name: str, form: str) -> None:
    mark = tmp_path / "executed"
    contents: dict[str, bytes] = {
        "zip": saved(Malice(mark)),
        "legacy": saved(Malice(mark), _use_new_zipfile_serialization=False),
        "raw 2": pickle.dumps(Malice(mark), protocol=2),
        "raw 4": pickle.dumps(Malice(mark), protocol=4),
        "nested": saved({"state_dict": STATE, "callbacks": [{"x": Malice(mark)}]}),
    }
    path = tmp_path / name
    path.write_bytes(contents[form])
    text = refusal(path)
    assert not mark.exists()
    assert "is a pickle that can run code when read" in text
    if name != "w.safetensors":
        assert "(it names posix.system)" in text
        assert "torch.save(module.state_dict(), FILE)" in text
    if form.startswith("raw"):
        pickle.loads(path.read_bytes())
        assert mark.exists()  # the weapon works


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02(S'true'\nios\nsystem\n.",
        b"\x80\x02\x8c\x06system\x94\x8c\x02os\x94h\x00\x93\x8c\x04true\x85R.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["stack global", "inst", "memo", "extension"],
)
def test_every_way_to_name_code_is_seen(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")
    assert "is a pickle that can run code when read (it names " in refusal(path)


def test_a_second_wall_stands_behind_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "executed"
    monkeypatch.setattr(checkpoints, "_refuse_code", lambda *_: None)
    for number, legacy in enumerate((False, True)):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(saved(Malice(mark), _use_new_zipfile_serialization=legacy))
        text = refusal(path)
        assert "cannot be read as weights alone" in text
        assert "weights_only" not in text  # torch's own advice to turn it off is not passed on
    assert not mark.exists()


def test_whole_modules_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), tmp_path / "w.pt")
    text = refusal(tmp_path / "w.pt")
    assert "holds a whole pickled module (torch.nn.modules." in text
    assert "torch.save(module.state_dict(), FILE)" in text


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)), str(tmp_path / "w.pt"))
    text = refusal(tmp_path / "w.pt")
    assert "is TorchScript, a frozen graph that cannot be cut into streamed pieces" in text
    assert "torch.export" in text
    assert archive_kind(tmp_path / "w.pt") == "torchscript"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list; expected a state_dict"),
        ({}, "holds nothing"),
        ({"a": 1}, "holds 'a', a int that is no plain tensor"),
        ({"state_dict": {"b": "text"}}, "holds no tensors under 'state_dict'"),
        ({"a": torch.zeros(2, 2).to_sparse()}, ""),
        ({"a": torch.empty(2, device="meta")}, ""),
        ({3: torch.zeros(2)}, "holds 3, a Tensor that is no plain tensor"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert message in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_checkpoints(tmp_path: Path, legacy: bool) -> None:
    data = saved({"state_dict": STATE}, _use_new_zipfile_serialization=not legacy)
    for length in [*range(0, len(data) - 1, max(1, len(data) // 60)), len(data) - 1]:
        (tmp_path / "w.pt").write_bytes(data[:length])
        refusal(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_garbled_checkpoints_never_end_in_another_error(tmp_path: Path) -> None:
    data = bytearray(saved({"state_dict": STATE}, _use_new_zipfile_serialization=False))
    for position in range(0, min(len(data), 700), 3):
        garbled = bytearray(data)
        garbled[position] ^= 0x55
        (tmp_path / "w.pt").write_bytes(garbled)
        try:
            read_weights(tmp_path / "w.pt")
        except ModelError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_bombs_of_zip(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", saved(STATE))
        archive.writestr("archive/data/0", bytes(10**8))
    assert "compressed or overlapping members" in refusal(path)
    # many members that are the same bytes
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(10_000))
        for number in range(5):
            member = zipfile.ZipInfo(f"archive/data/{number}")
            archive.writestr(member, b"")
            member.file_size = member.compress_size = 10_000
            member.header_offset = archive.infolist()[0].header_offset
    assert "compressed or overlapping members" in refusal(path)


def test_old_tars_and_other_archives(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "w.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    refusal(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a zip archive without data.pkl" in refusal(tmp_path / "w.zip")


def header(document: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"not weights at all",
        header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        header({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
        header({"a": entry([2], 4, 12)}, bytes(12)),
        header({"a": entry([2**40], 0, 2**42)}, bytes(8)),
        header({"a": entry([2**40, 2**40], 0, 0)}),
        header({"a": entry([-2], 0, 8)}, bytes(8)),
        header({"a": entry([2], 0, 8, "F31")}, bytes(8)),
        header({"a": entry([3], 0, 8)}, bytes(8)),
        header(b"{}", length=2**60),
        header(b"{}", length=99_999_999),
        header(b"\xff\xff"),
        header(b"[" * 100_000),
    ],
    ids=[
        "empty",
        "short",
        "text",
        "overlap",
        "same",
        "hole",
        "huge",
        "overflow",
        "negative",
        "type",
        "size",
        "header",
        "long",
        "utf-8",
        "deep",
    ],
)
def test_safetensors_that_lie(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    assert "is not a whole safetensors file" in refusal(tmp_path / "w.safetensors")


def test_truncated_safetensors(tmp_path: Path) -> None:
    data = safetensors.torch.save(STATE)
    for length in range(0, len(data), 7):
        (tmp_path / "w.safetensors").write_bytes(data[:length])
        assert "is not a whole safetensors file" in refusal(tmp_path / "w.safetensors")


def test_what_is_no_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist" in refusal(tmp_path / "gone.pt")
    assert "is not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is not a file" in refusal(tmp_path / "pipe.pt")  # and does not wait for a writer
    assert "is not a file" in refusal(Path("/dev/zero"))
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    monkeypatch.setattr(checkpoints, "_LARGEST", 10)
    assert "is larger than" in refusal(tmp_path / "w.safetensors")


def test_links_are_followed(tmp_path: Path) -> None:
    # the cache of Hugging Face is made of them; the hash is of the bytes that were read
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    safetensors.torch.save_file(STATE, tmp_path / "blobs" / "3f2a")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/3f2a")
    linked, direct = read_weights(tmp_path / "snapshot" / "model.safetensors"), read_weights(tmp_path / "blobs" / "3f2a")
    assert linked.file_sha256 == direct.file_sha256
    (tmp_path / "snapshot" / "loop.pt").symlink_to("loop.pt")
    assert "does not exist" in refusal(tmp_path / "snapshot" / "loop.pt")
