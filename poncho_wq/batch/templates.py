"""What ``poncho-wq batch template`` prints: distribute's own template, and a workflow in PROMINENCE's JSON."""

PYTHON = """\
---
meta:
  batch_name: your_jobset_name
  namespace: example_namespace
  matrix: ~
  capabilities:
    - gfortran
    - python3
    - apptainer
python:
  initialize:
    build_file:
      path: /path/to/build.py
    required_files:
      - path: /file/always/present/1.txt
        alias: optional_alias.txt
      - path: /another/file/2.json
        alias: ~
      - path: /maybe/python/utils_file.py
        alias: ~
  jobs:
    - name: job_1
      file:
        path: execute_job.py
      required_files:
        - path: job_configuration_file.json
          alias: ~
        - path: job_configuration_file_with_alias.json
          alias: input.json
"""

PROMINENCE = """\
{
  "name": "your_workflow_name",
  "jobs": [
    {
      "name": "first",
      "resources": {"cpus": 1, "memory": 1, "disk": 10, "nodes": 1, "walltime": 720},
      "tasks": [{"cmd": "python3 -c \\"print('hello')\\"", "image": "environment.json", "runtime": "singularity"}]
    },
    {
      "name": "second",
      "resources": {"cpus": 1, "memory": 1, "disk": 10, "nodes": 1, "walltime": 720},
      "tasks": [{"cmd": "python3 --version", "image": "environment.json", "runtime": "singularity"}]
    }
  ],
  "dependencies": {"first": ["second"]},
  "policies": {"maximumRetries": 1}
}
"""
