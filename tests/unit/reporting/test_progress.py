import pytest

from fedprune.reporting.progress import Progress, parse_progress, size_text


@pytest.mark.parametrize("detail", ["", "block 3 of 6, 1 of 2 clients, 1.2 MB up"])
def test_round_trip_inside_a_log_line(detail):
    progress = Progress("prune", 3, 6, detail)
    assert parse_progress(f"INFO :      {progress.line()}\n") == progress


@pytest.mark.parametrize(
    "line", ["", "fedprune: dancing 1/2", "fedprune prune 1/2", "progress 1/2", "fedprune: prune x"]
)
def test_other_lines_are_not_progress(line):
    assert parse_progress(line) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (5_000_000_000, "5.0 GB"),
        (7_000_000_000_000, "7.0 TB"),
    ],
)
def test_sizes(size, text):
    assert size_text(size) == text
