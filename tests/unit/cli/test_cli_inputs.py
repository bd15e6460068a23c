import pytest

from fedprune.cli.job import check_inputs
from fedprune.config import config_from_overrides
from fedprune.errors import DataError, ModelError


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("model=/no/such/model", ModelError, "'/no/such/model' is not a folder"),
        ("data=/no/such/texts", DataError, "`data.path` must be a file or folder"),
        ("data.heldout_path=/no/texts", DataError, "`data.heldout_path` must be"),
    ],
)
def test_what_is_missing_here_is_told_at_once(override, error, words):
    with pytest.raises(error, match=words):
        check_inputs(config_from_overrides([override]))


def test_hub_ids_and_the_paths_of_other_machines_are_left_alone(tmp_path):
    check_inputs(config_from_overrides([]))
    check_inputs(config_from_overrides(["model=org/name", "data=org/texts"]))
    there = ["federation.connection=site", "model=/there/model", "data=/there/texts"]
    check_inputs(config_from_overrides(there))
    (tmp_path / "a.txt").write_text("x")
    check_inputs(config_from_overrides([f"data={tmp_path}"]))


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="weights"):
        check_inputs(config_from_overrides([f"model={tmp_path}"]))
