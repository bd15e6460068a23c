"""Keep tests offline, quiet and out of the user's folders."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings


def _keep_caches(home: str) -> None:
    """Let what is made of sources outlast the home of a test process: it is kept by content."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for name, lasting in (("numba", f"numba-{version('numba')}"), ("texts", "texts")):
        kept = Path(caches) / "fedprune-tests" / lasting
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # then they are made anew
        Path(home, name).symlink_to(kept)


if "FEDPRUNE_HOME" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["FEDPRUNE_HOME"] = tempfile.mkdtemp(prefix="fedprune-tests-")
    _keep_caches(os.environ["FEDPRUNE_HOME"])
    atexit.register(shutil.rmtree, os.environ["FEDPRUNE_HOME"], ignore_errors=True)
# No test cuts the power, and a small job would wait for the disk longer than it computes. The
# processes that tests start do wait.
os.fsync = lambda descriptor: None
# Small tensors and busy machines: a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The second one is for hours that are free: HYPOTHESIS_PROFILE=fuzz.
settings.register_profile("quick", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# A shell's background job ignores Ctrl-C and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Do not look for garbage among the million objects that are collected and stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that mostly wait for other processes, one by one, between those that compute.

    Side by side, as their names would have it, they leave the cores idle for minutes.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [path for path in files if path.parent.name == "e2e"]
    order = [path for path in files if path not in waiting]
    for number, path in enumerate(waiting):
        order.insert(number * 7, path)  # six between two of them: the last starts at half time
    items[:] = [item for path in order for item in files[path]]


@pytest.fixture(scope="session")
def short_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The override that names a model with three of the demo model's six blocks."""
    from tests.support.jobs import first_blocks

    return f"model={first_blocks(tmp_path_factory.mktemp('short') / 'demo', 3)}"
