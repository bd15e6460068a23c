"""What a server delivers takes no more of a node's disk than the node's model explains."""

import errno
import os
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from client_app.app import app
from client_app.scratch import InboxQuota, Scratch
from fedprune.config import config_from_overrides, to_yaml
from fedprune.disk import home
from fedprune.errors import ReplyRefusedError
from fedprune.records import request
from fedprune.wire.changes import most_update_bytes
from tests.support.grid import become_server

SHAPES = [{"a": (4, 10)}, {"a": (8, 10), "b": (3, 8)}]
ROOM = InboxQuota.of(SHAPES)


def scratch(tmp_path: Path, job: int = 1, node: str = "partition-00000") -> Scratch:
    return Scratch(tmp_path / f"job-{job}" / node)


def test_the_largest_block_and_the_whole_model_decide():
    assert 5 + 160 < most_update_bytes(SHAPES[0]) < 5 + 160 + 2500
    assert ROOM == InboxQuota(most_update_bytes(SHAPES[1]), sum(map(most_update_bytes, SHAPES)))


@pytest.mark.parametrize(
    ("name", "most"), [("update", ROOM.block), ("start-00001", ROOM.block), ("final", ROOM.model)]
)
def test_one_delivery_is_no_longer_than_what_it_is_of(tmp_path, name, most):
    ROOM.check(scratch(tmp_path), name, most)
    with pytest.raises(ReplyRefusedError, match=f"'{name}' may take {most} bytes.*{most + 1}"):
        ROOM.check(scratch(tmp_path), name, most + 1)


def test_all_deliveries_of_a_job_and_of_all_jobs_are_bounded(tmp_path):
    one = scratch(tmp_path)
    for number in range(4):
        name = f"start-{number:05d}"
        try:
            ROOM.check(one, name, ROOM.block)
        except ReplyRefusedError as error:
            assert "of one job" in str(error)
            break
        one.receive(name, 0, b"x" * ROOM.block)
    else:
        pytest.fail("a job may take all of the disk")
    for job in range(2, 20):
        other = scratch(tmp_path, job)
        try:
            ROOM.check(other, "update", ROOM.block)
        except ReplyRefusedError as error:
            assert "of all jobs" in str(error)
            break
        other.receive("update", 0, b"x" * ROOM.block)
    else:
        pytest.fail("many jobs may take all of the disk")
    kept = sum(path.stat().st_size for path in tmp_path.rglob("inbox-*"))
    assert kept <= 4 * (ROOM.model + ROOM.block)
    ROOM.check(scratch(tmp_path, 30, "partition-00001"), "update", ROOM.block)  # another node's


def test_a_segment_that_comes_again_counts_once(tmp_path):
    one = scratch(tmp_path)
    one.receive("update", 0, b"x" * ROOM.block)
    ROOM.check(one, "update", ROOM.block)


@pytest.mark.parametrize("name", ["../../../secret", "update/../x", "", "final\n", "start-1"])
def test_a_name_leads_nowhere(tmp_path, name):
    for use in (lambda one: one.receive(name, 0, b"x"), lambda one: ROOM.check(one, name, 1)):
        with pytest.raises(ReplyRefusedError, match="'shares' or 'final'"):
            use(scratch(tmp_path))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_full_disk_leaves_no_half_segment(tmp_path, monkeypatch):
    one = scratch(tmp_path)
    one.receive("update", 0, b"whole")
    path = one.inbox("update")

    class Full:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            if len(data) < 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data[:2])

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(real(self, *a, **k)))
    with pytest.raises(OSError, match="No space"):
        one.receive("update", 5, b"morebytes")
    monkeypatch.undo()
    assert path.read_bytes() == b"whole"


def test_the_handler_refuses_before_anything_is_written():
    become_server()
    config = config_from_overrides([])
    content = request(to_yaml(config), {"segment": b"x"}, name="update", start=1 << 40)
    message = Message(content, 7, "query.deliver", group_id="ab" * 16)
    reply = app(message, Context(1, 7, {"partition-id": 0}, RecordDict(), {}))
    assert "deliveries of 'update' may take" in reply.error.reason
    assert not (home() / "nodes" / f"job-{'ab' * 16}").exists()
