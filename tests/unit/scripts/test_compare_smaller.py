"""The table of what makes a model smaller: one row a recipe, means over the seeds."""

import json

from scripts.compare_smaller import RECIPES, Figures, cells, sent_by_a_client, table


def test_a_row_has_the_mean_and_the_largest_distance_from_it():
    one = Figures(0.5, 1.0, 1.2, 0.01, 0.9, 2000, 1.5, 1.1)
    two = Figures(0.5, 1.1, 1.2, 0.03, 0.8, 4000, 1.7, 1.1)
    expected = ["0.50", "1.050 ± 0.050", "1.200", "0.0200 ± 0.0100", "85.0 ± 5.0 %"]
    assert cells([one, two]) == [*expected, "1.60 ± 0.10", "1.10", "3 ± 1 kB"]
    assert cells([one])[1] == "1.000"
    told = table({"wanda": [one], "ffn": [two]}).splitlines()
    assert [line.split(" | ")[0] for line in told[2:]] == [
        "| dense",
        "| Wanda, 50 % zeros",
        "| a quarter of the neurons less",
    ]
    assert len({line.count("|") for line in told}) == 1


def test_a_client_sent_what_its_collection_or_all_its_runs_took(tmp_path):
    for name, size in {"moments": 800, "ffn": 0, "ffn-w4": 500}.items():
        (tmp_path / name).mkdir()
        results = {"ledger": {"bytes_up": size}, "clients": [{}, {}]}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    recipes = {one.name: one for one in RECIPES}
    assert sent_by_a_client(tmp_path, recipes["ffn"]) == 400
    assert sent_by_a_client(tmp_path, recipes["ffn-w4"]) == 400 + 250


def test_every_row_starts_from_one_that_is_made_before_it():
    names = [one.name for one in RECIPES]
    assert len(set(names)) == len(names)
    for place, one in enumerate(RECIPES):
        assert not one.base or one.base in names[:place]
