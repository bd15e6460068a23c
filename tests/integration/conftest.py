"""What many files of whole jobs have in common."""

from collections.abc import Iterator

import pytest

from tests.support import jobs


@pytest.fixture(scope="module")
def three_blocks(short_model: str) -> Iterator[None]:
    """Let a file's jobs that name no model prune three blocks of the demo model, not all six."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "QUIET", (*jobs.QUIET, short_model))
        yield
