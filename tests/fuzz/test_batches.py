"""Descriptions of batches: a batch, or all that is wrong with it."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from poncho_wq.batch.distribute import load as load_distribute
from poncho_wq.batch.document import from_json, to_json
from poncho_wq.batch.prominence.document import load as load_prominence
from poncho_wq.batch.templates import PROMINENCE, PYTHON
from tests.fuzz.campaign import Campaign
from tests.fuzz.strategies import changed, damaged, deep, documents
from tests.fuzz.test_descriptions import JSON_WORDS, YAML_WORDS

DISTRIBUTE = (
    PYTHON.encode(),
    (
        b"meta:\n  batch_name: b\n  namespace: n\n  matrix: @me:x.org\n  capabilities: [gpu, python3, big]\npython:\n"
        b"  initialize:\n    build_file: {path: build.py}\n    required_files: [{path: a.txt, alias: b/c}]\n  jobs:\n"
        b"    - name: one\n      file: build.py\n      required_files: [a.txt]\n"
        b"      slurm: {time: '1-2:03', mem_per_cpu: 4G}\n"
        b"    - {name: two, file: {path: a.txt}}\nslurm: {cpus_per_task: 2, ntasks: 3, nodes: 1, job_name: x}\n"
    ),
)
DISTRIBUTE_WORDS = (
    *YAML_WORDS, b"name: ../x\n", b"name: _build\n", b"apptainer: ~\n", b"alias: /etc/x\n", b"path: .\n",
    b"time: 99999999999\n", b"cpus_per_task: " + b"9" * 5000, b"mem_per_cpu: 1e9", b"ntasks: \xd9\xa3",
    b"time: '1:2:3:4'", b"matrix: @a:b:c:d",
)  # fmt: skip


def test_distributes_yaml(campaign: Campaign) -> None:
    for name in ("build.py", "a.txt"):
        (campaign.directory / name).write_text("pass\n")
    file = campaign.directory / "batch.yaml"

    def case(data: bytes) -> None:
        file.write_bytes(data)
        batch = load_distribute(file).batch
        assert from_json(to_json(batch)) == batch

    campaign.run("distribute's YAML", case, data=damaged(DISTRIBUTE, DISTRIBUTE_WORDS))


KEYS = (
    "name", "labels", "tasks", "resources", "policies", "inputs", "artifacts", "outputFiles", "outputDirs",
    "notifications", "jobs", "dependencies", "factories", "factory", "image", "cmd", "env", "workdir", "procsPerNode",
    "type", "runtime", "nodes", "cpus", "memory", "memoryPerCpu", "disk", "walltime", "maximumTaskRetries",
    "maximumRetries", "priority", "filename", "content", "url", "mountpoint", "event", "parameters", "parameterSets",
    "number", "start", "end", "step", "values", "placement", "leaveInQueue",
)  # fmt: skip
VALUES = (
    "singularity", "udocker", "openmpi", "sidecar", "repeat", "zip", "parameterSweep", "parametricSweep",
    "environment.json", "docker://x", "image.sif", "python3 -c 'x'", "jobFinished", "email", "first", "second",
    "aGVsbG8=", "dir:/mnt", "out/*.txt", "http://host/x.tar.gz", "file:///etc/passwd", "a.txt",
)  # fmt: skip
JOB = {
    "name": "first", "labels": {"a": "b"},
    "resources": {"cpus": 2, "memory": 1, "disk": 10, "nodes": 1, "walltime": 720, "memoryPerCpu": 1.5},
    "tasks": [{"cmd": "python3 x.py $a", "image": "environment.json", "runtime": "singularity", "env": {"A": 1},
    "workdir": "w"}], "policies": {"maximumTaskRetries": 1, "priority": 3, "maximumTimeInQueue": -1,
    "ignoreTaskFailures": True}, "inputs": [{"filename": "x.py", "content": "aGVsbG8="}], "outputFiles": ["out.txt"],
    "outputDirs": ["d"], "artifacts": [{"url": "a.txt"}], "notifications": [{"event": "jobFinished", "type": "email"}],
}  # fmt: skip
SECOND = {"name": "second", "tasks": [{"cmd": "mpi", "image": "docker://x", "type": "openmpi", "procsPerNode": 1}]}
WORKFLOW = {
    "name": "w", "jobs": [JOB, SECOND], "dependencies": {"first": ["second"]}, "policies": {"maximumRetries": 1},
    "factories": [
        {"name": "f", "type": "parameterSweep", "jobs": ["first"], "parameters": [{"name": "a", "start": 0, "end": 1,
        "step": 0.5}]}, {"name": "g", "type": "zip", "jobs": ["second"], "parameters": [{"name": "b", "values": [1,
        "x"]}]},
    ],
}  # fmt: skip
OLDER = {"jobs": [JOB], "factory": {"type": "repeat", "number": 3}}


def test_prominences_json(campaign: Campaign) -> None:
    (campaign.directory / "a.txt").write_text("x")
    (campaign.directory / "environment.json").write_text("{}")
    file = campaign.directory / "job.json"
    good = (JOB, SECOND, WORKFLOW, OLDER, json.loads(PROMINENCE))

    def case(data: bytes) -> None:
        file.write_bytes(data)
        batch = load_prominence(file).batch
        assert from_json(to_json(batch)) == batch

    texts = (changed(good, KEYS, VALUES) | documents(KEYS, VALUES)).map(lambda each: json.dumps(each).encode())
    broken = damaged(tuple(json.dumps(each).encode() for each in good), (*JSON_WORDS, deep('{"jobs":[')))
    campaign.run("PROMINENCE's JSON", case, data=texts | broken | st.binary(max_size=30))
