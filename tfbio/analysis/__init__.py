"""What came out of runs: tables and learning curves."""

from tfbio.analysis.report import Estimate, Row, Run, collect, csv, estimate, markdown, report, summarize

__all__ = ["Estimate", "Row", "Run", "collect", "csv", "estimate", "markdown", "report", "summarize"]
