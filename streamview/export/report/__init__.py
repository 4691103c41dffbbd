"""The report of a job or of results: one HTML file for people and a JSON file for programs.

::

    records, or results ──> ReportSlide ... ──> page.py: review.html, sidecar.py: review.json
               gather.py, drawing.py            with report.html, report.css, report.js
"""

from streamview.export.report.content import ReportSlide
from streamview.export.report.writing import render_results, write_report, write_results

__all__ = ["ReportSlide", "render_results", "write_report", "write_results"]
