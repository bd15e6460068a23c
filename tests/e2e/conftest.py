"""What the tests with Flower's real runtime are compared with."""

import pytest

from tests.e2e.test_flower_runs import sidecar
from tests.integration.test_main_job import job


@pytest.fixture(scope="session")
def expected(tmp_path_factory):
    """The masks of the job `SMALL` in one process."""
    return sidecar(job(tmp_path_factory.mktemp("inline") / "run", nodes=2))
