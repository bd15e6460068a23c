"""Fixtures of the tests of what Flower is used through."""

from pathlib import Path

import pytest

from tests.support.flower import FakeFlwr, fake_flwr


@pytest.fixture
def flwr(tmp_path: Path) -> FakeFlwr:
    """A fake `flwr` in a folder of its own."""
    return fake_flwr(tmp_path / "bin")
