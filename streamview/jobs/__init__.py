"""The job folder: what a command leaves behind, readable by people, spreadsheets and later runs.

::

    job/ predictions.csv  summary.md  runs/<run-id>.json  slides/<slide>.json
         saliency/<slide>/<region>.ome.zarr, or <region>-<target>.ome.zarr where several targets were asked for
         certificates/<pixels>-<weights>.json

``slides/*.json`` are the record; ``predictions.csv`` and ``summary.md`` are written from them after every slide, so that a crash loses at
most the slide it fell on. Every file appears whole or not at all, and a record is changed by one process at a time.
"""

from streamview.jobs.aggregation import Aggregate, aggregate, by_policy
from streamview.jobs.folder import Job
from streamview.jobs.records import RegionResult, Run, SlideRecord, StoredMap, new_run_id, region_id
from streamview.jobs.tables import in_words

__all__ = [
    "Aggregate",
    "Job",
    "RegionResult",
    "Run",
    "SlideRecord",
    "StoredMap",
    "aggregate",
    "by_policy",
    "in_words",
    "new_run_id",
    "region_id",
]
