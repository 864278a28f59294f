"""Which files of local modules are shipped, and when the archive of them is made anew."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import PonchoTask, local_code, runner
from poncho_wq.analysis.model import LocalModule, Reach
from poncho_wq.analyze import reach
from poncho_wq.engines import core
from poncho_wq.engines.shadowing import refuse_shadowing
from poncho_wq.errors import EngineError
from poncho_wq.prepare import Environment
from poncho_wq.progress import Progress, shown_by
from poncho_wq.spec import EnvSpec
from tests.written import Write, written_project


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files into a project that is on the path."""
    yield from written_project(tmp_path / "project", monkeypatch)


def packed(path: Path, *, sources: tuple[Path, ...] = (), name: str | None = None) -> Any:
    module = LocalModule(name=name or path.stem, path=path, root=path.parent)
    return local_code.pack_local(Reach(local_modules=(module,), sources=sources))


def names(code: Any) -> set[str]:
    with zipfile.ZipFile(code.file.path) as archive:
        return set(archive.namelist())


def text(code: Any, name: str) -> str:
    with zipfile.ZipFile(code.file.path) as archive:
        return archive.read(name).decode()


def settle() -> None:
    """Let files come to an age at which their times can be trusted."""
    time.sleep(2 * local_code._TICK_NS / 1e9)


# -- what is shipped


def test_a_package_is_shipped_with_its_data_and_without_caches(write: Write) -> None:
    project = write(
        {
            "pk/__init__.py": "", "pk/data/table.csv": "1,2", "pk/deep/__init__.py": "", "pk/deep/x.py": "",
            "pk/build/__init__.py": "", "pk/__pycache__/x.pyc": "", "pk/.venv/lib/y.py": "", "pk/env/pyvenv.cfg": "",
            "pk/env/lib/z.py": "", "pk/node_modules/a.js": "", "pk/x.py~": "", "pk/old.pyc": "", "pk/.git/HEAD": "",
            "pk/pk.egg-info/PKG-INFO": "", "pk/.mypy_cache/x": "", "pk/.hidden": "", "other.py": "",
        }
    )  # fmt: skip
    assert names(packed(project / "pk")) == {
        "pk/__init__.py", "pk/data/table.csv", "pk/deep/__init__.py", "pk/deep/x.py", "pk/build/__init__.py",
        "pk/.hidden",
    }  # fmt: skip
    assert names(packed(project / "other.py")) == {"other.py"}
    assert names(packed(project / "pk", name="called")) >= {"called/__init__.py"}, "package_dir of setuptools"


def test_the_archive_is_the_same_for_the_same_files(write: Write) -> None:
    project = write({"pk/__init__.py": "x = 1\n", "pk/run.sh": "#!/bin/sh\n"})
    (project / "pk/run.sh").chmod(0o700)
    first = packed(project / "pk")
    os.utime(project / "pk/__init__.py", (1, 1))
    (project / "pk/__init__.py").chmod(0o600)
    again = packed(project / "pk")
    assert again.file.name == first.file.name
    assert again.file.path == first.file.path, "Work Queue knows a cached file by its path"
    assert first.size == Path(first.file.path).stat().st_size
    (project / "pk/run.sh").chmod(0o600)
    assert packed(project / "pk").file.name != first.file.name
    assert first.modules[0].name in "pk"


def test_git_says_what_is_ignored_but_not_what_is_needed(write: Write) -> None:
    extension = "fast" + local_code._EXTENSIONS[0]
    project = write(
        {
            "pk/__init__.py": "", "pk/_version.py": "", "pk/secret.env": "", "pk/out/result.csv": "",
            "pk/out/gen.py": "", f"pk/{extension}": "", "pk/kept.log": "",
            "pk/gone.log": "", "pk/notes.md": "", "pk/sub/.gitignore": "x*",
            "pk/sub/x.txt": "", "pk/sub/y.txt": "", ".gitignore": "_version.py\n*.env\nout/\n*.so\n*.log\n",
        }
    )  # fmt: skip
    git(project, "init")
    git(project, "add", "-f", "pk/kept.log")
    reached = (project / "pk/__init__.py", project / "pk/_version.py", project / "pk/out/gen.py")
    expected = {
        "pk/__init__.py", "pk/_version.py", "pk/out/gen.py", f"pk/{extension}", "pk/kept.log", "pk/notes.md",
        "pk/sub/.gitignore", "pk/sub/y.txt",
    }  # fmt: skip
    settle()
    assert names(packed(project / "pk", sources=reached)) == expected
    write({".gitignore": "_version.py\n*.env\nout/\n*.so\n*.log\n*.md\n"})
    assert names(packed(project / "pk", sources=reached)) == expected - {"pk/notes.md"}, "an edited .gitignore counts"


