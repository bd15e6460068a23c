"""Fixtures of several folders."""

import pytest

from tests.support.flower import fake_flwr


@pytest.fixture
def flwr(tmp_path):
    """A fake `flwr` in a folder of its own."""
    return fake_flwr(tmp_path / "bin")
