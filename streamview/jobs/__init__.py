"""The job folder: the results of commands, readable by people, spreadsheets and later runs.

::

    job/ predictions.csv  slides.csv  patients.csv  summary.md  runs/<run-id>.json  slides/<slide>.json
         saliency/<slide>/<region>.ome.zarr, or <region>-<target>.ome.zarr for a run with several targets
         faithfulness/<slide>/<region>/faithfulness.json, or <region>-<target>/
         certificates/<pixels>-<weights>.json  leases/<what is worked on>

``slides/*.json`` are the records. The tables and ``summary.md`` are written from them, now and then during a run and at its end, so that a
slide costs the same in a job of ten and of ten thousand; a crash loses at most the current region. Every file is written completely or
not at all. A slide is worked on by one process at a time, and a record changed by one (`streamview.files.leases`).
"""

from streamview.jobs.aggregation import Aggregate, Group, aggregate, by_policy, find_aggregation
from streamview.jobs.folder import Job
from streamview.jobs.records import RegionResult, Run, SlideRecord, SlideWork, StoredMap, new_run_id, region_id

__all__ = [
    "Aggregate",
    "Group",
    "Job",
    "RegionResult",
    "Run",
    "SlideRecord",
    "SlideWork",
    "StoredMap",
    "aggregate",
    "by_policy",
    "find_aggregation",
    "new_run_id",
    "region_id",
]
