"""What many files of whole jobs have in common."""

from pathlib import Path

import pytest

from client_app import model
from fedprune.methods import public_text
from fedprune.models import embedded

_WHOLE = embedded.demo_model_path


@pytest.fixture(scope="module")
def three_blocks(short_model):
    """Let the demo model have three blocks in a file's jobs, not six: half the time."""
    folder = Path(short_model.removeprefix("model="))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "demo_model_path", lambda: folder)
        _forget()
        yield
    _forget()


@pytest.fixture
def short_text(monkeypatch):
    """Public text that takes no time."""
    monkeypatch.setattr(public_text, "_SAMPLES", 4)
    monkeypatch.setattr(public_text, "_ROUNDS", 1)


def _forget() -> None:
    """Let clients read their model anew: they keep the last one under its name."""
    for each in vars(model).values():
        if hasattr(each, "cache_clear"):
            each.cache_clear()


@pytest.fixture
def six_blocks():
    """The override that names the demo model with all its blocks."""
    return f"model={_WHOLE()}"
