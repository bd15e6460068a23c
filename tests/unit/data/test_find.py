"""Files by a pattern: what pathlib finds, never outside the folder, never for long."""

import time

import pytest

from fedprune.data import find
from fedprune.data.find import find_files
from fedprune.errors import DataError


@pytest.fixture
def tree(tmp_path):
    names = [
        "a.txt",
        "b.md",
        "x/a.txt",
        "x/y/c.txt",
        "x/y/z/a.txt",
        "w/q/a.txt",
        ".h/a.txt",
        "x/.i",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        *("**/*", "*", "*.txt", "**/*.txt", "x/*", "x/**/*.txt", "*/*/*", "**/y/*", "x/**/z/*"),
        *("?.md", "[ab].*", "**/**/*.txt", "x//a.txt", "./a.txt", "**", "x/**", "nothing/*"),
    ],
)
def test_as_pathlib_has_it(tree, pattern):
    visible = {
        path
        for path in tree.glob(pattern)
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(tree).parts)
    }
    found = list(find_files(tree, pattern))
    assert set(found) == visible and len(found) == len(visible)


def test_links_to_folders_are_followed_where_they_are_named(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "l.txt").write_text("x")
    (tree / "link").symlink_to(other)
    (tree / "x" / "round").symlink_to(tree)
    assert tree / "link" / "l.txt" in set(find_files(tree, "*/*.txt"))
    assert tree / "link" / "l.txt" not in set(find_files(tree, "**/*.txt"))


@pytest.mark.parametrize(
    "pattern", ["../*", "x/../../*", "/etc/*", "~/*", "", ".", "*/" * 40 + "*", "a" * 2000, "C:/*"]
)
def test_patterns_that_leave_the_folder_or_never_end_are_refused(tree, pattern):
    with pytest.raises(DataError, match="`data.glob`"):
        list(find_files(tree, pattern))


def test_many_stars_take_no_longer_than_one(tmp_path):
    folder = tmp_path
    for number in range(25):
        folder = folder / f"d{number}"
    folder.mkdir(parents=True)
    (folder / ("a" * 200)).write_text("x")
    started = time.monotonic()
    assert not list(find_files(tmp_path, "/".join(["**", "d*"] * 15 + ["b"])))
    assert not list(find_files(tmp_path, "**/" + "*a" * 100 + "b"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("name", "value"), [("MOST_ENTRIES", 3), ("MOST_DEPTH", 1), ("MOST_SECONDS", -1)]
)
def test_bounds(tree, monkeypatch, name, value):
    monkeypatch.setattr(find, name, value)
    with pytest.raises(DataError, match="given up.*narrower `data.glob`") as caught:
        list(find_files(tree, "**/*"))
    assert str(tree) not in caught.value.outside
