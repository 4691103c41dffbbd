"""Predictions and saliency maps: what they are, whose they are, and how they are kept.

Raw float32 values are the record; how a map is shown (blur, cap, colour) is the concern of `streamview.results.display`. On disk a
saliency is an OME-Zarr 0.5 image (https://ngff.openmicroscopy.org/0.5/) with the channels ``absolute`` and ``signed``, a subgroup
``evidence`` with its own coarser image where the network offers it, and everything else under the root attribute ``streamview``.
"""

from streamview.results.difference import difference
from streamview.results.maps import REDUCTIONS, Method, Plane, Saliency, SaliencyMap
from streamview.results.methods import GRADIENT, ExplanationMethod
from streamview.results.prediction import RESEARCH_USE, Identity, Precision, Prediction, Target
from streamview.results.store import MapWriter, open_saliency, save_saliency

__all__ = [
    "GRADIENT",
    "REDUCTIONS",
    "RESEARCH_USE",
    "ExplanationMethod",
    "Identity",
    "MapWriter",
    "Method",
    "Plane",
    "Precision",
    "Prediction",
    "Saliency",
    "SaliencyMap",
    "Target",
    "difference",
    "open_saliency",
    "save_saliency",
]
