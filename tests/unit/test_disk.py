import errno

import pytest

from fedprune.disk import is_refusal, replace_file
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
