"""What environments cost a run of tasks: read from the directory that ``poncho_wq.record`` left."""

from poncho_wq.report.costs import Report, make_report
from poncho_wq.report.run import Run, read_run

__all__ = ["Report", "Run", "make_report", "read_run"]
