"""DICOM: maps, hotspots and predictions of a DICOM slide, in its study and its frame of reference (the extra ``dicom``).

Only a DICOM slide has the identities that such files carry; for another none are invented, and `read_source` refuses it.
"""

from streamview.export.dicom.annotations import write_annotations
from streamview.export.dicom.parametric_map import Storage, write_parametric_maps
from streamview.export.dicom.report import Verdict, write_report
from streamview.export.dicom.source import Source, read_source
from streamview.export.dicom.write import write_dicom

__all__ = ["Source", "Storage", "Verdict", "read_source", "write_annotations", "write_dicom", "write_parametric_maps", "write_report"]