def git(project: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(project), *words], check=True, capture_output=True)


def test_a_package_in_an_ignored_place_is_shipped_whole(write: Write) -> None:
    """Such as a virtual environment in a work tree."""
    project = write({"scratch/pk/__init__.py": "", "scratch/pk/x.txt": "", ".gitignore": "scratch/\n"})
    git(project, "init")
    assert names(packed(project / "scratch/pk")) == {"pk/__init__.py", "pk/x.txt"}


def test_without_git_nothing_of_it_is_needed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write({"pk/__init__.py": "", "pk/x.log": "", ".gitignore": "*.log\n"})
    git(project, "init")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert names(packed(project / "pk")) == {"pk/__init__.py", "pk/x.log"}


def test_symbolic_links(write: Write) -> None:
    project = write({"pk/__init__.py": "", "elsewhere/data.txt": "far"})
    (project / "pk/data").symlink_to(project / "elsewhere")
    (project / "pk/self").symlink_to(project / "pk")
    (project / "pk/broken").symlink_to(project / "nothing")
    os.mkfifo(project / "pk/pipe")
    code = packed(project / "pk")
    assert names(code) == {"pk/__init__.py", "pk/data/data.txt"}
    assert text(code, "pk/data/data.txt") == "far"


def test_an_editable_install_knows_its_version_on_the_worker(write: Write, tmp_path: Path) -> None:
    site = tmp_path / "site"
    project = write({"src/edited/__init__.py": "import importlib.metadata as m\nversion = m.version('edited')\n"})
    info = site / "edited-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 1.5\n")
    (info / "direct_url.json").write_text(f'{{"url": "file://{project}", "dir_info": {{"editable": true}}}}')
    (site / "edited.pth").write_text(f"{project}/src\n")
    sys.path[:0] = [str(site), str(project / "src")]
    try:
        code = local_code.pack_local(reach(function("import edited\ndef f(): return edited.version")))
        assert code is not None
        assert names(code) == {"edited/__init__.py", "edited-1.5.dist-info/METADATA"}
        assert str(project).encode() not in Path(code.file.path).read_bytes()
    finally:
        del sys.path[:2]
    unpacked = runner._unpacked(code.file.path, str(tmp_path))
    (found,) = importlib.metadata.distributions(path=[unpacked])
    assert found.version == "1.5"


def function(source: str) -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["f"]


# -- the limit


def test_the_limit_names_the_largest_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write({"pk/__init__.py": "", "pk/small.txt": "x", "pk/large.bin": "x" * 3_000_000})
    monkeypatch.setenv("PONCHO_CODE_LIMIT", "2")
    with pytest.raises(EngineError) as caught:
        packed(project / "pk")
    assert "3.0 MB, more than the limit of 2.0 MB" in str(caught.value)
    assert str(caught.value).index("large.bin") < str(caught.value).index("small.txt")
    assert "PONCHO_CODE_LIMIT" in str(caught.value)
    monkeypatch.setenv("PONCHO_CODE_LIMIT", "4")
    assert packed(project / "pk").size < 100_000, "compressed"
    monkeypatch.setenv("PONCHO_CODE_LIMIT", "much")
    write({"pk/small.txt": "y"})
    with pytest.raises(EngineError, match="no number of megabytes"):
        packed(project / "pk")


def test_the_size_is_told(write: Write) -> None:
    project = write({"pk/__init__.py": ""})
    told: list[Progress] = []
    with shown_by(told.append):
        code = packed(project / "pk")
    assert [(each.stage, each.detail, each.done, each.unit) for each in told] == [("code", "pk", code.size, "bytes")]


def test_what_cannot_be_read_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write({"pk/__init__.py": "", "pk/x.txt": ""})
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "x.txt":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(EngineError, match=r"pk/x.txt: .* cannot be read: Permission denied"):
        packed(project / "pk")


# -- when it is made anew


def edit(path: Path) -> None:
    path.write_text("changed!\n")


