"""The section of answers: probabilities, what to explain, the table of all results, and the exactness certificate."""

from __future__ import annotations

from dataclasses import replace
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
from streamview_napari.records import expect_map, map_on, note
from streamview_napari.requests.answers import Answer, describe_certificate
from streamview_napari.requests.regions import describe_size

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview.inspection.certificate import Certificate
    from streamview.progress import Report, Step
    from streamview.results import Prediction, Saliency
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["ResultSection", "describe_seconds"]

_BARS = 6  # classes with a bar; of more, the likeliest
_WIDEST = 110  # px of a class's name
_ROWS = 6  # of the table before it scrolls


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
        self.problem = error_label()
        self.column.addWidget(self.problem)
        self.table = plain_table(["#", "Prediction", "Time", "Identity"])
        self.table.setAccessibleName("Answers")
        self.table.setToolTip("All answers so far; click one to fly there.")
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for column in (0, 2, 3):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.column.addWidget(self.table)
        for hidden in (self.warning, self.certificate, self.stop, self.problem):
            hidden.hide()
        self._shown: Answer | None = None
        self._verifying: Work | None = None
        self.target.activated.connect(self._target_chosen)
        self.verify.clicked.connect(self.start_verification)
        self.stop.clicked.connect(lambda: self._verifying and self._verifying.cancel())
        self.table.cellClicked.connect(lambda row, column: self.go_to(row))
        state.events.answered.connect(self._add)
        state.events.result_selected.connect(self._select)
        self.fill(False)
        for answer in state.answers:
            self._add(answer)

    def _add(self, answer: Answer) -> None:
        prediction = answer.prediction
        row = self.table.rowCount()
        self.table.insertRow(row)
        answer_text = prediction.label
        probabilities = prediction.probabilities
        if answer_text is None:
            answer_text = f"{prediction.class_names[0]} {float(prediction.logits[0]):.3g}"
        elif prediction.task == "class" and probabilities is not None:
            answer_text = f"{answer_text} {float(probabilities.max()):.1%}"
        target = "" if answer.saliency is None else f"\nMaps of {answer.saliency.target}"
        texts = (str(row + 1), answer_text or "none", describe_seconds(answer.seconds), prediction.identity.key[:8])
        size = describe_size(prediction.shape, prediction.mpp)
        tips = (
            f"Region {row + 1} of {prediction.slide_name}: {size}\nX,Y,WIDTH,HEIGHT in pixels: {prediction.region}",
            f"{prediction.model_name}{target}",
            "Computed in this time" if answer.seconds is not None else "Opened, not computed here",
            prediction.identity.key,
        )
        for column, (text, tip) in enumerate(zip(texts, tips, strict=True)):
            item = QTableWidgetItem(text)
            item.setToolTip(tip)
            item.setTextAlignment(
                Qt.AlignmentFlag.AlignVCenter | (Qt.AlignmentFlag.AlignLeft if column < 2 else Qt.AlignmentFlag.AlignRight)
            )
            self.table.setItem(row, column, item)
        show_rows(self.table, _ROWS)
        self.fill(True)
        self._show(answer)

    def _select(self, saliency: Saliency | None) -> None:
        selected = next((answer for answer in self.state.answers if saliency is not None and answer.saliency is saliency), None)
        if selected is not None:
            self._show(selected)

    def _show(self, answer: Answer) -> None:
        self._shown = answer
        row = self.state.answers.index(answer)
        self.table.selectRow(row)
        self.note(f"region {row + 1}")
        prediction = answer.prediction
        self._draw_bars(prediction)
        self.warning.setText("\n".join(prediction.warnings))
        self.warning.setVisible(bool(prediction.warnings))
        self.target.clear()
        if answer.saliency is None:
            self.target.addItem("choose a class to explain")
        self.target.addItems(prediction.class_names)
        if answer.saliency is not None:
            if answer.saliency.target.against is not None:
                self.target.addItem(answer.saliency.target.name)
            self.target.setCurrentText(answer.saliency.target.name)
        self.problem.hide()
        if self._verifying is None:
            self._show_certificate(answer)

    def _show_certificate(self, answer: Answer) -> None:
        layers = [] if answer.saliency is None else self.state.maps_of(answer.saliency)
        certificates = (expect_map(layer).certificate for layer in layers)
        text = next((describe_certificate(certificate) for certificate in certificates if certificate is not None), "")
        self.certificate.setText(text)
        self.certificate.setVisible(bool(text))

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
        answer, name = self._shown, self.target.currentText()
        if answer is None or name not in answer.prediction.class_names:
            return
        if answer.saliency is not None and name == answer.saliency.target.name:
            return
        key = answer.prediction.identity.key
        for other in self.state.answers:
            if other.saliency is not None and other.prediction.identity.key == key and other.saliency.target.name == name:
                self.go_to(self.state.answers.index(other), fly=False)
                return
        self.state.events.explanation_wanted.emit(answer.prediction, name)

    def go_to(self, row: int, *, fly: bool = True) -> None:
        """Fly to an answer's region and show its maps alone."""
        answer = self.state.answers[row]
        slide = self.state.slide
        if fly:
            mpp = answer.saliency.mpp if answer.saliency is not None else None if slide is None else slide.mpp
            fly_to(self.viewer, answer.prediction.region, mpp)
        if answer.saliency is not None:
            layers = self.state.maps_of(answer.saliency)
            default = next((layer for layer in reversed(layers) if layer is self.state.map_layer), layers[-1] if layers else None)
            for layer in self.viewer.layers:
                if map_on(layer) is not None:
                    layer.visible = layer is default
            if default is not None:
                self.state.select_map(default)
        self._show(answer)

    def start_verification(self) -> None:
        """Compare the streamed network with the plain one on windows of this answer's region."""
        answer, slide, loaded = self._shown, self.state.slide, self.state.loaded
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
        text = describe_certificate(certificate)
        layers = [] if answer.saliency is None else self.state.maps_of(answer.saliency)
        for layer in layers:
            note(layer, replace(expect_map(layer), certificate=certificate))
        self.certificate.setText(text)
        self.certificate.show()

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
