"""The section of answers: probabilities, what to explain, the table of all results, and the exactness certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QTableWidgetItem,
)

from streamview_napari.canvas.camera import fly_to
from streamview_napari.panels.section import Section, error_label, labelled, plain_table, quiet_label, show_rows
from streamview_napari.panels.theme import set_role
from streamview_napari.requests.answers import Answer, describe_answer, describe_certificate, describe_faithfulness
from streamview_napari.requests.regions import describe_size

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview.inspection.certificate import Certificate
    from streamview.progress import Report, Step
    from streamview.results import Prediction
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["ResultSection", "describe_row", "describe_seconds"]

_BARS = 6  # classes with a bar; of more, the likeliest
_WIDEST = 110  # px of a class's name
_ROWS = 6  # of the table before it scrolls


def describe_row(answer: Answer, number: int, *, other: bool) -> list[str]:
    """Say all of an answer, for who points at its row."""
    prediction = answer.prediction
    return [
        f"Answer {number} for {prediction.slide_name}: {describe_size(prediction.shape, prediction.mpp)}",
        f"X,Y,WIDTH,HEIGHT in pixels: {prediction.region}",
        f"Network: {prediction.model_name}{', not the chosen one' if other else ''}",
        "No maps" if answer.saliency is None else f"Maps of {answer.saliency.target}",
        "Opened, not computed here" if answer.seconds is None else f"Computed in {describe_seconds(answer.seconds)}",
        f"Identity {prediction.identity.key}",
    ]


def describe_seconds(seconds: float | None) -> str:
    """Say how long something took: ``"12 s"``; a dash where it is not known."""
    from streamview.streaming.run.timing import format_seconds

    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 10 else format_seconds(seconds)


class ResultSection(Section):
    """What the network answered, and all its answers so far."""

    title = "Result"
    opens = "stays"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.bars = QGridLayout()
        self.bars.setHorizontalSpacing(8)
        self.bars.setVerticalSpacing(4)
        self.bars.setColumnStretch(1, 1)
        self.column.addLayout(self.bars)
        self.warning = quiet_label()
        self.warning.setToolTip("What to know of this answer.")
        self.column.addWidget(self.warning)
        self.target = QComboBox()
        self.target.setToolTip("Which class the maps explain. Another one is computed: one more forward and backward pass.")
        self.target.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.verify = QPushButton("Verify")
        self.verify.setToolTip(
            "Compare the streamed network with the plain one in float64, on windows of this region; the certificate is kept with the maps."
        )
        self.column.addLayout(labelled("Explain", self.target, self.verify))
        self.certificate = quiet_label()
        self.stop = QPushButton("Cancel")
        self.stop.setToolTip("Stop the comparison.")
        row = QHBoxLayout()
        row.addWidget(self.certificate, 1)
        row.addWidget(self.stop)
        self.column.addLayout(row)
        self.faithfulness = quiet_label()
        self.faithfulness.setToolTip("Whether the maps show what the network uses, as streamview faithfulness has measured it.")
        self.column.addWidget(self.faithfulness)
        self.problem = error_label()
        self.column.addWidget(self.problem)
        self.table = plain_table(["#", "Answer", "Maps of", "Network", "Time"])
        self.table.setToolTip("All answers for this slide; click one to go there. Grey: of another network than the chosen one.")
        self.table.setAccessibleName("Answers")
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for column in (0, 1, 4):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.column.addWidget(self.table)
        for hidden in (self.warning, self.certificate, self.stop, self.faithfulness, self.problem):
            hidden.hide()
        self._listed: list[Answer] = []
        self._verifying: Work | None = None
        self.target.activated.connect(self._target_chosen)
        self.verify.clicked.connect(self.start_verification)
        self.stop.clicked.connect(lambda: self._verifying and self._verifying.cancel())
        self.table.cellClicked.connect(lambda row, column: self.go_to(row))
        self.table.cellActivated.connect(lambda row, column: self.go_to(row))
        state.events.answers_changed.connect(self._list)
        state.events.model_changed.connect(lambda loaded: self._list())
        state.events.answer_selected.connect(lambda answer, ready: self._show(answer))
        self._list()

    def _list(self) -> None:
        """List the answers for the slide worked on; those of another network than the chosen one are dimmed, and named."""
        self._listed = self.state.answers_here
        loaded = self.state.loaded
        self.table.setRowCount(len(self._listed))
        for row, answer in enumerate(self._listed):
            prediction = answer.prediction
            other = loaded is not None and loaded.model.sha256 != prediction.identity.weights_sha256
            target = "–" if answer.saliency is None else str(answer.saliency.target)
            texts = (str(row + 1), describe_answer(prediction), target, prediction.model_name, describe_seconds(answer.seconds))
            tip = "\n".join(describe_row(answer, row + 1, other=other))
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setToolTip(tip)
                item.setTextAlignment(
                    Qt.AlignmentFlag.AlignVCenter | (Qt.AlignmentFlag.AlignRight if column == 4 else Qt.AlignmentFlag.AlignLeft)
                )
                if other:
                    item.setForeground(self.palette().placeholderText())
                self.table.setItem(row, column, item)
        show_rows(self.table, _ROWS)
        self.fill(bool(self._listed))
        self._show(self.state.selected)

    def _show(self, answer: Answer | None) -> None:
        """Show one answer, which is of the slide worked on."""
        if answer is None or answer not in self._listed:
            return
        row = self._listed.index(answer)
        self.table.selectRow(row)
        prediction, loaded = answer.prediction, self.state.loaded
        self.note(f"{row + 1} of {len(self._listed)} · {prediction.slide_name}")
        self._draw_bars(prediction)
        other = loaded is not None and loaded.model.sha256 != prediction.identity.weights_sha256
        warnings = [f"Answered by {prediction.model_name}, which is not the chosen network.", *prediction.warnings][not other :]
        self.warning.setText("\n".join(warnings))
        self.warning.setVisible(bool(warnings))
        self.target.clear()
        if answer.saliency is None:
            self.target.addItem("choose a class to explain")
        self.target.addItems(prediction.class_names)
        if answer.saliency is not None:
            if answer.saliency.target.against is not None:
                self.target.addItem(answer.saliency.target.name)
            self.target.setCurrentText(answer.saliency.target.name)
        verdicts, failed = ("", False) if answer.saliency is None else describe_faithfulness(answer.saliency)
        self.faithfulness.setText(verdicts)
        self.faithfulness.setVisible(bool(verdicts))
        set_role(self.faithfulness, "warning" if failed else "quiet")
        self.problem.hide()
        if self._verifying is None:
            self.certificate.setText("" if answer.certificate is None else describe_certificate(answer.certificate))
            self.certificate.setVisible(answer.certificate is not None)

    def _draw_bars(self, prediction: Prediction) -> None:
        while self.bars.count():
            item = self.bars.takeAt(0)
            widget = None if item is None else item.widget()
            if widget is not None:
                widget.hide()
                widget.deleteLater()
        probabilities = prediction.probabilities
        values = prediction.logits if probabilities is None else probabilities
        order = range(len(values)) if len(values) <= _BARS else sorted(range(len(values)), key=lambda k: -values[k])[:_BARS]
        for row, k in enumerate(order):
            name = QLabel()
            name.setMaximumWidth(_WIDEST)
            name.setText(name.fontMetrics().elidedText(prediction.class_names[k], Qt.TextElideMode.ElideRight, _WIDEST))
            name.setToolTip(prediction.class_names[k])
            value = QLabel(f"{values[k]:.3g}" if probabilities is None else f"{values[k]:.1%}")
            value.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            value.setToolTip(f"logit {prediction.logits[k]:.4g}")
            self.bars.addWidget(name, row, 0)
            if probabilities is not None:
                bar = QProgressBar()
                bar.setRange(0, 1000)
                bar.setValue(round(1000 * float(values[k])))
                bar.setFixedHeight(7)
                bar.setTextVisible(False)
                set_role(bar, "likeliest" if values[k] == values.max() else "other")
                bar.setAccessibleName(f"Probability of {prediction.class_names[k]}")
                self.bars.addWidget(bar, row, 1)
            self.bars.addWidget(value, row, 2)

    def _target_chosen(self) -> None:
        answer, name = self.state.selected, self.target.currentText()
        if answer is None or name not in answer.prediction.class_names:
            return
        if answer.saliency is not None and name == answer.saliency.target.name:
            return
        key = answer.prediction.identity.key
        for other in self._listed:
            if other.saliency is not None and other.prediction.identity.key == key and other.saliency.target.name == name:
                self.state.select(other)
                return
        self.state.events.explanation_wanted.emit(answer.prediction, name)

    def go_to(self, row: int) -> None:
        """Work on an answer: its maps alone are shown, and its region comes into view."""
        answer = self._listed[row]
        fly_to(self.viewer, answer.prediction.region, self._mpp(answer))
        self.state.select(answer)

    def _mpp(self, answer: Answer) -> tuple[float, float] | None:
        slide = self.state.slide
        return slide.mpp if slide is not None else None if answer.saliency is None else answer.saliency.mpp

    def start_verification(self) -> None:
        """Compare the streamed network with the plain one on windows of this answer's region."""
        answer, slide, loaded = self.state.selected, self.state.slide, self.state.loaded
        if answer is None or slide is None or self._verifying is not None:
            return
        prediction = answer.prediction
        if loaded is None or loaded.model.sha256 != prediction.identity.weights_sha256 or slide.identity != prediction.identity.source:
            self._fail(f"Choose the slide {prediction.slide_name} and the network {prediction.model_name} first: the answer is theirs.")
            return
        model = loaded.model

        def work(report: Report) -> Certificate:
            from streamview.inspection import verification

            return verification.verify(model, slide, prediction.region, report=report)

        self.problem.hide()
        self.certificate.setText("Comparing…")
        self._running(True)
        self._verifying = self.state.start(
            work,
            done=lambda certificate: self._verified(answer, certificate),
            failed=self._fail,
            cancelled=lambda: self._running(False),
            progress=self._step,
        )

    def _verified(self, answer: Answer, certificate: Certificate) -> None:
        self._running(False)
        self.state.certify(answer, certificate)

    def _step(self, step: Step) -> None:
        self.certificate.setText(f"Comparing, window {min(step.done + 1, step.total)} of {step.total}…")

    def _running(self, running: bool) -> None:
        if not running:
            self._verifying = None
        self.verify.setEnabled(not running)
        self.stop.setVisible(running)
        self.certificate.setVisible(running)

    def _fail(self, text: str) -> None:
        self._running(False)
        self.problem.setText(text)
        self.problem.show()
