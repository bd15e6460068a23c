import pytest
from flwr.app import Context, Message, RecordDict

from client_app.guard import guarded
from client_app.node import NodeContext
from fedprune.errors import ConfigError, DataError, ReplyRefusedError
from tests.support.grid import become_server

JOB = "0123456789abcdef" * 2


def request(job: str = JOB) -> Message:
    become_server()
    return Message(RecordDict(), 1, "query.handshake", group_id=job)


def test_an_error_of_ours_is_told_in_full():
    def work(_message, _context):
        raise DataError("12 tokens found, 64 needed")

    reply = guarded(request(), Context(1, 1, {}, RecordDict(), {}), work)
    assert reply.has_error() and reply.error.code == 2
    assert reply.error.reason == "DataError: 12 tokens found, 64 needed"


def test_of_any_other_error_only_type_and_places_are_told_and_logged(caplog, monkeypatch):
    def work(_message, _context):
        try:
            raise ValueError("Mr Smith, born 1949")
        except ValueError as error:
            raise KeyError("Mrs Smith, born 1950") from error

    reply = guarded(request(), Context(1, 1, {}, RecordDict(), {}), work)
    assert reply.error.reason == "KeyError on the node; its own log has the details"
    assert "query.handshake failed on this node: KeyError at client_app.guard:" in caplog.text
    assert "caused by ValueError at" in caplog.text and f"{__name__}:" in caplog.text
    assert "Smith" not in caplog.text
    monkeypatch.setenv("FEDPRUNE_DEBUG", "1")
    assert (
        guarded(request(), Context(1, 1, {}, RecordDict(), {}), work).error.reason
        == reply.error.reason
    )
    assert "Mrs Smith" in caplog.text and "Mr Smith" in caplog.text


def test_what_an_error_of_ours_keeps_inside_is_in_the_log_only(caplog):
    def work(_message, _context):
        raise DataError("'smith.txt' is no text", outside="a file is no text")

    with caplog.at_level("INFO"):
        reply = guarded(request(), Context(1, 1, {}, RecordDict(), {}), work)
    assert reply.error.reason == "DataError: a file is no text"
    assert "answered with DataError: 'smith.txt' is no text" in caplog.text


def test_what_the_system_says_of_a_full_disk_is_told_without_the_path(caplog):
    def work(_message, _context):
        raise OSError(28, "No space", "/data/mrs-smith")

    reason = guarded(request(), Context(1, 1, {}, RecordDict(), {}), work).error.reason
    assert reason.startswith("OSError (No space left on device) on the node; its own log")


def test_content_is_passed_on():
    asked = request()
    reply = Message(RecordDict(), reply_to=asked)
    assert guarded(asked, Context(1, 1, {}, RecordDict(), {}), lambda *_: reply) is reply


def node(**settings) -> NodeContext:
    names = {key.replace("_", "-"): value for key, value in settings.items()}
    return NodeContext.of(request(), Context(5, 9, names, RecordDict(), {}))


def test_seat_reads_the_node_configuration():
    found = node(partition_id=3, num_partitions=8, site="north", data_path="/data")
    told = found.settings
    assert (told.partition_id, told.num_partitions, told.site) == (3, 8, "north")
    assert told.data_path == "/data"
    assert found.scratch.parts[-2:] == (f"job-{JOB}", "partition-00003")


def test_seat_without_optional_settings():
    found = node(partition_id=0).settings
    assert (found.num_partitions, found.site) == (0, "")


@pytest.mark.parametrize("partition", [None, -1, "0", 1.0, True])
def test_seat_needs_a_partition_id(partition):
    settings = {} if partition is None else {"partition_id": partition}
    with pytest.raises(ConfigError, match="`partition-id`.*--node-config"):
        node(**settings)


@pytest.mark.parametrize("job", ["", "../" + "a" * 29, JOB.upper(), JOB[1:], JOB + "\n"])
def test_a_job_that_could_be_a_path_is_refused(job):
    context = Context(5, 9, {"partition-id": 0}, RecordDict(), {})
    with pytest.raises(ReplyRefusedError, match="32 hexadecimal digits"):
        NodeContext.of(request(job), context)
