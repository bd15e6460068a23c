import pytest

from tests.support.pruning_paths import PATHS, take_path


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Run a test on every path."""
    take_path(monkeypatch, request.param)
    return request.param
