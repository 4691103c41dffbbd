"""A fine-tuning that is going to be killed, run by the tests in a process of its own: ``python -m tests.support.interrupted OUT``."""

import sys

import torch

from streamview.finetuning import Settings, finetune
from tests.support.finetuning import model_of, separable, small_network

SETTINGS = Settings(batch=2, epochs=6, patience=0, learning_rate=1e-3)


def run(out, **how):
    """Train the same network on the same pictures, to the same weights."""
    torch.manual_seed(5)
    module = small_network(norm=True, dropout=0.3)
    return finetune(model_of(module), separable(12), SETTINGS, out=out, force=True, tile=(32, 32), save_seconds=0, **how)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], watch=lambda history: print(len(history.losses), flush=True))
