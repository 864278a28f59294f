"""The page, from a run that was made up to have everything in it: hostile names, failures, three engines."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from poncho_wq.cli.report import main
from poncho_wq.drawing.page import amount, span
from poncho_wq.drawing.plots import Row, Stack, spread, stacks
from poncho_wq.report import make_report, read_run
from poncho_wq.report.page import as_page
from poncho_wq.report.text import as_text
from tests.report.browser import look, needs_browser, pixels

NASTY = "<script>document.title='taken'</script>&\"'"
ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two workers, two environments; the first task of each environment on a worker unpacks it."""
    place = tmp_path / "run"
    for name in ("environments", "told"):
        (place / name).mkdir(parents=True)
    facts = {"format": 1, "version": "1", "began": 1000.0, "ended": None, "host": NASTY, "program": NASTY,
             "engine": "work_queue", "log": "transactions"}  # fmt: skip
    (place / "run.json").write_text(json.dumps(facts))
    for identity, size, name in ((ONE, 40_000_000, "numpy"), (TWO, 60_000_000, "<b>pandas</b>")):
        layers = [{"name": f"{name}-1.0", "size": size // 2, "unpacked": size, "digest": "d"},
                  {"name": "runtime", "size": 1000, "unpacked": 5000, "digest": "e"}]  # fmt: skip
        (place / "environments" / identity).write_text(
            json.dumps(
                {"identity": identity, "size": size, "python": "3.11.7", "built": identity == ONE,
                 "packages": [f"{name}==1.0"], "unpacked": 3 * size, "layers": layers,
                 "pins": [{"package": f"{name}==1.0", "layers": [f"{name}-1.0"]}],
                 "inputs": {f"poncho-env-{identity[:16]}.tar.gz": size}}
            )
        )  # fmt: skip
    log = ["# time manager_pid TASK", "1000000000 1 WORKER worker-a 10.0.0.1:5 CONNECTION",
           "1000000000 1 WORKER worker-b 10.0.0.2:5 CONNECTION"]  # fmt: skip
    tasks = []
    seen = set()
    for number in range(1, 25):
        worker, identity = number % 2, (ONE, TWO)[number % 3 == 0]
        start = 1_000_000_000 + number * 400_000
        cold = (worker, identity) not in seen
        seen.add((worker, identity))
        wait = 900 if cold else 1
        end = start + wait * 1000 + 300_000
        log.append(f"{start} 1 TASK {number} RUNNING 10.0.0.{worker + 1}:5  FIRST_RESOURCES {{}}")
        log.append(f"{end} 1 TASK {number} WAITING_RETRIEVAL 10.0.0.{worker + 1}:5 ")
        log.append(f"{end} 1 TASK {number} DONE SUCCESS  {1 if number == 5 else 0}  {{}} {{}}")
        tasks.append({"task": number, "name": NASTY if number == 7 else "fit", "environment": identity, "at": 1000.0})
        (place / "told" / str(number)).write_text(
            f"poncho-task t.{number}\n"
            f"poncho-stats 1 identity={identity} host=h waited=0 unpacked={int(cold)} evicted=0 "
            f"unpacking={wait // 10 * cold} total={wait // 10}\n"
            f"poncho-run 1 at={start + wait * 1000 + 30_000} start=30000 load=2000 import=90000 call=250000\n"
        )
    (place / "transactions").write_text("\n".join(log) + "\n")
    (place / "tasks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in tasks) + '{"task": 25, "na')
    return place


class Links(HTMLParser):
    """Everything that a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "rect", "circle", "i", "br"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe", "object", "base"):
            self.found.append(tag)
        self.found += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset") or name[:2] == "on"
        ]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect", "circle", "i"):
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(run: Path) -> None:
    text = as_page(make_report(read_run(run)))
    links = Links()
    links.feed(text)
    assert links.found == []
    assert links.open == ["html"] or links.open == []
    assert not re.search(r"url\(|@import|https?://", text)
    assert "&lt;script&gt;" in text
    assert "<b>pandas" not in text


def test_the_sums(run: Path) -> None:
    report = make_report(read_run(run))
    one, two = report.totals
    assert (one.environment, one.tasks, one.failed, one.unpackings, one.warm) == (ONE, 16, 1, 2, 14)
    assert (two.tasks, two.unpackings, two.unpacking) == (8, 2, 1.8)
    assert (one.sent, two.sent, report.counted) == (80_000_000, 120_000_000, True)
    assert report.slowest[0].unpacked
    assert round(one.importing, 3) == round(16 * 0.09, 3)
    (pin,) = report.resend[ONE]
    assert (pin.package, pin.layer, pin.whole) == ("numpy==1.0", 20_001_000, 40_000_000)


def test_measured_bytes_win_over_counted_ones(run: Path) -> None:
    log = run / "transactions"
    name = f"poncho-env-{ONE[:16]}.tar.gz"
    lines = log.read_text().splitlines()
    lines.insert(3, f"1000100000 1 TRANSFER INPUT 1 1 38.146973 0.1 {name}")
    log.write_text("\n".join(["# time manager_pid TRANSFER (INPUT|OUTPUT) taskid", *lines]) + "\n")
    report = make_report(read_run(run))
    assert not report.counted
    assert [cost.sent for cost in report.totals] == [40_000_000, 0]


def test_what_another_version_of_a_package_sends_depends_on_the_engine(run: Path) -> None:
    """Work Queue is sent ranges of files with layers in them; TaskVine parts, and what is small as one file."""
    assert "sends again, to each worker" in as_text(make_report(read_run(run)))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "engine": "taskvine"}))
    assert "sends all " in as_text(make_report(read_run(run)))


def test_layers_as_inputs_are_sent_one_by_one(run: Path) -> None:
    path = run / "environments" / ONE
    facts = json.loads(path.read_text())
    other = json.loads((run / "environments" / TWO).read_text())
    path.write_text(json.dumps({**facts, "inputs": {"poncho-part-a": 1, "poncho-part-b": 2}}))
    (run / "environments" / TWO).write_text(json.dumps({**other, "inputs": {"poncho-part-b": 2, "poncho-part-c": 4}}))
    report = make_report(read_run(run))
    assert "sends again, to each worker" in as_text(report)
    # What both are made of came to each of the two workers with the first.
    assert [cost.sent for cost in report.totals] == [2 * 3, 2 * 4]


def test_without_the_engines_log_tasks_tell_enough(run: Path) -> None:
    (run / "transactions").unlink()
    report = make_report(read_run(run))
    assert {cost.worker for cost in report.costs} == {"h"}
    assert len(report.slowest) == 10
    assert "fit #" in as_text(report)


def test_a_terminal_is_not_taken_over(run: Path) -> None:
    lines = (run / "tasks.jsonl").read_text().replace('"fit"', json.dumps("\x1b]0;taken\x07fit\n" + "x" * 300))
    (run / "tasks.jsonl").write_text(lines)
    text = as_text(make_report(read_run(run), slowest=24))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert "Slowest tasks" in capsys.readouterr().out
    assert main([str(run), "--json", "--html", str(tmp_path / "r.html"), "--slowest", "3"]) == 0
    assert len(json.loads(capsys.readouterr().out)["slowest"]) == 3
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert main([str(tmp_path / "nothing")]) == 1
    assert "poncho_wq.record" in capsys.readouterr().err
    assert main([str(run), "--html", str(tmp_path / "no" / "r.html")]) == 1
    assert "--html" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([str(run), "--slowest", "-1"])
    assert ended.value.code == 2


@needs_browser
def test_the_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "r.html", tmp_path / "r.png"
    page.write_text(as_page(make_report(read_run(run))))
    seen = look(page, picture)
    title = re.search(r"<title>(.*?)</title>", seen, re.DOTALL)
    assert title is not None
    assert title[1].startswith("&lt;script&gt;")  # it was shown, not run
    # A bar for each task, drawn; the parser of a browser closes what is not well formed.
    assert len(re.findall(r"<g><title>", seen)) == 24
    width, _, colours = pixels(picture)
    assert width == 1240
    for colour in ("d9822b", "b4466f", "2f74c0", "2f9e6e"):
        assert bytes.fromhex(colour) in colours, f"nothing is drawn in #{colour}"


def test_numbers_for_people() -> None:
    assert [span(x) for x in (0.04, 9.94, 9.96, 59.4, 60, 200, 7500)] == [
        "0.0 s", "9.9 s", "10 s", "59 s", "1 min", "3 min 20 s", "2 h 5 min",
    ]  # fmt: skip
    assert [amount(x) for x in (0, 999, 1500, 42e6, 1.24e9)] == ["0 B", "999 B", "1.5 kB", "42 MB", "1.2 GB"]


def test_plots_of_nothing_are_nothing() -> None:
    assert spread([Row("warm", "x", ())], label="l", unit="s") == ""
    assert stacks([Stack("x", (("cold", 0.0, ""),), "")], label="l") == ""
    assert spread([Row("warm", "x", (0.0,))], label="l", unit="s").count("<circle") == 1
    assert spread([Row("warm", "x", tuple(range(1, 9000)))], label="l", unit="s").count("<circle") == 2000
