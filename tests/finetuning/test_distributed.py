"""Two processes that train together come to the weights of one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import tifffile
import torch

from streamview.cli import main
from streamview.finetuning.ranks import Ranks, current_ranks
from tests.support.distributed import train
from tests.support.finetuning import picture

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def start_two(out, pause: float = 0.0) -> subprocess.Popen:
    """Start two processes with ``torchrun``; they wait some seconds after each optimiser step."""
    command = [*TORCHRUN, "-m", "tests.support.distributed", str(out), str(pause)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process) -> None:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with accumulation."""
    return train(tmp_path_factory.mktemp("alone") / "tuned")


def test_without_a_process_group_there_is_one_rank() -> None:
    ranks = current_ranks()
    assert ranks == Ranks(0, 1)
    assert (ranks.first, list(ranks.part([1, 2, 3])), ranks.gather("a"), ranks.from_first("a")) == (True, [1, 2, 3], ["a"], "a")


def test_every_region_of_a_batch_has_one_rank() -> None:
    parts = [Ranks(number, 3).part(range(8)) for number in range(3)]
    assert sorted(index for part in parts for index in part) == list(range(8))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_come_to_the_weights_of_one(alone, tmp_path) -> None:
    finish(start_two(tmp_path))
    assert (tmp_path / "rank-0").read_text() == (tmp_path / "rank-1").read_text()
    together = safetensors.torch.load_file(tmp_path / "tuned" / "weights.safetensors")
    state = alone.model.module.state_dict()
    assert together.keys() == state.keys()
    for name, tensor in state.items():
        assert together[name].dtype == torch.float64
        assert torch.allclose(together[name], tensor, rtol=0, atol=1e-12), name
    assert all(float((tmp_path / f"wrapped-{rank}").read_text()) < 1e-14 for rank in (0, 1))
    assert {path.name for path in (tmp_path / "tuned").iterdir()} >= {"card.json", "curves.png", "finetuning.json", "regions.csv"}


def test_alone_the_command_refuses_to_be_one_of_several(tmp_path, capsys) -> None:
    status = main(["finetune", "-i", "labels.csv", "-m", "demo", "-o", str(tmp_path / "tuned"), "--distributed"])
    assert status == 1
    assert "run `torchrun --nproc-per-node 2 -m streamview.cli finetune --distributed ...`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_by_two_processes_speaks_once(tmp_path) -> None:
    lines = ["slide_id,label,patient_id,mpp"]
    for number in range(8):
        tifffile.imwrite(tmp_path / f"s{number}.tif", picture(number, 64, 64), photometric="rgb", tile=(64, 64))
        lines.append(f"s{number},{('normal', 'lesion')[number % 2]},p{number},0.5")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    arguments = ["-i", "labels.csv", "-m", "demo", "-o", "tuned", "--epochs", "1", "--batch", "3", "--force", "--tensorboard", "events"]
    command = [*TORCHRUN, "-m", "streamview.cli", "finetune", "--distributed", *arguments]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1 of 1: training loss") == 1
    assert "tuned network: tuned" in done.stdout
    assert (tmp_path / "tuned" / "weights.safetensors").exists()
    assert len(list((tmp_path / "events").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_two_processes_resume_to_the_same_weights(alone, tmp_path) -> None:
    process = start_two(tmp_path, pause=1.0)
    state = tmp_path / "tuned" / "training.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    for rank in (0, 1):
        os.kill(int((tmp_path / f"pid-{rank}").read_text()), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode
    assert state.exists()
    finish(start_two(tmp_path))
    together = safetensors.torch.load_file(tmp_path / "tuned" / "weights.safetensors")
    for name, tensor in alone.model.module.state_dict().items():
        assert torch.allclose(together[name], tensor, rtol=0, atol=1e-12), name
