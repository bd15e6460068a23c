from fedprune.results.ledger import Entry, Ledger


def entry(client: str, up: int, refused: str = "") -> Entry:
    return Entry(1, "prune", client, 10, up, 1.0, 0.5, 100 * up, 7, refused)


def test_totals_and_refusals():
    ledger = Ledger()
    for item in (entry("a", 5), entry("b", 6, "late"), entry("b", 1, "late")):
        ledger.add(item)
    found = ledger.to_dict()
    assert found["bytes_up"] == 12 and found["bytes_down"] == 30
    assert found["refused"] == {"b": 2}
    assert found["peak_client_rss_bytes"] == 600
    assert found["client_seconds"] == 1.5
    assert len(found["entries"]) == 3 and found["entries"][1]["refused"] == "late"


def test_empty_ledger():
    assert Ledger().to_dict()["bytes_up"] == 0
    assert Ledger().refused() == {}


def test_reasons_are_told_once_each_with_who():
    ledger = Ledger()
    for name in "abcde":
        ledger.add(entry(name, 1, "no texts"))
    ledger.add(entry("f", 1, "late"))
    assert ledger.reasons() == "a, b, c and 2 more: no texts | f: late"
    assert Ledger().reasons() == ""
