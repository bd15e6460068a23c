"""On the wire of secure sums: servers that ask for too much, clients that send nonsense."""

import numpy as np
import pytest
from flwr.app import Message

from client_app.app import app
from fedprune.config import config_from_overrides, replace, to_yaml
from fedprune.errors import QuorumError
from fedprune.privacy.secure_sums import SumPlan, Unsigned, WordSpec
from fedprune.records import KeysOrder, Order, keys_request, order_record, parts_request
from fedprune.records.fields import byte_array
from fedprune.wire.arrays import Arrays, encode_arrays
from strategies import secure
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, job, opt_folder, refusals
from tests.support.signing import signed_roster, site_keys

SECURE = ["privacy.secure=true", "strategy.min_clients=3", "strategy=fedstats"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return f"model={opt_folder(tmp_path_factory.mktemp('opt') / 'opt')}"


class Watched(LocalGrid):
    """Keeps all requests and replies; ``forge`` may change a reply."""

    def __init__(self, clients=4, forge=lambda partition, reply: None, **more):
        super().__init__(app, clients, **more)
        self.replies, self._forge = [], forge

    def deliver(self, message):
        reply = super().deliver(message)
        self._forge(message.metadata.dst_node_id - 100, reply)
        self.replies.append(reply)
        return reply

    def ask(self, message: Message) -> str:
        """Return what a node says to a request that the server makes up."""
        reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        return reply.error.reason if reply.has_error() else ""

    def again(self, kind: str, content=None, node: int = 100) -> Message:
        """Return the last request of a kind to a node once more, with other content."""
        wanted = (kind, node)
        asked = [
            m for m in self.sent if (m.metadata.message_type, m.metadata.dst_node_id) == wanted
        ]
        told = asked[-1].metadata
        return Message(content or asked[-1].content, node, kind, ttl=60.0, group_id=told.group_id)


@pytest.fixture  # a node that refuses something forgets its keys
def answered(tmp_path_factory, model):
    """A federation whose nodes have answered; the server has not yet told them to forget."""
    grid = Watched()
    stop = KeyboardInterrupt

    def before_forget(message, deliver=grid.deliver):
        if message.metadata.message_type == "query.forget":
            raise stop
        return deliver(message)

    grid.deliver = before_forget
    with pytest.raises(stop):
        job(tmp_path_factory.mktemp("answered") / "run", model, *SECURE, grid=grid)
    return grid


def plan_of(grid: Watched, **changes) -> SumPlan:
    told = grid.again("query.keys").metadata.group_id
    values = {"run": f"{told}/2", "sums": {"a": WordSpec(3, 64)}, "floor": 3} | changes
    return SumPlan(**values)


def config_of(grid: Watched) -> str:
    return str(grid.again("query.keys").content["config"]["config-yaml"])


def test_a_node_that_has_answered_takes_no_second_plan(answered):
    content = keys_request(config_of(answered), KeysOrder(plan_of(answered).to_bytes(), 4))
    said = answered.ask(answered.again("query.keys", content))
    assert "has answered in this job before" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"run": "f" * 32 + "/1"}, "another job"), ({"floor": 2}, "`privacy.min_cohort` is 3")],
)
def test_plans_that_the_configuration_does_not_allow_are_refused(answered, changes, said):
    plan = plan_of(answered, **changes)
    content = keys_request(config_of(answered), KeysOrder(plan.to_bytes(), 4))
    assert said in answered.ask(answered.again("query.keys", content))


def test_no_answer_leaves_in_the_open_once_the_job_is_under_masks(answered, model):
    config = config_from_overrides([*QUIET, model, *SECURE, "federation.num_clients=4"])
    plain = to_yaml(replace(config, privacy=replace(config.privacy, secure=False)))
    content = order_record(plain, Order((0,), 0, False, 1 << 20))
    assert "under masks" in answered.ask(answered.again("train.prune", content))


def test_no_client_s_own_model_is_measured(answered):
    content = answered.again("query.keys").content
    message = answered.again("query.keys", content)
    asked = Message(content, 100, "evaluate.local", ttl=60.0, group_id=message.metadata.group_id)
    assert "no client's own model" in answered.ask(asked)


