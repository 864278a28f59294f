"""PROMINENCE's Python client on this package's batches: the same classes and JSON, run by workers of ours.

``parts``, ``factories``, ``job`` and ``workflow`` are the classes; ``checking`` reads their JSON and ``translation``
makes a ``Batch`` of it; ``client`` hands that over to ``service``, one process for each user and spool that runs what
is handed over, and reaches into running jobs by way of ``job_channel``.  https://github.com/prominence-eosc, docs.
"""
