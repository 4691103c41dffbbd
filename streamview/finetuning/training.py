"""Fine-tuning: a trained network changed to answer labelled regions better, end to end, through the streaming engine."""

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
    """What fine-tuning came to.

    Parameters
    ----------
    model
        The tuned network: that of the epoch kept.
    history
        Losses and epochs.
    before, after
        Figures of the base and of the tuned network on the validation regions; None where there are none.
    rows
        Every validation region with both answers.
    out
        The model folder; None where none was asked for.
    warnings
        What whoever uses the network must know, a sentence each: that it is no better than always answering one class, that no region
        validated it, or that the base was best. The card of the network keeps them.
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
        """Number of the epoch kept; 0: no epoch was better than the base, whose weights these are."""
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
    tell: Callable[[str], None] = lambda said: None,
    save_seconds: float = 30.0,
) -> FinetuneResult:
    """Fine-tune a network on labelled regions.

    Every region is one image, streamed: the gradients are those of conventional training on whole regions, and the memory is that of a
    step. The statistics of BatchNorm stay those of the base, so a batch accumulated region by region equals the batch computed at once.

    Parameters
    ----------
    model
        The base, which stays as it is, also when training fails or is stopped.
    examples
        Labelled regions.
    settings
        How.
    out
        Folder that becomes the tuned model, to be opened with `load_model`; at any moment it holds the best network so far. A run that
        was stopped or killed goes on from there when it is called again with the same base, examples and settings, to the same weights.
        None: nothing is written.
    memory
        Bound on the memory of the process, bytes or ``"4GB"``; default half of what is free.
    ahead
        A forecast of the same run, whose choice of what a pass may take is then kept to.
    tile
        Rows and columns of a step on the network's grid, instead of choosing them.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    force
        Train although a label has fewer than ten patients.
    new_head
        Replace the head by a fresh one for the labels of the examples.
    restart
        Begin anew, whatever `out` holds of an earlier run.
    report
        Called after every step of the engine; may raise `Cancelled`.
    watch
        Called with the history when the base is judged, and after every step of the optimiser and every epoch.
    tell
        Told in words of what is gone on with, and of what makes the figures doubtful.
    save_seconds
        Write a checkpoint after a step of the optimiser when the last is so old; it changes nothing of the result.

    Returns
    -------
    FinetuneResult

    Raises
    ------
    LabelError
        When labels do not fit the network, are too few, or cannot be divided.
    TrainingError
        When the loss is not finite, or `out` holds something else.
    Cancelled
        When `report` says so; the last step of the optimiser that was complete is kept in `out`.
    StreamviewError
        When a slide or region cannot be read, the network cannot be streamed, memory does not fit, or the disk is full.

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
    folder = None if out is None else Path(out)
    if folder is not None:
        check_folder(folder, restart=restart)
    prepared = prepare(model, examples, settings, memory=memory, tile=tile, device=device, force=force, new_head=new_head)
    if prepared.doubt:
        tell(prepared.doubt)
    with ExitStack() as stack:
        stack.enter_context(full_float32(prepared.device))
        found = None
        if folder is not None:
            stack.enter_context(locked(folder))
            if restart:
                discard_checkpoint(folder)
            found = read_checkpoint(folder, prepared.making, model.file_sha256)
        trainer = stack.enter_context(Trainer(prepared, found, None if ahead is None else ahead.budget_bytes, report))
        save = _Saver(folder, trainer, save_seconds)
        if found is not None:
            tell(f"going on after {len(trainer.history.losses)} steps of the optimiser, in epoch {len(trainer.history.epochs)}")
        try:
            if found is None:
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
    """Writes checkpoints when they are due, and the model folder; does nothing without a folder."""

    def __init__(self, folder: Path | None, trainer: Trainer, seconds: float) -> None:
        self._folder, self._trainer, self._seconds = folder, trainer, seconds
        self._last = time.monotonic()

    def __call__(self, *, anyway: bool = False) -> None:
        due = time.monotonic() - self._last >= self._seconds
        if self._folder is not None and (due or anyway):
            write_checkpoint(self._folder, self._trainer.checkpoint())
            self._last = time.monotonic()

    def publish(self, *, finished: bool) -> Tuned:
        """Return the best network so far, and write it as a model folder."""
        trainer = self._trainer
        name = f"{trainer.prepared.base.card.name}-tuned" if self._folder is None else self._folder.resolve().name
        resamples = _RESAMPLES if finished else 0
        tuned = compare(trainer.prepared, trainer.history, trainer.logits, trainer.best, name, resamples=resamples)
        if self._folder is not None:
            publish(self._folder, trainer.prepared, trainer.history, tuned, finished=finished)
        return tuned
