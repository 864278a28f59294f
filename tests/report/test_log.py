"""The engines' own logs, as they really wrote them (shortened), and what may become of a log."""

from __future__ import annotations

import pytest

from poncho_wq.report.log import Log, read_log

DEBIAN = """\
# time manager_pid MANAGER START|END
# time manager_pid TASK taskid WAITING_RETRIEVAL worker_address

1795277055715441 27182 MANAGER START
1795277058215928 27182 TASK 1 WAITING default FIRST_RESOURCES {}
1795277058216431 27182 TASK 2 WAITING default FIRST_RESOURCES {}
1795277058216768 27182 WORKER worker-9ac79c 127.0.0.1:39850  CONNECTION
1795277058216849 27182 WORKER worker-9ac79c RESOURCES {"memory":[24105,"MB"],"disk":[66312,"MB"],"cores":[1,"cores"]}
1795277058249083 27182 TASK 2 RUNNING 127.0.0.1:39850  FIRST_RESOURCES {"memory":[24105,"MB"],"cores":[1,"cores"]}
1795277060199579 27182 TASK 2 WAITING_RETRIEVAL 127.0.0.1:39850
1795277060200709 27182 TASK 2 RETRIEVED SUCCESS  0  {} {}
1795277060200727 27182 TASK 2 DONE SUCCESS  0  {} {}
1795277060201359 27182 TASK 1 RUNNING 127.0.0.1:39850  FIRST_RESOURCES {"memory":[24105,"MB"],"cores":[1,"cores"]}
1795277060204199 27182 TASK 1 WAITING default FIRST_RESOURCES {}
1795277060204353 27182 TASK 1 RUNNING 127.0.0.1:39850  FIRST_RESOURCES {"memory":[24105,"MB"],"cores":[1,"cores"]}
1795277060396827 27182 TASK 1 WAITING_RETRIEVAL 127.0.0.1:39850
1795277060397937 27182 TASK 1 DONE SUCCESS  9  {} {}
1795277060642445 27182 WORKER worker-9ac79c 127.0.0.1:39850  DISCONNECTION EXPLICIT
"""

TODAY = """\
# time manager_pid TRANSFER (INPUT|OUTPUT) taskid cache_flag sizeinmb walltime filename
1795277384703217 768 WORKER worker-9aea07 127.0.0.1:45910  CONNECTION
1795277384742312 768 TRANSFER INPUT 1 1 40.393162 0.038082 poncho-env-b178efc0a20bf944.tar.gz
1795277384742370 768 TRANSFER INPUT 1 1 0.067167 0.000042 poncho_package_run-b842f1c89f81
1795277384742534 768 TASK 1 RUNNING 127.0.0.1:45910  FIRST_RESOURCES {"cores":[1,"cores"]}
1795277387318955 768 TRANSFER OUTPUT 1 0 0.000045 0.010170 poncho-result
1795277387319000 768 TASK 1 WAITING_RETRIEVAL 127.0.0.1:45910
1795277387319550 768 TRANSFER INPUT 4 1 0.000000 0.000004 poncho-env-b178efc0a20bf944.tar.gz
1795277387319653 768 TASK 4 RUNNING 127.0.0.1:45910  FIRST_RESOURCES {"cores":[1,"cores"]}
"""

TASKVINE = """\
# time manager_pid WORKER worker_id TRANSFER (INPUT|OUTPUT) filename size_in_mb wall_time_us start_time_us
1795277061341765 27446 TASK 1 READY default FIRST_RESOURCES 1 {"disk":[0,"MB"]}
1795277061342933 27446 WORKER worker-f2 CONNECTION 127.0.0.1:59186
1795277061342934 27446 WORKER worker-ba CONNECTION 127.0.0.1:59188
1795277061397880 27446 WORKER worker-f2 TRANSFER INPUT file-md5-d630 20652569 52147 1795277061345716
1795277061398079 27446 TASK 1 RUNNING worker-f2  FIRST_RESOURCES {"time_commit_start":[1795277061.25,"s"]}
1795277061507750 27446 WORKER worker-f2 CACHE_UPDATE file-md5-d630 20652569 82266 1795277061345736
1795277061525517 27446 WORKER worker-ba CACHE_UPDATE file-md5-d630 20652569 121667 1795277061401958
1795277063252148 27446 WORKER worker-f2 CACHE_UPDATE task-md5-6f44 48649022 1808828 1795277061428691
1795277063430823 27446 TASK 1 WAITING_RETRIEVAL worker-f2
1795277063433954 27446 TASK 1 RETRIEVED SUCCESS  0  {} {"time_worker_start":[1795277063.5,"s"],"x":[2,"MB"]}
1795277063433981 27446 TASK 1 DONE SUCCESS  0
"""


def read(text: str) -> Log:
    return read_log(text.splitlines(keepends=True))


def test_debians_work_queue() -> None:
    log = read(DEBIAN)
    assert not log.has_transfers
    assert log.addresses == {"worker-9ac79c": "127.0.0.1:39850"}
    latest = {each.task: each for each in log.attempts}
    assert (latest[2].worker, latest[2].started, latest[2].ended) == (
        "worker-9ac79c", 1795277058.249083, 1795277060.199579,
    )  # fmt: skip
    assert (latest[1].started, latest[1].result, latest[1].status) == (1795277060.204353, "SUCCESS", 9)
    assert len(log.attempts) == 3  # the first one of task 1 came to nothing
    assert log.submitted[1] == 1795277058.215928


def test_todays_work_queue_tells_what_it_sends() -> None:
    log = read(TODAY)
    assert log.has_transfers
    assert [(each.worker, each.name, each.size, each.source) for each in log.transfers] == [
        ("worker-9aea07", "poncho-env-b178efc0a20bf944.tar.gz", round(40.393162 * (1 << 20)), "manager"),
        ("worker-9aea07", "poncho_package_run-b842f1c89f81", round(0.067167 * (1 << 20)), "manager"),
    ]
    assert log.attempts[-1].ended is None


def test_taskvine_tells_of_peers_and_of_unpacking() -> None:
    log = read(TASKVINE)
    assert [(each.worker, each.name, each.source) for each in log.transfers] == [
        ("worker-f2", "file-md5-d630", "manager"),
        ("worker-ba", "file-md5-d630", "peer"),
        ("worker-f2", "task-md5-6f44", "unpacked"),
    ]
    assert log.transfers[2].seconds == 1.808828
    (attempt,) = log.attempts
    assert (attempt.started, attempt.began, attempt.ended) == (1795277061.25, 1795277063.5, 1795277063.430823)


@pytest.mark.parametrize("text", [DEBIAN, TODAY, TASKVINE])
def test_a_log_that_is_cut_or_spoilt_anywhere(text: str) -> None:
    whole = read(text)
    for end in range(0, len(text), 7):
        assert len(read(text[:end]).attempts) <= len(whole.attempts)
    spoilt = text.replace("TASK 1", "TASK x").replace("CONNECTION", "CONN\x00").replace("{", "{{")
    assert len(read(spoilt + "7 7 WORKER\n8 8 TASK\n9 9 TRANSFER INPUT\n1 1 TASK 1 DONE\n").attempts) <= 3
