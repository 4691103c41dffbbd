"""The controls of fine-tuning: a preset, what is trained, and six numbers."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QGridLayout, QLabel, QLineEdit, QSizePolicy, QVBoxLayout, QWidget

from streamview.finetuning.settings import PRESETS, Settings
from streamview_napari.panels.section import LABEL_WIDTH, labelled
from streamview_napari.requests.finetuning import NUMBERS, PARTS, TITLES, parse_settings, write_settings

__all__ = ["Controls"]

_TIPS = {
    "learning_rate": "How far each step goes; ten times less where the loss jumps about.",
    "weight_decay": "Pulls weights towards 0, against learning by heart.",
    "batch": "Regions whose gradients are summed for one step of the optimiser.",
    "validation": "Share of the patients that are not trained on and judge the network; 0: none. A split in the table counts first.",
    "epochs": "Passes over the training regions at most.",
    "patience": "Ends after so many epochs without a better validation loss; 0: never.",
}


class Controls(QWidget):
    """How the network is tuned; a preset fills in all else."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.preset = QComboBox()
        self.preset.setToolTip("A starting point for all that follows. The head alone takes seconds an epoch, and few regions.")
        self.part = QComboBox()
        self.part.setToolTip("Which weights change; statistics of BatchNorm never do.")
        for chooser, texts in ((self.preset, TITLES), (self.part, PARTS)):
            chooser.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            for key, text in texts.items():
                chooser.addItem(text, key)
        self.numbers = {name: QLineEdit() for name in NUMBERS}
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        column.addLayout(labelled("Preset", self.preset))
        column.addLayout(labelled("Train", self.part))
        grid = QGridLayout()
        grid.setSpacing(6)
        grid.setColumnMinimumWidth(0, LABEL_WIDTH)
        for number, (name, line) in enumerate(self.numbers.items()):
            row, pair = divmod(number, 2)
            line.setToolTip(_TIPS[name])
            line.textChanged.connect(lambda text: self.changed.emit())
            line.setAccessibleName(NUMBERS[name])
            grid.addWidget(QLabel(NUMBERS[name]), row, 2 * pair)
            grid.addWidget(line, row, 2 * pair + 1)
            grid.setColumnStretch(2 * pair + 1, 1)
        column.addLayout(grid)
        self.preset.currentIndexChanged.connect(self._fill)
        self.part.currentIndexChanged.connect(lambda index: self.changed.emit())
        self._fill()

    def settings(self) -> Settings:
        """Return what the controls say.

        Raises
        ------
        TrainingError
            When one of them holds what it cannot.
        """
        return parse_settings(
            self.preset.currentData(), self.part.currentData(), {name: line.text() for name, line in self.numbers.items()}
        )

    def _fill(self) -> None:
        chosen = PRESETS[self.preset.currentData()]
        self.part.setCurrentIndex(self.part.findData(chosen.train))
        for name, text in write_settings(chosen).items():
            self.numbers[name].setText(text)
