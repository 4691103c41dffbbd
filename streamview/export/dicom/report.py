"""A prediction, and readers' verdicts, as a measurement report: a Comprehensive 3D SR after TID 1500."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamview.errors import StreamviewError
from streamview.export.dicom.provenance import SCHEME, algorithm_parameters, date, instance, make_uid, named_here, short, version
from streamview.export.dicom.source import Source, as_stated
from streamview.files import atomic
from streamview.results import RESEARCH_USE, Prediction

if TYPE_CHECKING:
    from highdicom.sr import MeasurementsAndQualitativeEvaluations, PlanarROIMeasurementsAndQualitativeEvaluations
    from pydicom.dataset import Dataset

__all__ = ["Verdict", "write_report"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reader's answer for the slide.

    Parameters
    ----------
    reader
        A pseudonym; it is written into the file.
    modality
        ``"unaided"``: before or without the network's answer. ``"aided"``: with it.
    verdict
        The answered class.
    confidence
        On the session's scale; None if not given.

    Raises
    ------
    StreamviewError
        If the modality is unknown.
    """

    reader: str
    modality: Literal["unaided", "aided"]
    verdict: str
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.modality not in ("unaided", "aided"):
            raise StreamviewError(f"reader {self.reader}: modality {self.modality!r}; expected unaided or aided")


def write_report(
    prediction: Prediction,
    source: Source,
    path: Path,
    created: datetime,
    *,
    maps: Sequence[Dataset] = (),
    verdicts: Sequence[Verdict] = (),
) -> Dataset:
    """Write the prediction for its region, and verdicts on the slide, referring to slide and maps by UID.

    Classes and verdicts are codes of the private scheme 99STREAMVIEW, since a network's names are no terms of SNOMED CT.

    Parameters
    ----------
    prediction
        The prediction.
    source
        The slide.
    path
        The file.
    created
        UTC, see `streamview.export.dicom.provenance.instance`.
    maps
        Headers of the Parametric Maps that explain it.
    verdicts
        The readers' answers.

    Raises
    ------
    StreamviewError
        If the prediction is of another slide, or the disk is full.
    """
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.codedict import codes

    if prediction.identity.source != source.identity:
        raise StreamviewError(f"{prediction.slide_name}: the prediction is of another slide; give the DICOM slide that it is of")
    parts = (
        *(source.header.SOPInstanceUID, prediction.identity.key, prediction.logits.tolist(), prediction.warnings),
        *([header.SOPInstanceUID for header in maps], [astuple(verdict) for verdict in verdicts]),
    )
    common = instance("Report", 1, 813, created, *parts)
    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=make_uid("observer"), name="streamview", manufacturer_name="streamview", model_name=f"streamview {version()}"
        ),
    )
    with as_stated():
        groups: list[Any] = [_answer(prediction, source, maps, common["sop_instance_uid"])]
        groups += [_verdict(one, number, source, common["sop_instance_uid"]) for number, one in enumerate(verdicts)]
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=device),
            procedure_reported=codes.SCT.Microscopy,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
            referenced_images=[source.header],
        )
        report = sr.Comprehensive3DSR(
            evidence=[source.header, *maps],
            content=content[0],
            is_complete=True,
            coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="streamview: names of classes and measurements")],
            **common,
        )
        date(report, created)
        with atomic.disk_errors(path):
            report.save_as(path, enforce_file_format=True)
    return report


def _answer(prediction: Prediction, source: Source, maps: Sequence[Dataset], uid: str) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """The outputs of the network for its region, in the frame of reference, with the maps that explain them."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    region, probabilities = prediction.region, prediction.probabilities
    top, left, bottom, right = region.y - 0.5, region.x - 0.5, region.y_stop - 0.5, region.x_stop - 0.5
    corners = np.array([(top, left), (top, right), (bottom, right), (bottom, left), (top, left)])
    measurements, evaluations = [], []
    for index, name in enumerate(prediction.class_names):
        if probabilities is not None:
            concept = named_here(f"Probability of {name}")
            measurements.append(sr.Measurement(concept, float(probabilities[index]), codes.UCUM.NoUnits))
        concept = named_here(f"Logit of {name}" if prediction.task != "regression" else f"Output {name}")
        measurements.append(sr.Measurement(concept, float(prediction.logits[index]), codes.UCUM.NoUnits))
    label = prediction.label
    if prediction.task == "multilabel" and label:
        evaluations = [sr.QualitativeEvaluation(named_here("Class present"), named_here(name)) for name in label.split("; ")]
    identity = prediction.identity
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(make_uid("answer", uid), identifier=short(f"prediction {identity.key[:16]}")),
        referenced_region=sr.ImageRegion3D(
            sr.GraphicTypeValues3D.POLYGON, source.positions(corners), frame_of_reference_uid=source.header.FrameOfReferenceUID
        ),
        algorithm_id=sr.AlgorithmIdentification(
            name=short(prediction.model_name),
            version=identity.weights_sha256,
            parameters=[f"{name} = {value}" for name, value in algorithm_parameters(prediction).items()],
        ),
        finding_type=named_here(label) if prediction.task == "class" and label else None,
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )
    notes = [RESEARCH_USE, *prediction.warnings]
    notes += [] if prediction.trained else ["Untrained network: its weights are random."]
    items = group[0].ContentSequence
    items.extend(sr.TextContentItem(codes.DCM.Comment, note, sr.RelationshipTypeValues.CONTAINS) for note in notes)
    for header in maps:
        mapping = header.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
        explained = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
        concept = sr.CodedConcept(explained.CodeValue, explained.CodingSchemeDesignator, explained.CodeMeaning)
        items.append(sr.ImageContentItem(concept, header.SOPClassUID, header.SOPInstanceUID, relationship_type="CONTAINS"))
    return group


def _verdict(verdict: Verdict, number: int, source: Source, uid: str) -> MeasurementsAndQualitativeEvaluations:
    """One reader's answer, with the reader as the observer of the group."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    confidence = [] if verdict.confidence is None else [sr.Measurement(named_here("Confidence"), verdict.confidence, codes.UCUM.NoUnits)]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            make_uid("verdict", number, uid), identifier=short(f"verdict of {verdict.reader}, {verdict.modality}")
        ),
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source.header)],
        measurements=confidence,
        finding_type=named_here(verdict.verdict),
        qualitative_evaluations=[sr.QualitativeEvaluation(named_here("Reading"), named_here(verdict.modality))],
    )
    context = sr.RelationshipTypeValues.HAS_OBS_CONTEXT
    group[0].ContentSequence.extend(
        [
            sr.CodeContentItem(codes.DCM.ObserverType, codes.DCM.Person, context),
            sr.PnameContentItem(codes.DCM.PersonObserverName, short(verdict.reader), context),
        ]
    )
    return group
