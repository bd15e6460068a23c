import pytest

from fedprune.disk import new_folder
from fedprune.errors import ModelError


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
