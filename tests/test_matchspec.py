"""MatchSpec spellings, held against rattler: what we write must mean there what was written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rattler import MatchSpec

from poncho_wq.errors import SpecError
from poncho_wq.specs.matchspec import canonical, tidy

SPELLINGS = [
    # (written, tidy, canonical or None where it is the same)
    ("python=3.7", "python=3.7", None),
    ("Python 3.7.*", "python=3.7", None),
    ("python==3.7.*", "python=3.7", None),
    ("python[version='3.7.*']", "python=3.7", None),
    ("python=3.7.0", "python=3.7.0", None),
    ("numpy=1.20.0=py38h18fd61f_0", "numpy=1.20.0=py38h18fd61f_0", "numpy=1.20=py38h18fd61f_0"),
    ("numpy==1.20.0=py38h18fd61f_0", "numpy=1.20.0=py38h18fd61f_0", "numpy=1.20=py38h18fd61f_0"),
    ("numpy 1.20.0 py38h18fd61f_0", "numpy=1.20.0=py38h18fd61f_0", "numpy=1.20=py38h18fd61f_0"),
    ("numpy[version=1.20.0, build='py38h18fd61f_0']", "numpy=1.20.0=py38h18fd61f_0", "numpy=1.20=py38h18fd61f_0"),
    ("numpy 1.20", "numpy==1.20", None),
    ("numpy == 01.20.0", "numpy==01.20.0", "numpy==1.20"),
    ("ndcctools", "ndcctools", None),
    ("a *", "a", None),
    ("a=*", "a", None),
    ("a=1.0.*=*", "a=1.0", None),
    ("a * py38*", "a * py38*", None),
    ("a=*=py38*", "a * py38*", None),
    ("a=1.*=py_0", "a 1.* py_0", None),
    ("a >= 1.2 , < 2", "a <2,>=1.2", None),
    ("a<2.0,>=1.2,<2.0", "a <2.0,>=1.2", "a <2,>=1.2"),
    ("a>=1.8,<2|1.9", "a <2,>=1.8|==1.9", None),
    ("a =1.20,<2", "a 1.20.*,<2", None),
    ("a >=1.2.*", "a >=1.2", None),
    ("a ~=1.2.0", "a ~=1.2.0", None),
    ("a !=1.2.*", "a !=1.2.*", None),
    ("a (>=1|<0.5),!=2", "a (>=1|<0.5),!=2", None),
    ("a 1!2.0", "a==1!2.0", None),
    ("a 1.0RC1", "a==1.0rc1", None),
    ("conda-forge::a=1=b", "conda-forge::a=1=b", None),
    ("a[channel=conda-forge]", "conda-forge::a", None),
    ("defaults::a[channel='conda-forge']", "conda-forge::a", None),
    ("conda-forge::a[subdir=linux-64]", "conda-forge/linux-64::a", None),
    ("a[subdir=linux-64]", 'a[subdir="linux-64"]', None),
    ("a[md5='" + "0" * 32 + "',build_number='>=3']", 'a[build_number=">=3",md5="' + "0" * 32 + '"]', None),
    ("a[build='x y']", 'a[build="x y"]', None),
    ("__glibc>=2.17", "__glibc >=2.17", None),
    ("python 3.7.* *_cpython", "python 3.7.* *_cpython", None),
    # kept as they are written
    ("conda-forge:ns:a=1", "conda-forge:ns:a=1", None),
    ("a>=1.2=b", "a>=1.2=b", None),
]


def meaning(text: str) -> tuple[object, ...]:
    """What rattler reads, without the differences that mean nothing: order within a version, and `*`."""
    spec = MatchSpec(text)
    version = spec.version or "*"
    if "(" not in version:
        version = "|".join(sorted({",".join(sorted(set(each.split(",")))) for each in version.split("|")}))
    assert spec.name is not None
    channel = spec.channel and spec.channel.base_url
    build = None if spec.build == "*" else spec.build
    others = str(spec).partition("[")[2]
    return spec.name.normalized, version, build, channel, spec.subdir, spec.namespace, others


@pytest.mark.parametrize(("written", "tidied", "canon"), SPELLINGS)
def test_spelling(written: str, tidied: str, canon: str | None) -> None:
    assert tidy(written) == tidied
    assert tidy(tidied) == tidied
    assert canonical(tidied) == (canon or tidied)
    assert canonical(canonical(tidied)) == canonical(tidied)
    assert meaning(tidied) == meaning(written)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing package name"),
        ("*", "not a conda package specification"),
        ("numpy==", "not a conda package specification"),
        ("numpy=1.*.2", "not a conda package specification"),
        ("défi", "not a conda package specification"),
        ("a[foo=1]", "invalid bracket key"),
        ("a[md5=xyz]", "not a conda package specification"),
        ("a b c d", "too many words"),
        ("a # c", "holds a comment"),
        ("/srv/a-1.0-0.conda", "names one package file"),
        ("./a-1.0-0.conda", "names one package file"),
        ("https://h/a-1.0-0.tar.bz2", "names one package file"),
        ("/srv/channel::a", "for a channel in a folder write file:"),
        ("https://u:secret@h/c::a", "holds credentials"),
        ("a[channel='https://u:secret@h/c']", "holds credentials"),
        ("https://h/t/secret-0/c::a", "holds credentials"),
        ("ftp://h/c::a", "cannot come from"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        tidy(text)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_deep_nesting_is_no_crash() -> None:
    for text in ("a " + "(" * 2000 + "1" + ")" * 2000, "a" + "[" * 4000, "a " + "1,|" * 1300):
        try:
            canonical(tidy(text))
        except SpecError:
            pass


VERSION = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,2}(rc1|\.\*)?", fullmatch=True)
CONSTRAINT = st.builds(
    "{}{}{}".format, st.sampled_from(["", "=", "==", ">=", "<", "!=", "~=", ">= "]), st.just(""), VERSION
)
WRITTEN = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(["", "conda-forge::", "conda-forge/noarch::"]),
    st.sampled_from(["numpy", "Py_X", "a.b-c", "_x"]),
    st.sampled_from([" ", "", "="]),
    st.lists(CONSTRAINT, max_size=3).flatmap(
        lambda each: st.sampled_from([",", " | ", "|"]).map(lambda by: by.join(each))
    ),
    st.sampled_from(["", " py38_0", "=py38_0", " py*", " *"]),
    st.sampled_from(["", "[build_number=3]", "[version='1.0', license=MIT]"]),
)


@given(WRITTEN)
@settings(deadline=None, max_examples=500)
def test_our_spelling_means_what_was_written(text: str) -> None:
    try:
        tidied = tidy(text)
    except SpecError:
        return
    assert meaning(tidied) == meaning(text)
    assert tidy(tidied) == tidied
    assert canonical(canonical(tidied)) == canonical(tidied)
    MatchSpec(canonical(tidied))