def restore_time(path: Path) -> None:
    before = path.stat()
    path.write_text("y = 1\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text("y = 1\n")
    fresh.replace(path)


@pytest.mark.parametrize("change", [edit, restore_time, replace, lambda p: p.unlink(), lambda p: p.chmod(0o755),
                                    lambda p: (p.parent / "new.txt").write_text("new")])  # fmt: skip
def test_every_change_is_noticed_and_nothing_else_costs(
    change: Callable[[Path], Any], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write({"pk/__init__.py": "", "pk/sub/x.txt": "x = 1\n"})
    settle()
    first = packed(project / "pk")
    with monkeypatch.context() as patch:
        patch.setattr(local_code, "_make", None)
        assert packed(project / "pk") is first, "not made again"
    change(project / "pk/sub/x.txt")
    assert packed(project / "pk").file.name != first.file.name


def test_an_edit_in_the_same_tick_is_noticed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """File times advance in steps: two contents of one size may have the same."""
    project = write({"pk/__init__.py": "x = 1\n"})
    same = os.stat(project)
    monkeypatch.setattr(local_code, "_of", lambda info: (same.st_ctime_ns, 6, 1))
    first = packed(project / "pk")
    write({"pk/__init__.py": "x = 2\n"})
    assert text(packed(project / "pk"), "pk/__init__.py") == "x = 2\n"
    assert text(first, "pk/__init__.py") == "x = 1\n", "an earlier task keeps what it was made with"


def test_a_forked_child_makes_its_own(write: Write) -> None:
    project = write({"pk/__init__.py": ""})
    settle()
    first = packed(project / "pk")
    pid = os.fork()
    if pid == 0:
        ok = packed(project / "pk").file.path != first.file.path
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0


# -- by name or by value


def travels(source: dict[str, str], module: str, write: Write) -> tuple[frozenset[str], set[str], set[str]]:
    """What goes by value, what is shipped, and the packages that `f` of a module needs."""
    import importlib

    write(source)
    found = reach(importlib.import_module(module).f)
    return found.by_value, {each.name for each in found.local_modules}, {each.name for each in found.distributions}


def test_a_function_s_own_module_goes_by_value_with_what_it_reaches(write: Write) -> None:
    source = {"own.py": "import packaging, helped\ndef f(): return helped.g()\n", "helped.py": "def g(): return 1\n"}
    assert travels(source, "own", write) == ({"own"}, {"helped"}, set())


@pytest.mark.parametrize(
    ("body", "by_name"),
    [
        ("def f(): return 1", False),
        ("def f(): return __file__", True),
        ("from pathlib import Path\nDATA = Path(__file__).parent / 'd.txt'\ndef f(): return DATA.read_text()", True),
        ("OTHER = '/etc/hosts'\ndef f(): return OTHER", False),
        ("from importlib.resources import files\ndef f(): return files(__package__)", True),
        ("def f():\n    from . import part\n    return part.g()", False),
        ("def f():\n    from . import back\n    return back.g()", True),
        ("class K: pass\ndef f(): return g()\ndef g():\n    import pk.back\n    return pk.back.K is K", True),
    ],
)
def test_code_that_needs_its_own_module_goes_by_name(body: str, by_name: bool, write: Write) -> None:
    source = {
        "pk/__init__.py": "", "pk/own.py": f"import packaging\n{body}\n", "pk/part.py": "def g(): return 1\n",
        "pk/back.py": "from pk.own import f, __name__ as n\nK = None\ndef g(): return n\n",
    }  # fmt: skip
    by_value, shipped, packages = travels(source, "pk.own", write)
    assert by_value == (set() if by_name else {"pk.own"})
    # Imported on the worker, the module brings its import lines with it.
    assert packages == ({"packaging"} if by_name else set())
    assert shipped == ({"pk"} if by_name or "part" in body else set())


def test_a_package_s_own_function_goes_by_name(write: Write) -> None:
    assert travels({"pk/__init__.py": "def f(): return 1\n"}, "pk", write) == (frozenset(), {"pk"}, set())


def test_a_namespace_with_parts_in_two_folders(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write({"one/space/a.py": "x = 1\n", "two/space/b.py": "y = 2\n"})
    for each in ("one", "two"):
        monkeypatch.syspath_prepend(str(project / each))
    code = local_code.pack_local(reach(function("import space.a, space.b\ndef f(): return space.a.x, space.b.y")))
    assert names(code) == {"space/a.py", "space/b.py"}


def test_instances_of_local_classes_go_by_name(write: Write) -> None:
    write({"shapes.py": "class Box:\n    n = 2\n"})
    import shapes  # type: ignore[import-not-found]

    t = PonchoTask(len, [shapes.Box()])
    assert t.code_size > 0
    assert t._job._arguments.modules == {"shapes"}
    assert b"n = 2" not in Path(t._job._function_file.path).read_bytes()
    assert PonchoTask(len, [1]).code_size == 0
    assert t.clone().code_size == t.code_size


# -- shadowing, as far as the manager can tell


def environment(tmp_path: Path, **parts: Any) -> Environment:
    return Environment(
        spec_hash="0" * 64, tarball=tmp_path / "env.tar.gz", identity="0" * 64, size=1, python=None,
        platform="linux-64", glibc=None, spec=EnvSpec.from_dict(parts),
    )  # fmt: skip


def test_a_package_of_the_same_name_is_refused_before_anything_is_sent(write: Write, tmp_path: Path) -> None:
    project = write({"yaml.py": "", "space/x.py": "", "mine.py": ""})
    yaml = LocalModule(name="yaml", path=project / "yaml.py", root=project)
    with pytest.raises(EngineError, match=r"'yaml' \(.*yaml.py\) .* has the package PyYAML"):
        refuse_shadowing((yaml,), environment(tmp_path, pip=["pyyaml>=5"]))
    conda = {"channels": ["x"], "packages": ["x::pyyaml=6.0"]}
    with pytest.raises(EngineError, match="PyYAML"):
        refuse_shadowing((yaml,), environment(tmp_path, conda=conda))
    refuse_shadowing((yaml,), environment(tmp_path, pip=["packaging"]))
    mine = LocalModule(name="mine", path=project / "mine.py", root=project, distribution="My_Own 1.0")
    with pytest.raises(EngineError, match="has the package My_Own"):
        refuse_shadowing((mine,), environment(tmp_path, pip=["my-own==0.9"]))
    namespace = LocalModule(name="yaml", path=project / "space", root=project)
    refuse_shadowing((namespace,), environment(tmp_path, pip=["pyyaml>=5"]))


def test_an_environment_known_to_have_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no Python"):
        core.check_python(environment(tmp_path))


# -- the worker's side


def archive(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def test_half_an_archive_is_never_used(tmp_path: Path) -> None:
    code = archive(tmp_path / "c.zip", {"a.py": "x = 1\n" * 1000, "b.py": "y"})
    whole = code.read_bytes()
    place = tmp_path / "place"
    place.mkdir()
    (place / "c.1.0").mkdir()  # somebody died while unpacking
    for cut in (0, 10, 500, len(whole) - 1):
        code.write_bytes(whole[:cut])
        with pytest.raises(runner._Problem, match="cannot be unpacked"):
            runner._unpacked(str(code), str(place))
        assert os.listdir(place) == ["c.1.0"]
    code.write_bytes(whole)
    directory = runner._unpacked(str(code), str(place))
    assert sorted(os.listdir(place)) == ["c", "c.1.0"]
    assert sorted(os.listdir(directory)) == ["a.py", "b.py"]


def test_who_comes_second_uses_what_the_first_has_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = archive(tmp_path / "c.zip", {"a.py": "x = 1\n"})
    real = runner._unpack

    def slow(path: str, directory: str) -> None:
        real(path, directory)
        if not (tmp_path / "c").exists():
            archive_of_the_first = tmp_path / "c"
            archive_of_the_first.mkdir()
            (archive_of_the_first / "a.py").write_text("the first's")

    monkeypatch.setattr(runner, "_unpack", slow)
    directory = Path(runner._unpacked(str(code), str(tmp_path)))
    assert (directory / "a.py").read_text() == "the first's"
    assert sorted(os.listdir(tmp_path)) == ["c", "c.zip"]


@pytest.mark.parametrize(
    ("shipped", "there", "refused"),
    [
        ("a.py", "a.py", "a"), ("a.py", "a/__init__.py", "a"), ("a/__init__.py", "a.py", "a"),
        ("a/__init__.py", "a/x.py", "a"), ("a/x.py", "a/y.py", None), ("a/x.py", "a/x.py", "a.x"),
        ("a/b/x.py", "a/b/y.py", None), ("a/b/x.py", "a/b/x/__init__.py", "a.b.x"), ("a/x.py", "a/__init__.py", "a"),
        ("a-1.dist-info/METADATA", "a.py", None), ("b.py", "a.py", None), ("a/notes.txt", "a/notes.py", None),
    ],
)  # fmt: skip
def test_neither_hides_the_other(shipped: str, there: str, refused: str | None, tmp_path: Path) -> None:
    for root, name in (("shipped", shipped), ("site", there)):
        (tmp_path / root / name).parent.mkdir(parents=True)
        (tmp_path / root / name).write_text("")
    if refused is None:
        runner._refuse_shadowing(str(tmp_path / "shipped"), [str(tmp_path / "site")])
        return
    with pytest.raises(runner._Problem, match=f"the module '{refused}' is shipped"):
        runner._refuse_shadowing(str(tmp_path / "shipped"), [str(tmp_path / "site")])
