"""Files and folders that are whole or absent."""

import errno

import pytest

from fedprune.disk import is_refusal, new_folder, replace_file
from fedprune.errors import ModelError


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    replace_file(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(OSError):
            replace_file(path, b"half of the new")
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["state.json"]


def test_a_full_disk_is_told_from_other_trouble_also_as_a_cause():
    full = OSError(errno.ENOSPC, "full")
    explained = ModelError("no room")
    explained.__cause__ = full
    assert is_refusal(full) and is_refusal(explained)
    assert is_refusal(OSError(errno.EROFS, "read-only"))
    assert not is_refusal(OSError(errno.ECONNRESET, "gone"))
    assert not is_refusal(ModelError("no room")) and not is_refusal(OSError("told nothing"))


def test_appears_whole(tmp_path):
    target = tmp_path / "a" / "new"
    with new_folder(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("x")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [OSError("No space left"), ValueError("other")])
def test_a_failure_leaves_nothing(tmp_path, error):
    expected = ModelError if isinstance(error, OSError) else ValueError
    with pytest.raises(expected, match=str(error)), new_folder(tmp_path / "new") as partial:
        (partial / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_no_work_is_overwritten_and_remains_of_a_killed_one_are_no_hindrance(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.partial").mkdir()
    (tmp_path / ".empty.partial" / "half").write_text("x")
    with new_folder(tmp_path / "empty") as partial:
        (partial / "file").write_text("x")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]
    with pytest.raises(ModelError, match="not an empty folder"), new_folder(tmp_path / "empty"):
        pass
