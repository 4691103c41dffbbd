"""The buttons of the verdicts: one press gives a verdict and its confidence."""

from __future__ import annotations

from functools import partial

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QGridLayout, QPushButton, QSizePolicy, QWidget

from streamview.review.vocabulary import Vocabulary
from streamview_napari.panels.section import quiet_label
from streamview_napari.panels.theme import set_role

__all__ = ["VerdictButtons"]

_HIGH, _SIDE = 34, 28  # px: of a verdict's button, of one of its steps of confidence
_BESIDE = 5  # steps of confidence for which there is room beside a verdict


class VerdictButtons(QWidget):
    """A row for each verdict: its button, and one for each step of confidence.

    A step of confidence gives both at once. A verdict alone waits for its confidence, unless one is at hand or none is asked for.
    """

    decided = Signal(str, object)
    """Emitted with the verdict and the confidence, an int or None."""
    waiting = Signal(str)
    """Emitted with the verdict that waits for its confidence; empty when none does any more."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self._usual: int | None = None
        self._pending = ""
        self._beside = vocabulary.confidence <= _BESIDE  # whether a verdict and its steps share a row
        self.buttons: list[QPushButton] = []
        self.steps: list[list[QPushButton]] = []
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(3)
        grid.setVerticalSpacing(4)
        for row, verdict in enumerate(vocabulary.verdicts):
            button = QPushButton(f"{row + 1}   {verdict}")
            button.setCheckable(True)
            button.setMinimumHeight(_HIGH)
            button.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            button.setAccessibleName(verdict)
            button.setToolTip(f"{verdict}. Key {row + 1}")
            set_role(button, "verdict")
            button.clicked.connect(partial(self._choose, row))
            if self._beside:
                grid.addWidget(button, row, 0)
            else:
                grid.addWidget(button, 2 * row, 0, 1, vocabulary.confidence)
            self.buttons.append(button)
            self.steps.append([self._step(grid, row, confidence) for confidence in range(1, vocabulary.confidence + 1)])
        if vocabulary.confidence:
            last = 2 * len(vocabulary.verdicts)
            sure = quiet_label("sure")
            sure.setAlignment(Qt.AlignmentFlag.AlignRight)
            grid.addWidget(quiet_label("unsure"), last, int(self._beside), 1, 2)
            grid.addWidget(sure, last, vocabulary.confidence - 2 + int(self._beside), 1, 2)
        if self._beside:
            grid.setColumnStretch(0, 1)

    def _step(self, grid: QGridLayout, row: int, confidence: int) -> QPushButton:
        verdict, most = self.vocabulary.verdicts[row], self.vocabulary.confidence
        step = QPushButton(str(confidence))
        step.setCheckable(True)
        step.setFixedHeight(_HIGH if self._beside else _SIDE)
        step.setMinimumWidth(0)
        step.setAccessibleName(f"{verdict}, confidence {confidence} of {most}")
        step.setToolTip(f"{verdict}, confidence {confidence} of {most}. Keys {row + 1} {confidence % 10}")
        set_role(step, "confidence")
        step.clicked.connect(lambda: self._decide(row, confidence))
        if self._beside:
            step.setFixedWidth(_SIDE)
            grid.addWidget(step, row, confidence)
        else:
            grid.addWidget(step, 2 * row + 1, confidence - 1)
        return step

    def show_given(self, verdict: str | None, confidence: int | None, usual: int | None) -> None:
        """Show what is stored.

        Parameters
        ----------
        verdict, confidence
            Of this step; None before.
        usual
            The confidence of a verdict that is given without one; None: it must be given.
        """
        self._usual = usual
        self._await("")
        for word, button, steps in zip(self.vocabulary.verdicts, self.buttons, self.steps, strict=True):
            button.setChecked(word == verdict)
            for number, step in enumerate(steps, 1):
                step.setChecked(word == verdict and number == confidence)

    def press(self, digit: int) -> None:
        """Take a digit, 0 for ten: a verdict, or the confidence of the one that waits for it."""
        digit = digit or 10
        if not self.isEnabled():
            return
        if self._pending and digit <= self.vocabulary.confidence:
            self._decide(self.vocabulary.verdicts.index(self._pending), digit)
        elif not self._pending and digit <= len(self.buttons):
            self._choose(digit - 1)

    def forget(self) -> None:
        """Wait for no confidence any more."""
        self._await("")

    def _choose(self, row: int) -> None:
        if not self.vocabulary.confidence or self._usual is not None:
            self._decide(row, self._usual)
        else:
            self._await(self.vocabulary.verdicts[row])

    def _decide(self, row: int, confidence: int | None) -> None:
        self._await("")
        self.decided.emit(self.vocabulary.verdicts[row], confidence)

    def _await(self, verdict: str) -> None:
        changed = verdict != self._pending
        self._pending = verdict
        if verdict:
            for word, button in zip(self.vocabulary.verdicts, self.buttons, strict=True):
                button.setChecked(word == verdict)
        if changed:
            self.waiting.emit(verdict)
