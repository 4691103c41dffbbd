"""What all DICOM exports say of themselves: UIDs, the equipment, the algorithm, and codes for words that no public scheme has."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from streamview.results import RESEARCH_USE, Prediction
from streamview.system.versions import versions

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset

__all__ = [
    "SCHEME",
    "algorithm_parameters",
    "date",
    "describe_algorithm",
    "description",
    "instance",
    "make_uid",
    "named_here",
    "run_time",
    "short",
    "version",
]

SCHEME = "99STREAMVIEW"
_LONGEST = 64  # characters of a short text, a name and a UID


def version() -> str:
    """Return the version of streamview; a source tree that was not installed has none."""
    return versions().get("streamview", "unknown")


def make_uid(*parts: object) -> str:
    """Return the UID of what `parts` determine, under the root 2.25: the same content has the same UID, other content another."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([version(), *parts], sort_keys=True, default=str)).int}"


def instance(kind: str, number: int, series_number: int, created: datetime, *parts: object) -> dict[str, Any]:
    """Return the arguments that highdicom's constructors share.

    Parameters
    ----------
    kind
        Of the series; `number` is that of the instance in it, from 1.
    created
        UTC; stands as the time of creation, so that the same result gives the same bytes.
    parts
        What determines the content of the series.
    """
    return {
        "series_instance_uid": make_uid("series", kind, created, *parts),
        "series_number": series_number,
        "sop_instance_uid": make_uid("instance", kind, number, created, *parts),
        "instance_number": number,
        "manufacturer": "streamview",
        "series_description": f"{kind}. {RESEARCH_USE}"[:_LONGEST],
        "content_date": created.date(),
        "content_time": created.time(),
        "specific_character_set": "ISO_IR 192",
    } | (
        {}
        if kind == "Report"
        else {"manufacturer_model_name": "streamview", "software_versions": version(), "device_serial_number": "none"}
    )


def run_time(run_id: str) -> datetime:
    """Return when a run began, UTC to the second, as its name says; now if it is not a name that streamview gave."""
    try:
        return datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return datetime.now(UTC).replace(microsecond=0, tzinfo=None)


def date(dataset: Dataset, created: datetime) -> None:
    """Set what highdicom takes from the clock or at random, so that the same result gives the same bytes."""
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = f"{created:%Y%m%d}", f"{created:%H%M%S}"
    dataset.ContributingEquipmentSequence[-1].ContributionDateTime = f"{created:%Y%m%d%H%M%S}"  # that of highdicom itself
    for organisation in dataset.get("DimensionOrganizationSequence", ()):
        organisation.DimensionOrganizationUID = make_uid("dimensions", dataset.SOPInstanceUID)


def named_here(meaning: str) -> CodedConcept:
    """Return a code of the private scheme for a word that DICOM and SNOMED CT lack, such as a network's class; one word has one code."""
    from highdicom.sr import CodedConcept

    return CodedConcept(hashlib.sha256(meaning.encode(errors="backslashreplace")).hexdigest()[:16], SCHEME, short(meaning))


def describe_algorithm(prediction: Prediction) -> AlgorithmIdentificationSequence:
    """Identify a network: name, hash of the weights as the version, and what else determines the result."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    return AlgorithmIdentificationSequence(
        name=short(prediction.model_name),
        family=codes.DCM.ArtificialIntelligence,
        version=prediction.identity.weights_sha256,
        source=f"streamview {version()}",
        parameters=algorithm_parameters(prediction),
    )


def algorithm_parameters(prediction: Prediction) -> dict[str, str]:
    """Return what determines a result beside the weights, and whether they were trained."""
    identity = prediction.identity
    return {
        "identity": identity.key,
        "card_sha256": identity.card_sha256,
        "precision": identity.precision,
        "region X,Y,WIDTH,HEIGHT": str(prediction.region).replace(",", " "),
        "trained": "yes" if prediction.trained else "no",
        "glass": identity.glass or "as-scanned",
    }


def description(text: str, prediction: Prediction) -> str:
    """Return a description that says so if the weights are random."""
    return short(text if prediction.trained else f"UNTRAINED, random weights: {text}")


def short(text: str) -> str:
    """Return at most 64 characters; a backslash, which separates values in DICOM, becomes a slash, and what is not printed a space."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("\\", "/")[:_LONGEST].strip() or "unnamed"
