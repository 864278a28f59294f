"""Import name → distribution, on directories that only look like installations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poncho_wq.distributions import Found, Installed
from tests.fakes_analyze import install

WELL_KNOWN = {
    # import name: (package, a file of it)
    "yaml": ("PyYAML", "yaml/__init__.py"),
    "sklearn": ("scikit-learn", "sklearn/__init__.py"),
    "skimage": ("scikit-image", "skimage/__init__.py"),
    "cv2": ("opencv-python", "cv2/__init__.py"),
    "PIL": ("Pillow", "PIL/Image.py"),
    "bs4": ("beautifulsoup4", "bs4/__init__.py"),
    "dateutil": ("python-dateutil", "dateutil/parser/__init__.py"),
    "Crypto": ("pycryptodome", "Crypto/__init__.py"),
    "serial": ("pyserial", "serial/__init__.py"),
    "usb": ("pyusb", "usb/core.py"),
    "zmq": ("pyzmq", "zmq/__init__.py"),
    "git": ("GitPython", "git/__init__.py"),
    "github": ("PyGithub", "github/__init__.py"),
    "jwt": ("PyJWT", "jwt/__init__.py"),
    "dotenv": ("python-dotenv", "dotenv/main.py"),
    "docx": ("python-docx", "docx/__init__.py"),
    "pptx": ("python-pptx", "pptx/__init__.py"),
    "magic": ("python-magic", "magic/__init__.py"),
    "slugify": ("python-slugify", "slugify/__init__.py"),
    "attr": ("attrs", "attr/__init__.py"),
    "OpenSSL": ("pyOpenSSL", "OpenSSL/__init__.py"),
    "Bio": ("biopython", "Bio/__init__.py"),
    "ROOT": ("root-framework", "ROOT.py"),
    "osgeo": ("GDAL", "osgeo/gdal.py"),
    "fitz": ("PyMuPDF", "fitz/__init__.py"),
    "pkg_resources": ("setuptools", "pkg_resources/__init__.py"),
    "mpl_toolkits": ("matplotlib", "mpl_toolkits/mplot3d/__init__.py"),
    "googleapiclient": ("google-api-python-client", "googleapiclient/discovery.py"),
    "MySQLdb": ("mysqlclient", "MySQLdb/_mysql.cpython-311-x86_64-linux-gnu.so"),
    "psycopg2": ("psycopg2-binary", "psycopg2/__init__.py"),
    "faiss": ("faiss-cpu", "faiss/__init__.py"),
    "igraph": ("python-igraph", "igraph/__init__.py"),
    "ruamel.yaml": ("ruamel-yaml", "ruamel/yaml/__init__.py"),
    "snappy": ("python-snappy", "snappy.abi3.so"),
    "six": ("six", "six.py"),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "lib" / "site-packages"
    site.mkdir(parents=True)
    return site


def providers(found: Found | None) -> set[str]:
    assert found is not None
    return {each.requirement for each in found.distributions}


def at(*path: Path, prefix: Path | None = None) -> Installed:
    return Installed([str(each) for each in path], prefix=prefix or path[0] / "no-conda-here")


@pytest.mark.parametrize("on_disk", [True, False], ids=["files", "record only"])
def test_names_that_differ_from_their_packages(site: Path, on_disk: bool) -> None:
    for package, file in WELL_KNOWN.values():
        install(site, package, "1.2.3", [file], on_disk=on_disk)
    installed = at(site)
    assert len(WELL_KNOWN) > 30
    for name, (package, _) in WELL_KNOWN.items():
        assert providers(installed.find(name)) == {f"{package}=={'1.2.3'}"}, name
    assert installed.find("nothing_of_that_name") is None


def test_a_namespace_belongs_to_those_who_hold_what_is_imported(site: Path) -> None:
    install(site, "protobuf", "4.0", ["google/protobuf/__init__.py", "google/protobuf/message.py"])
    install(site, "google-cloud-storage", "2.0", ["google/cloud/storage/__init__.py"])
    install(site, "google-cloud-bigquery", "3.0", ["google/cloud/bigquery/__init__.py"])
    installed = at(site)
    assert providers(installed.find("google.protobuf")) == {"protobuf==4.0"}
    assert providers(installed.find("google.protobuf.message")) == {"protobuf==4.0"}
    assert providers(installed.find("google", ["protobuf"])) == {"protobuf==4.0"}
    assert providers(installed.find("google.cloud", ["storage"])) == {"google-cloud-storage==2.0"}
    both = installed.find("google.cloud", ["storage", "bigquery"])
    assert providers(both) == {"google-cloud-storage==2.0", "google-cloud-bigquery==3.0"}
    # Attributes that are looked up on the module name the distribution as well as an import does.
    assert providers(installed.find("google", ["protobuf.message.Message"])) == {"protobuf==4.0"}
    assert installed.find("google.nothing") is None
    assert installed.find("google", ["nothing"]) is None
    assert len(providers(installed.find("google"))) == 3


def test_all_that_provide_what_is_imported(site: Path) -> None:
    install(site, "opencv-python", "4.8", ["cv2/__init__.py"])
    install(site, "opencv-contrib-python", "4.9", ["cv2/__init__.py", "cv2/extra.py"])
    installed = at(site)
    assert providers(installed.find("cv2")) == {"opencv-python==4.8", "opencv-contrib-python==4.9"}


def test_a_plugin_in_the_package_of_another(site: Path) -> None:
    """A regular package that two distributions put modules into: the package itself is imported first."""
    install(site, "host", "1", ["host/__init__.py", "host/core.py"])
    install(site, "host-plugin", "2", ["host/plugins/fast.py"])
    installed = at(site)
    assert providers(installed.find("host")) == {"host==1"}
    assert providers(installed.find("host.core")) == {"host==1"}
    assert providers(installed.find("host.plugins.fast")) == {"host==1", "host-plugin==2"}
    assert providers(installed.find("host.plugins", ["fast"])) == {"host==1", "host-plugin==2"}
    assert providers(installed.find("host", ["attribute"])) == {"host==1"}
    assert providers(installed.find("host.made_at_run_time")) == {"host==1"}


@pytest.mark.parametrize(
    "file", ["fast.cpython-311-x86_64-linux-gnu.so", "fast.abi3.so", "fast.so", "fast/__init__.abi3.so", "fast.py"]
)
def test_compiled_modules(site: Path, file: str) -> None:
    install(site, "Fast-Lib", "1.0", [file])
    assert providers(at(site).find("fast")) == {"Fast-Lib==1.0"}


def test_what_a_record_holds_besides_modules_is_no_import_name(site: Path) -> None:
    install(site, "thing", "1.0", ["thing/__init__.py", "docs/index.html", "data,1.py", "x-y.py", "thing.libs/l.so"])
    installed = at(site)
    assert installed.find("docs") is None
    assert installed.find("data") is None
    assert providers(installed.find("thing")) == {"thing==1.0"}


def test_without_a_list_of_files(site: Path) -> None:
    """Debian's way: `top_level.txt`, or nothing but the name, and files beside it."""
    for name in ("yaml", "zope/interface", "zope/event", "plain_name"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("")
    install(site, "PyYAML", "6.0", record=False, top_level="_yaml\nyaml")
    install(site, "zope.interface", "5.5", record=False, top_level="zope")
    install(site, "zope.event", "4.4", record=False, top_level="zope")
    install(site, "plain-name", "0.1", record=False)
    installed = at(site)
    assert providers(installed.find("yaml")) == {"PyYAML==6.0"}
    assert providers(installed.find("plain_name")) == {"plain-name==0.1"}
    assert installed.find("_yaml") is None
    assert {each.name for each in installed.find("zope.interface").distributions} >= {"zope.interface"}  # type: ignore[union-attr]


def test_an_egg_info_file_and_what_an_interrupted_uninstall_leaves(site: Path) -> None:
    (site / "old.py").write_text("")
    (site / "old-1.5.egg-info").write_text("Metadata-Version: 1.0\nName: old\nVersion: 1.5\n")
    (site / "~umpy-1.0.dist-info").mkdir()
    (site / ".dist-info").mkdir()
    assert providers(at(site).find("old")) == {"old==1.5"}


def test_the_first_on_the_path_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "a/site-packages", tmp_path / "b/site-packages"
    install(one, "Some.Thing", "2.0", ["some_thing.py"])
    install(two, "some-thing", "1.0", ["some_thing.py"])
    assert providers(at(one, two).find("some_thing")) == {"Some.Thing==2.0"}
    assert providers(at(two, one).find("some_thing")) == {"some-thing==1.0"}


@pytest.mark.parametrize("text", ["1.0+cu118", "2024.1.post1", "1.0rc1"])
def test_versions_are_pinned_as_they_are(site: Path, text: str) -> None:
    install(site, "pkg", text, ["pkg.py"])
    assert providers(at(site).find("pkg")) == {f"pkg=={text}"}


def test_a_version_that_pip_does_not_know_is_left_open_with_a_remark(site: Path) -> None:
    install(site, "pkg", "1.0ubuntu2build1", ["pkg.py"])
    found = at(site).named("pkg")
    assert found is not None
    assert found.requirement == "pkg"
    assert "1.0ubuntu2build1" in (found.remark or "")


SHA = "a" * 64
ZIP = "https://host/p.zip"


@pytest.mark.parametrize(
    ("origin", "reference"),
    [
        ({"url": "https://host/p-1.whl", "archive_info": {}}, "p @ https://host/p-1.whl"),
        ({"url": ZIP, "archive_info": {"hash": f"sha256={SHA}"}}, f"p @ {ZIP}#sha256={SHA}"),
        (
            {"url": ZIP, "archive_info": {"hashes": {"sha256": SHA, "md5": "x"}}, "subdirectory": "s d"},
            f"p @ {ZIP}#sha256={SHA}&subdirectory=s%20d",
        ),
        ({"url": "https://me:secret@host/p-1.whl", "archive_info": {}}, "p @ https://host/p-1.whl"),
        (
            {"url": "https://host/r.git", "vcs_info": {"vcs": "git", "requested_revision": "v1", "commit_id": "abc"}},
            "p @ git+https://host/r.git@abc",
        ),
        (
            {"url": "ssh://git@host/r", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "py"},
            "p @ git+ssh://git@host/r@abc#subdirectory=py",
        ),
        ({"url": "file:///no/such/p-1.whl", "archive_info": {}}, "p==1.0"),
        ("not a dictionary", "p==1.0"),
    ],
)
def test_the_reference_of_a_direct_install_is_kept(site: Path, origin: dict[str, object], reference: str) -> None:
    from poncho_wq.specs.requirement import tidy

    install(site, "p", "1.0", ["p.py"], direct_url=origin)
    assert providers(at(site).find("p")) == {reference}
    assert tidy(reference)  # what a specification accepts


def test_a_wheel_file_that_is_still_there_keeps_its_path(site: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "p-1.0-py3-none-any.whl"
    wheel.write_text("")
    install(site, "p", "1.0", ["p.py"], direct_url={"url": wheel.as_uri(), "archive_info": {}})
    assert providers(at(site).find("p")) == {f"p @ {wheel.as_uri()}"}
    wheel.unlink()
    found = at(site).named("p")
    assert found is not None
    assert found.requirement == "p==1.0"
    assert "is gone" in (found.remark or "")


# -- local code


def project(tmp_path: Path, layout: str = "") -> Path:
    package = tmp_path / "project" / layout / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    return tmp_path / "project"


@pytest.mark.parametrize("layout", ["", "src"])
@pytest.mark.parametrize("how", ["pth", "finder", "nothing"])
def test_editable_installs_are_local_code(site: Path, tmp_path: Path, layout: str, how: str) -> None:
    root = project(tmp_path, layout)
    files: dict[str, str] = {}
    if how == "pth":
        files["_mine.pth"] = f"{root / layout}\n"
    elif how == "finder":
        mapping = {"mine": str(root / layout / "mine")}
        files["__editable___mine_1_0_finder.py"] = f"import sys\nMAPPING: dict[str, str] = {mapping!r}\nN = {{}}\n"
        files["__editable__.mine-1.0.pth"] = "import __editable___mine_1_0_finder; raise SystemExit\n"
    install(site, "mine", "1.0", files, direct_url={"url": root.as_uri(), "dir_info": {"editable": True}})
    found = at(site).find("mine.part")
    assert found is not None
    assert found.distributions == ()
    assert found.local is not None
    assert found.local.path == root / layout / "mine"
    assert found.local.root == root / layout
    assert found.local.distribution == "mine 1.0"


def test_what_setup_py_develop_leaves_is_local_code(site: Path, tmp_path: Path) -> None:
    root = project(tmp_path)
    (root / "mine.egg-info").mkdir()
    (root / "mine.egg-info" / "PKG-INFO").write_text("Name: mine\nVersion: 3\n")
    (root / "mine.egg-info" / "top_level.txt").write_text("mine\n")
    (site / "easy-install.pth").write_text(f"{root}\n")
    found = at(site).find("mine")
    assert found is not None
    assert found.local is not None
    assert found.local.distribution == "mine 3"


def test_an_install_from_a_folder_knows_its_folder(site: Path, tmp_path: Path) -> None:
    install(site, "mine", "1.0", ["mine/__init__.py"], direct_url={"url": tmp_path.as_uri(), "dir_info": {}})
    installed = at(site)
    found = installed.find("mine")
    assert found is not None
    (distribution,) = found.distributions
    assert (distribution.folder, distribution.editable) == (tmp_path, False)
    copy = installed.copy_of("mine", distribution)
    assert copy is not None
    assert (copy.path, copy.root) == (site / "mine", site)


def test_local_modules_by_the_order_of_the_path(site: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "pack" / "inner").mkdir(parents=True)
    (here / "pack" / "inner" / "mod.py").write_text("")
    (here / "tool.py").write_text("")
    (here / "yaml.py").write_text("")
    (here / "data").mkdir()
    install(site, "PyYAML", "6.0", ["yaml/__init__.py"])
    installed = at(site)
    found = installed.find("tool", beside=here)
    assert found is not None
    assert found.local is not None
    assert (found.local.path, found.local.root) == (here / "tool.py", here)
    # Python would import the file beside the script, too, rather than the package.
    shadow = installed.find("yaml", beside=here)
    assert shadow is not None
    assert shadow.local is not None
    # A directory without __init__ comes last, and only if there is such a module in it.
    assert installed.find("pack.inner.mod", beside=here) is not None
    assert installed.find("pack.inner", ["mod"], beside=here) is not None
    assert installed.find("pack.nothing", beside=here) is None
    assert installed.find("data", beside=here) is None
    assert installed.find("tool") is None


def test_a_file_that_nobody_installed(site: Path) -> None:
    (site / "work_queue.py").write_text("")
    found = at(site).find("work_queue")
    assert found == Found(unclaimed=site / "work_queue.py")


def test_a_module_in_memory_is_found_by_its_file(site: Path, tmp_path: Path) -> None:
    install(site, "pkg", "1.0", ["pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/mod.py"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sub.py").write_text("")
    installed = at(site)
    assert providers(installed.at("pkg.sub.mod", site / "pkg/sub/mod.py")) == {"pkg==1.0"}
    assert providers(installed.at("pkg.sub", site / "pkg/sub/__init__.py")) == {"pkg==1.0"}
    local = installed.at("mine.sub", tmp_path / "mine" / "sub.py")
    assert local is not None
    assert local.local is not None
    assert (local.local.name, local.local.path, local.local.root) == ("mine", tmp_path / "mine", tmp_path)
    # Loaded under a name that its file does not have: nobody can import it by that.
    assert installed.at("other.name", tmp_path / "mine" / "sub.py") is None


# -- conda


def conda(prefix: Path, name: str, version: str, build: str, files: list[str], channel: str) -> None:
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    record = {"name": name, "version": version, "build": build, "channel": channel, "files": files}
    (prefix / "conda-meta" / f"{name}-{version}-{build}.json").write_text(json.dumps(record))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    prefix = tmp_path / "conda"
    site = prefix / "lib/python3.11/site-packages"
    forge = "https://conda.anaconda.org/conda-forge/linux-64"
    install(site, "numpy", "1.26.4", ["numpy/__init__.py"])
    install(site, "six", "1.16", ["six.py"])
    (site / "ndcctools").mkdir()
    (site / "ndcctools" / "__init__.py").write_text("")
    below = "lib/python3.11/site-packages"
    conda(prefix, "python", "3.11.7", "hab_0", ["bin/python3.11"], forge)
    conda(prefix, "numpy", "1.26.4", "py311_0", [f"{below}/numpy-1.26.4.dist-info/METADATA"], forge)
    conda(
        prefix, "ndcctools", "7.8", "h_1", [f"{below}/ndcctools/__init__.py"], "https://u:pw@my.host/t/tk-1/chan/noarch"
    )
    conda(prefix, "samtools", "1.19", "h5_0", ["bin/samtools"], "https://repo.anaconda.com/pkgs/main/linux-64")
    return prefix


def test_conda_packages_have_channel_version_and_build(prefix: Path) -> None:
    site = prefix / "lib/python3.11/site-packages"
    installed = at(site, prefix=prefix)
    assert providers(installed.find("numpy")) == {"conda-forge::numpy=1.26.4=py311_0"}
    assert providers(installed.find("six")) == {"six==1.16"}
    # No Python metadata, but conda knows the file; and never a password.
    assert providers(installed.find("ndcctools")) == {"https://my.host/chan::ndcctools=7.8=h_1"}
    named = installed.named("samtools")
    assert named is not None
    assert named.requirement == "pkgs/main::samtools=1.19=h5_0"
    assert installed.named("sam") is None


def test_a_damaged_conda_record_is_no_package(prefix: Path) -> None:
    (prefix / "conda-meta" / "broken-1-0.json").write_text("{")
    installed = at(prefix / "lib/python3.11/site-packages", prefix=prefix)
    assert installed.named("broken") is None


# -- this interpreter


def test_this_interpreter_is_read_once_and_again_when_something_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = Installed.here()
    assert Installed.here() is before
    assert before.find("brand_new") is None
    install(site, "brand-new", "1.0", ["brand_new.py"])
    assert providers(Installed.here().find("brand_new")) == {"brand-new==1.0"}


def test_what_this_interpreter_really_has() -> None:
    import packaging

    installed = Installed.here()
    assert providers(installed.find("packaging.version")) == {f"packaging=={packaging.__version__}"}
    assert providers(installed.find("_pytest")) == {f"pytest=={pytest.__version__}"}
