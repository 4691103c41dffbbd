"""Fine-tuning of a trained network on labelled regions, end to end, through the streaming engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from streamview.errors import Cancelled
from streamview.evaluation import Metrics
from streamview.finetuning.checkpoint import check_folder, discard_checkpoint, locked, read_checkpoint, write_checkpoint
from streamview.finetuning.forecast import TrainingForecast
from streamview.finetuning.history import History
from streamview.finetuning.preparation import prepare
from streamview.finetuning.publication import Compared, Tuned, compare, publish
from streamview.finetuning.ranks import current_ranks
from streamview.finetuning.settings import Settings
from streamview.finetuning.trainer import Trainer
from streamview.labels.regions import Example
from streamview.networks import Model
from streamview.progress import Report
from streamview.streaming.cuda import full_float32

__all__ = ["FinetuneResult", "Watch", "finetune"]

Watch = Callable[[History], None]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, eq=False)
class FinetuneResult:
    """The result of fine-tuning.

    Parameters
    ----------
    model
        The tuned network, with the weights of the best epoch.
    history
        Losses and epochs.
    before, after
        Metrics of base and tuned network on the validation regions; None if there are none.
    rows
        Every validation region with both networks' logits.
    out
        The model folder; None if nothing was written.
    warnings
        Warnings for users of the network, one sentence each: that it is no better than always answering one class, that it was not
        validated, or that the base was best. They are also in its card.
    """

    model: Model
    history: History
    before: Metrics | None
    after: Metrics | None
    rows: tuple[Compared, ...]
    out: Path | None
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> int:
        """Number of the best epoch; 0: no epoch was better than the base, whose weights were kept."""
        return self.history.best


def finetune(
    model: Model,
    examples: Sequence[Example],
    settings: Settings = Settings(),  # noqa: B008
    *,
    out: str | os.PathLike[str] | None = None,
    memory: str | int | None = None,
    ahead: TrainingForecast | None = None,
    tile: tuple[int, int] | None = None,
    device: str = "auto",
    force: bool = False,
    new_head: bool = False,
    restart: bool = False,
    report: Report | None = None,
    watch: Watch = lambda history: None,
    tell: Callable[[str], None] = lambda message: None,
    save_seconds: float = 30.0,
) -> FinetuneResult:
    """Fine-tune a network on labelled regions.

    Every region is streamed as one image: the gradients are those of conventional training on whole regions, in the memory of a step.
    BatchNorm keeps the statistics of the base, so a batch accumulated region by region equals the batch computed at once.

    Where `torch.distributed` has been initialised, as under ``torchrun``, all its processes call this alike, and each takes one of every
    so many regions of a batch: the result is that of one process, but for rounding. Rank 0 writes the folder.

    Parameters
    ----------
    model
        The base; it is never changed, even if training fails or is stopped.
    examples
        Labelled regions.
    settings
        The settings.
    out
        Folder of the tuned model, for `load_model`; at any moment it holds the best network so far. Called again with the same base,
        examples and settings, a run that was stopped or killed resumes and ends at the same weights. None: nothing is written.
    memory
        Memory limit of the process, bytes or ``"4GB"``; default half of the free memory.
    ahead
        A forecast of the same run, whose memory budget for a pass is then used.
    tile
        Rows and columns of a step on the network's grid; default chosen by memory.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    force
        Train even if a label has fewer than ten patients.
    new_head
        Replace the head by a new one for the labels of the examples.
    restart
        Start over, discarding an earlier run in `out`.
    report
        Called after every step of the engine; may raise `Cancelled`.
    watch
        Called with the history after the validation of the base, and after every optimiser step and epoch.
    tell
        Called with messages: that a run resumes, and why the metrics are unreliable.
    save_seconds
        Write a checkpoint after an optimiser step if the last is older than this; the result does not depend on it.

    Returns
    -------
    FinetuneResult

    Raises
    ------
    LabelError
        If labels do not fit the network, are too few, or cannot be split.
    TrainingError
        If the loss is not finite, or `out` holds other files.
    Cancelled
        If `report` raises it; the last complete optimiser step is saved in `out`.
    StreamviewError
        If a slide or region cannot be read, the network cannot be streamed, memory is too small, or the disk is full.

    Examples
    --------
    >>> from dataclasses import replace
    >>> import streamview
    >>> from streamview.finetuning import PRESETS
    >>> from streamview.labels.regions import Example
    >>> from streamview.slides.synthetic import synthetic_region
    >>> examples = []
    >>> for seed in range(4):  # stands for regions of yours, one patient each
    ...     pixels, _ = synthetic_region(128, 128, seed=seed, lesion_share=0.3 * (seed % 2))
    ...     label = ("normal", "lesion")[seed % 2]
    ...     examples.append(Example(pixels, label, patient=f"patient-{seed}", slide_id=f"slide-{seed}", mpp=0.5))
    >>> base = streamview.load_model("demo")
    >>> result = streamview.finetune(base, examples, replace(PRESETS["head"], epochs=1), force=True)
    >>> result.after.regions, isinstance(result.model, streamview.Model)
    (2, True)
    """
    ranks = current_ranks()
    folder = Path(out) if out is not None and ranks.first else None
    if folder is not None:
        check_folder(folder, restart=restart)
    prepared = prepare(model, examples, settings, memory=memory, tile=tile, device=device, force=force, new_head=new_head)
    if prepared.doubt:
        tell(prepared.doubt)
    with ExitStack() as stack:
        stack.enter_context(full_float32(prepared.device))
        checkpoint = None
        if folder is not None:
            stack.enter_context(locked(folder))
            if restart:
                discard_checkpoint(folder)
            checkpoint = read_checkpoint(folder, prepared.making, model.file_sha256)
        checkpoint = ranks.from_first(checkpoint)
        trainer = stack.enter_context(Trainer(prepared, checkpoint, None if ahead is None else ahead.budget_bytes, report, ranks))
        save = _Saver(folder, trainer, save_seconds)
        if checkpoint is not None:
            tell(f"resuming after {len(trainer.history.losses)} optimiser steps, in epoch {len(trainer.history.epochs)}")
        try:
            if checkpoint is None:
                trainer.begin()
                save(anyway=True)
            save.publish(finished=False)
            watch(trainer.history)
            while not trainer.over:
                if trainer.epoch_is_complete:
                    trainer.end_epoch()
                    if trainer.history.best == trainer.history.epochs[-1].number:
                        save.publish(finished=False)
                else:
                    trainer.step()
                save()
                watch(trainer.history)
        except Cancelled:
            if trainer.history.epochs:
                save(anyway=True)
            raise
        tuned = save.publish(finished=True)
        if folder is not None:
            discard_checkpoint(folder)
    return FinetuneResult(tuned.model(prepared.base), trainer.history, tuned.before, tuned.after, tuned.rows, folder, tuned.warnings)


class _Saver:
    """Writes due checkpoints and the model folder; without a folder it writes nothing."""

    def __init__(self, folder: Path | None, trainer: Trainer, seconds: float) -> None:
        self._folder, self._trainer, self._seconds = folder, trainer, seconds
        self._last = time.monotonic()

    def __call__(self, *, anyway: bool = False) -> None:
        due = time.monotonic() - self._last >= self._seconds
        if self._folder is not None and (due or anyway):
            write_checkpoint(self._folder, self._trainer.checkpoint())
            self._last = time.monotonic()

    def publish(self, *, finished: bool) -> Tuned:
        """Write the best network so far as a model folder, and return it."""
        trainer = self._trainer
        name = f"{trainer.prepared.base.card.name}-tuned" if self._folder is None else self._folder.resolve().name
        resamples = _RESAMPLES if finished else 0
        tuned = compare(trainer.prepared, trainer.history, trainer.logits, trainer.best, name, resamples=resamples)
        if self._folder is not None:
            publish(self._folder, trainer.prepared, trainer.history, tuned, finished=finished)
        return tuned
