"""No bytes that come for a secure sum do harm: they are refused with a reason, or are sound."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedprune.errors import ReplyRefusedError, WireError
from fedprune.privacy.secure_server import SecureServer
from fedprune.privacy.secure_sums import SumPlan, WordSpec
from tests.support.damage import check_damage, sealed
from tests.support.fuzzing import anything, fuzzed, rearranged, survives
from tests.support.secure_sums import drawn, sites

SUMS = {"a": WordSpec(4, 8), "b": WordSpec(3, 128)}
REFUSALS = (WireError, ReplyRefusedError)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return what was sent in a small run, by kind, and readers of it that are at that point."""
    found = sites(tmp_path_factory.mktemp("fuzzed"), 4, SUMS)
    name, names = found.names[0], found.names
    adverts = [found.client(one).advertise() for one in names]
    found.advertise()
    told = [found.server.adverts_for(one) for one in names]
    shares = [found.client(one).shares(told[place]) for place, one in enumerate(names)]
    found.share()
    boxes = [found.server.boxes_for(one) for one in names]
    found.receive()
    terms = drawn(SUMS["a"], names)
    masked = found.masked("a", terms, absent=names[3:])
    words = [found.client(one).masked("a", terms[one]) for one in names[:3]]
    request = found.signed(masked, "a")
    signatures = [found.client(one).sign("a", masked.cohort) for one in names]
    answers = [found.client(one).unmask("a", request) for one in names]

    def fresh():
        return SecureServer(found.plan, found.roster)

    def shared():
        server = fresh()
        state = found.server.state()
        none = {"closed": np.array([1, 0], np.uint8), "boxes": state["boxes"][:0]}
        server.restore({**state, **none, "members": np.frombuffer(b"[]", np.uint8)})
        return server

    def closed():
        again = found.server.sum("a")
        state = masked.state()
        empty = {key: state[key] * 0 for key in ("signers", "signatures", "answered", "given")}
        again.restore({**state, **empty, "shares": state["shares"] * 0})
        return again

    # A client in memory: what it reads is at stake here, not what it keeps.
    client = found.client(name)
    return {
        "plan": ([found.plan.to_bytes()], SumPlan.from_bytes),
        "advert": (adverts, lambda data: fresh().add_advert(name, data)),
        "adverts": (told, lambda data: client._read_adverts(data)),
        "shares": (shares, lambda data: shared().add_shares(name, data)),
        "boxes": (boxes, lambda data: client._read_boxes(data)),
        "words": (words, lambda data: found.server.sum("a").add(name, data)),
        "cohort": ([masked.cohort], lambda data: client.sign("a", data)),
        "signature": (signatures, lambda data: closed().add_signature(name, data)),
        "request": ([request], lambda data: client.unmask("a", data)),
        "answer": (answers, lambda data: closed().add_unmask(name, data)),
    }


KINDS = "plan advert adverts shares boxes words cohort signature request answer".split()


@pytest.mark.parametrize("kind", KINDS)
def test_the_messages_to_start_from_are_read(run, kind):
    valid, read = run[kind]
    read(valid[0])
    assert sealed(valid[0]) == valid[0]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(fuzzed, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_do_harm(run, kind, data):
    valid, read = run[kind]
    message = data.draw(st.one_of(anything(valid), rearranged(valid)))
    if data.draw(st.integers(0, 3)):
        message = sealed(message)
    survives(lambda: read(message), REFUSALS, len(message))


@pytest.mark.parametrize("kind", ["plan", "words", "answer"])
def test_damage_on_the_way_is_seen(run, kind):
    valid, read = run[kind]
    check_damage(read, valid[0])
