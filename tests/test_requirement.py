"""PEP 508 requirements: spellings that are one, and what requirements files allow that a specification does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from poncho_wq.errors import SpecError
from poncho_wq.specs.requirement import canonical, contradiction, tidy


@pytest.mark.parametrize(
    ("text", "tidied", "canon"),
    [
        ("Parsl", "parsl", "parsl"),
        ("  ipython == 7.20.0 ", "ipython==7.20.0", "ipython==7.20"),
        ("A_b.c[X,y] (>=1.0.0, <2.0)", "a-b-c[x,y]<2.0,>=1.0.0", "a-b-c[x,y]<2,>=1"),
        ("a==1.0,==1.0.0", "a==1.0.0", "a==1"),
        ("a~=2.0", "a~=2.0", "a~=2.0"),
        ("a===1.0.0", "a===1.0.0", "a===1.0.0"),
        ("a==1.0.*", "a==1.0.*", "a==1.0.*"),
        ("a>=v1.0", "a>=v1.0", "a>=1"),
        ("a==1!1.0", "a==1!1.0", "a==1!1"),
        ("a==1.0+cu118", "a==1.0+cu118", "a==1+cu118"),
        ("a<=1.0-1", "a<=1.0-1", "a<=1.post1"),
        ("a;python_version<'3.8'", 'a; python_version < "3.8"', 'a; python_version < "3.8"'),
        ("a@https://h/x.whl", "a @ https://h/x.whl", "a @ https://h/x.whl"),
        ("a@git+ssh://git@h/x@v1 ;os_name=='nt'", 'a @ git+ssh://git@h/x@v1 ; os_name == "nt"', None),
        ("a[z] @ file:///srv/x-1-py3-none-any.whl", "a[z] @ file:///srv/x-1-py3-none-any.whl", None),
        ("a @ https://h/x.tar.gz#sha256=ab", "a @ https://h/x.tar.gz#sha256=ab", None),
    ],
)
def test_spelling(text: str, tidied: str, canon: str | None) -> None:
    assert tidy(text) == tidied
    assert tidy(tidied) == tidied
    assert canonical(tidied) == (canon or tidied)
    assert canonical(canonical(tidied)) == canonical(tidied)
    Requirement(canonical(tidied))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-e .", '"-e" is an editable install'),
        ("numpy===", "an operator without a version"),
        ("-e.", '"-e" is an editable install'),
        ("--editable=src", '"--editable" is an editable install'),
        ("-r requirements.txt", '"-r" is another requirements file'),
        ("-c limits.txt", '"-c" is a constraints file'),
        ("--index-url=https://u:secret@h/simple", '"--index-url" is an index'),
        ("-i https://h", '"-i" is an index'),
        ("--find-links /x", '"--find-links" is a folder of links'),
        ("--pre", '"--pre" is an option of pip'),
        ("./x", "is a path"),
        ("../x", "is a path"),
        (".", "is a path"),
        ("/srv/x", "is a path"),
        ("~/x", "is a path"),
        ("x-1.0-py3-none-any.whl", "is a path"),
        ("dist/x.tar.gz", "is a path"),
        ("a @ ./x.whl", "names a path"),
        ("https://h/x.whl", "lacks a name"),
        ("git+https://h/x", "lacks a name"),
        ("file:///x.whl", "lacks a name"),
        ("a # why", "holds a comment"),
        ("a --hash=sha256:00", "is not a PEP 508 requirement"),
        ("a=1.0", "is not a PEP 508 requirement"),
        ("a==1 b", "is not a PEP 508 requirement"),
        ("é", "is not a PEP 508 requirement"),
        ("a @ file:///srv/project", "is not an archive"),
        ("a @ file://host/x.whl", "names no file"),
        ("a @ hg+https://h/x", "cannot come from"),
        ("a @ ext::sh", "cannot come from"),
        ("a @ https://u:secret@h/x.whl", "holds credentials"),
        ("a @ https://h/${HOME}/x.whl", "environment variable"),
        ("a @ git+ssh://-oProxyCommand=x/y", "begins with a dash"),
        (f"a=={'9' * 5000}", "no version has a number of that length"),
        (f"a>=1,<1.{'9' * 5000}", "no version has a number of that length"),
        (f"a; python_version < '3.{'9' * 5000}'", "no version has a number of that length"),
        ("a; " + "(" * 500 + "os_name == 'x'" + ")" * 500, "nested too deeply"),
    ],
)
def test_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        tidy(text)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("requirements", "clash"),
    [
        (["a==1", "b", "a==1.0"], None),
        (["a==1", "b", "a==2"], (0, 2)),
        (["a>2", "a==2"], (0, 1)),
        (["a>=1", "a<2"], None),
        (["a[x]==1", "a[y]==2"], (0, 1)),
        (["a==1", "a==2; python_version<'3.8'"], None),
        (["a==1; os_name=='x'", 'a==2 ; os_name=="x"'], (0, 1)),
        (["a==1.0.*", "a==1.1"], (0, 1)),
        (["a==2.0rc1", "a>1"], None),
        (["a @ https://h/1.whl", "a @ https://h/2.whl"], (0, 1)),
        (["a @ https://h/1.whl", "a"], None),
        (["a===x", "a"], None),
    ],
)
def test_contradiction(requirements: list[str], clash: tuple[int, int] | None) -> None:
    assert contradiction(requirements) == clash


@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    try:
        tidied = tidy(text)
    except SpecError:
        return
    assert tidy(tidied) == tidied
    Requirement(tidied)
