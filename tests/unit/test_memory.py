import psutil
import pytest

from fedprune.memory import free_memory

STAT = "anon 600\nfile 300\nactive_file 100\ninactive_file 150\nshmem 50\n"


@pytest.fixture
def group(tmp_path):
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text(STAT)
    return tmp_path


def test_a_container_s_limit_counts_and_cached_files_do_not(group):
    (group / "memory.max").write_text("5000\n")
    assert free_memory(group) == 5000 - (1000 - 100 - 150)
    (group / "memory.max").write_text("500\n")
    assert free_memory(group) == 0


@pytest.mark.parametrize("limit", ["max\n", str(2**60)])
def test_without_a_limit_it_is_the_machine_s(group, limit):
    (group / "memory.max").write_text(limit)
    assert 0 < free_memory(group) <= psutil.virtual_memory().total


def test_outside_of_containers_it_is_the_machine_s(tmp_path):
    assert 0 < free_memory(tmp_path) <= psutil.virtual_memory().total
