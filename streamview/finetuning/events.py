"""Fine-tuning in TensorBoard: its history as event files, written as it grows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from streamview.errors import TrainingError
from streamview.finetuning.history import Epoch, History
from streamview.finetuning.training import Watch

__all__ = ["event_writer"]


@contextmanager
def event_writer(folder: str | os.PathLike[str]) -> Iterator[Watch]:
    """Write the history to TensorBoard's event files; give the result to `finetune` as ``watch``.

    Per optimiser step ``loss/training``; per epoch, at its last step, ``loss/validation``, ``learning rate``, ``seconds an epoch`` and the
    metrics ``validation/accuracy``, ``validation/auc of CLASS``, ``validation/spearman of VALUE``. Of a run that resumes, what the
    earlier one wrote stays, but for steps that are done again.

    Parameters
    ----------
    folder
        Of the event files; made where it is missing.

    Raises
    ------
    TrainingError
        If the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError("events for TensorBoard need the package tensorboard; run: pip install 'streamview[tensorboard]'") from None
    writer: Any = None
    steps = epochs = 0

    def watch(history: History) -> None:
        nonlocal writer, steps, epochs
        if writer is None:
            if len(history.epochs) > 1 or history.losses:  # resumed
                steps, epochs = len(history.losses), len(history.epochs)
            writer = SummaryWriter(os.fspath(folder), purge_step=steps + 1 if steps else None)
        for number, loss in enumerate(history.losses[steps:], steps + 1):
            writer.add_scalar("loss/training", loss, number)
        for epoch in history.epochs[epochs:]:
            for name, value in _scalars(epoch).items():
                writer.add_scalar(name, value, epoch.number * history.per_epoch)
        steps, epochs = len(history.losses), len(history.epochs)
        writer.flush()

    try:
        yield watch
    finally:
        if writer is not None:
            writer.close()


def _scalars(epoch: Epoch) -> dict[str, float]:
    scalars: dict[str, float | None] = {"loss/validation": epoch.validation_loss}
    if epoch.number:
        scalars |= {"learning rate": epoch.learning_rate, "seconds an epoch": epoch.seconds}
    metrics = epoch.validation
    if metrics is not None:
        scalars["validation/accuracy"] = None if metrics.accuracy is None else metrics.accuracy.value
        for output in metrics.outputs:
            for name, figure in (("auc", output.auc), ("spearman", output.spearman)):
                scalars[f"validation/{name} of {output.name}"] = None if figure is None else figure.value
    return {name: value for name, value in scalars.items() if value is not None and value == value}
