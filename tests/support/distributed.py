"""A fine-tuning by several processes, run by the tests: ``torchrun --nproc-per-node 2 -m tests.support.distributed OUT SECONDS``."""

import copy
import hashlib
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import streamview
from streamview.finetuning import Settings, finetune
from tests.support.finetuning import model_of, separable, small_network

SETTINGS = Settings(batch=5, epochs=2, patience=0, learning_rate=1e-3, validation=0.25, initialise="lsuv")
"""A batch of five is not divided evenly, and the last of an epoch is one region alone."""


def train(out, **how):
    """Train in float64 on pictures that are made anew."""
    torch.manual_seed(5)
    module = small_network(dropout=0.3).double()
    return finetune(model_of(module), separable(16), SETTINGS, out=out, force=True, tile=(32, 32), save_seconds=0, **how)


def digest(module: torch.nn.Module) -> str:
    """Hash of all weights."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())).hexdigest()


def wrapped_difference() -> float:
    """Largest difference of torch's DistributedDataParallel around a streamed network, an image a rank, from the batch as a whole."""
    torch.manual_seed(1)
    network, image = small_network().double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    whole = copy.deepcopy(network)
    (whole(image).square().sum() / 2).backward()
    together = DistributedDataParallel(streamview.stream(network, tile=(32, 32)))
    together(image[dist.get_rank()][None]).square().sum().backward()
    pairs = zip(network.parameters(), whole.parameters(), strict=True)
    return max(float((streamed.grad - plain.grad).abs().max()) for streamed, plain in pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    out, pause, rank = Path(sys.argv[1]), float(sys.argv[2]), dist.get_rank()
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    result = train(out / "tuned", watch=lambda history: time.sleep(pause))
    (out / f"wrapped-{rank}").write_text(str(wrapped_difference()))
    (out / f"rank-{rank}").write_text(digest(result.model.module))
    dist.destroy_process_group()