def test_another_list_for_the_same_sum_is_not_signed(answered):
    message = answered.again("query.sign")
    arrays = message.content["arrays"]
    name = next(iter(arrays))
    cohort = Arrays(arrays[name].data, ["cohort"])
    bits = cohort.take("cohort", cohort.announced("cohort")).copy()
    bits[-1] = 0
    content = parts_request(config_of(answered), {name: encode_arrays({"cohort": bits})})
    assert "another list" in answered.ask(answered.again("query.sign", content))


def forged(change):
    """Return what changes the masked words of client 1."""

    def forge(partition, reply):
        if partition != 1 or reply.metadata.message_type != "train.prune":
            return
        arrays = reply.content["arrays"]
        key = next(iter(arrays))
        arrays[key] = byte_array(change(arrays[key].data), arrays[key].stype)

    return forge


def other_words(data: bytes) -> bytes:
    outer = Arrays(data, ["128"])
    names = ["words", "context"]
    inner = Arrays(outer.take("128", outer.announced("128")).tobytes(), names)
    found = {name: inner.take(name, inner.announced(name)).copy() for name in names}
    found["words"] += np.uint64(12345)
    return encode_arrays({"128": np.frombuffer(encode_arrays(found), np.uint8)})


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"]
)
def test_a_client_whose_words_are_damaged_is_left_out(tmp_path, model, change):
    grid = Watched(forge=forged(change))
    results = job(tmp_path / "run", model, *SECURE, grid=grid)
    assert set(refusals(results)) == {"partition 1"}
    assert results["strategy"]["secure"]["clients"] == 4


def test_a_sum_that_no_texts_can_have_stops_the_run(tmp_path, model):
    grid = Watched(forge=forged(other_words))
    with pytest.raises(QuorumError, match="nobody can see whose is wrong"):
        job(tmp_path / "run", model, *SECURE, grid=grid)


SITES = ("north", "east", "south", "west")


def with_roster(folder, sites, listed):
    """Return partition -> settings of nodes with keys; those that are listed have the roster."""
    keys = site_keys(sites, folder)
    path = folder / "roster.toml"
    signed_roster({name: keys[name] for name in listed}, min_cohort=3).write(path)
    found = {}
    for number, site in enumerate(sites):
        settings = {"partition-id": number, "num-partitions": len(sites), "site": site}
        if site in listed:
            settings |= {"signing-key": str(folder / f"{site}.key"), "roster": str(path)}
        found[number] = settings
    return found


def test_sites_of_a_roster_know_each_other(tmp_path, model):
    grid = Watched(node_configs=with_roster(tmp_path, SITES, SITES))
    results = job(tmp_path / "run", model, *SECURE, grid=grid)
    assert results["strategy"]["secure"]["authenticated"]
    assert results["strategy"]["secure"]["clients"] == 4


def test_a_site_outside_the_roster_is_left_out_by_name(tmp_path, model):
    grid = Watched(node_configs=with_roster(tmp_path, SITES, SITES[:3]))
    results = job(tmp_path / "run", model, *SECURE, grid=grid)
    refused = refusals(results)
    assert list(refused) == ["'west' (partition 3)"]
    assert "no `roster`" in refused["'west' (partition 3)"]
    assert results["strategy"]["secure"]["clients"] == 3


def test_keys_that_a_server_makes_up_are_refused(tmp_path, model, monkeypatch):
    """A server that puts itself in a site's place: its keys are signed by nobody of that name."""

    class Between(secure.SecureServer):
        def add_advert(self, name, data):
            if name == "east":
                arrays = Arrays(data, ["channel", "keys", "commitments", "signature"])
                parts = {n: arrays.take(n, arrays.announced(n)).copy() for n in arrays.names}
                parts["keys"][0, 0] ^= 1
                data = encode_arrays(parts)
            super().add_advert(name, data)

    monkeypatch.setattr(secure, "SecureServer", Between)
    assert Unsigned().holds("", b"", b"", purpose="", run="")
    grid = Watched(node_configs=with_roster(tmp_path, SITES, SITES))
    with pytest.raises(QuorumError):
        job(tmp_path / "run", model, *SECURE, grid=grid)
    said = [r.error.reason for r in grid.replies if r.has_error()]
    assert said and all("east" in one or "own" in one for one in said), said
    assert not [m for m in grid.sent if m.metadata.message_type == "train.prune"]
