"""The job folder: the results of commands, readable by people, spreadsheets and later runs.

::

    job/ predictions.csv  summary.md  runs/<run-id>.json  slides/<slide>.json
         saliency/<slide>/<region>.ome.zarr, or <region>-<target>.ome.zarr for a run with several targets
         certificates/<pixels>-<weights>.json

``slides/*.json`` are the records; ``predictions.csv`` and ``summary.md`` are written from them after every slide, so that a crash loses at
most the current slide. Every file is written completely or not at all, and a record is locked while it changes.
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
