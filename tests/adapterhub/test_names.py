"""Names that are allowed, and the tables of those that are not."""

import pytest

from adapterhub import names
from adapterhub.errors import BadRequest

PATHS = [
    *("", ".", "..", "../x", "a/../b", "a/.", "a/", "a//b", "/etc/passwd", "x" * 513),
    *(".git/config", "a/.GIT/hooks/x", ".git./x"),
    *("a\\b", "nul\0", "tab\t", "line\nbreak", "right\u202eleft.txt", "zero\u200bwidth", "\ud800.txt", "e\u0301.txt"),
    *(" a", "a /b", "/".join("a" * 65)),
    # What Windows cannot write, or writes elsewhere.
    *("CON", "con.txt", "a/NUL", "aux.tar.gz", "COM1", "lpt9.md", "COM\u00b9", "CONIN$", "prn .txt"),
    *("a:b", "a.", "a./b", "a?", "a*b", "a<b", "a>b", 'a"b', "a|b", ".git::$INDEX_ALLOCATION", "GIT~1/config"),
]
NAMES = ["", "-a", "a-", ".a", "a.", "a..b", "a--b", "a/b", "x.git", "x" * 97, "a b", "é", "a\n", "a\0", None, 3]
REFS = [
    *("", "-x", "a..b", "a//b", "a/", "/a", "a/.b", "a.", "a.lock", "a.lock/b", "refs/heads/x", "0" * 40),
    *("a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a@{1}", "\n"),
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_could_harm_are_refused(path):
    with pytest.raises(BadRequest, match="cannot be a path"):
        names.check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        ".gitattributes",
        "a/b/c.json",
        "uni é.txt",
        "..a",
        "a...b",
        ".github/x",
        "console",
        "COM10",
        "nul_",
        "a" * 500,
    ],
)
def test_other_paths_are_taken_as_they_are(path):
    assert names.check_path(path) == path


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none_are_refused(name):
    with pytest.raises(BadRequest, match="cannot be a name"):
        names.check_repo_name(name)


@pytest.mark.parametrize("ref", REFS)
def test_refs_that_git_would_not_take_are_refused(ref):
    with pytest.raises(BadRequest, match="cannot name a branch"):
        names.check_ref(ref)


@pytest.mark.parametrize("ref", ["main", "v1", "feat/x", "1.0", "a.b_c-d+e"])
def test_refs_that_git_takes_are_taken(ref):
    assert names.check_ref(ref) == ref


def test_names_that_look_alike_have_one_key():
    assert names.key("Acme-1") == names.key("acmeI") == names.key("acme_l")
    assert names.key("acme") != names.key("acne")
    assert names.key("...") == "..."


@pytest.mark.parametrize("name", ["api", "Explore", "static", "_lfs", "setup", "sentiment", "no", "NLI"])
def test_pages_and_tasks_are_reserved(name):
    with pytest.raises(BadRequest):
        names.check_namespace(name)


def test_a_task_may_be_vouched_for_but_a_page_may_not():
    assert names.check_namespace("mlki", task_name=True) == "mlki"
    with pytest.raises(BadRequest):
        names.check_namespace("api", task_name=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sent1ment", "Sentiment"),
        ("s3ntim3nt", "sentiment"),
        ("sеntimеnt", "sentiment"),  # Cyrillic
        ("ѕentiment", "sentiment"),
        ("acmε", "acme"),  # Greek
        ("ａｃｍｅ", "acme"),  # full width
        ("acmé", "acme"),
        ("ac\u200bme", "acme"),
        ("rnicrosoft", "microsoft"),
        ("vvord", "word"),
        ("g00gle", "google"),
    ],
)
def test_look_alikes_have_one_skeleton(one, other):
    assert names.skeleton(one) == names.skeleton(other)


def test_other_names_have_others():
    known = ["acme", "acne", "modern", "bert", "google", "sentiment", "sst-2", "no", "so", "ukp", "xlm", "ner", "qa"]
    assert len({names.skeleton(name) for name in known}) == len(known)


@pytest.mark.parametrize("name", ["sent1ment", "5entiment", "n0", "adm1n", "AP1", "0rganizations", "s-e-n-timent"])
def test_look_alikes_of_pages_and_tasks_are_reserved(name):
    with pytest.raises(BadRequest, match="looks like"):
        names.check_namespace(name)
