"""What is wrong with this machine, and the command that mends it: the findings of ``poncho-wq doctor``."""

from poncho_wq.doctor.examination import examine
from poncho_wq.doctor.finding import Finding, Level
from poncho_wq.doctor.node import worker_script

__all__ = ["Finding", "Level", "examine", "worker_script"]
