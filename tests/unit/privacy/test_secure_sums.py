"""Sums under masks are the very integers of plain sums, whoever vanishes, at whatever stage."""

from itertools import permutations

import numpy as np
import pytest

from fedprune.errors import ConfigError, QuorumError, ReplyRefusedError, WireError
from fedprune.privacy import secure_roll
from fedprune.privacy.secure_roll import COMPLETE, DEGREE, Neighbours, quorum
from fedprune.privacy.secure_server import SecureServer
from fedprune.privacy.secure_sums import BITS, LEAST_COHORT, SumPlan, Unsigned, WordSpec
from fedprune.wire.arrays import encode_arrays
from tests.support.secure_sums import drawn, integers, plain_sum, sites

SMALL = {"a": WordSpec(7, 64), "b": WordSpec(5, 128)}


@pytest.mark.parametrize(
    ("length", "bits"),
    [*((300, bits) for bits in BITS), *(((1 << 19) // bits * 8 + 5, bits) for bits in (8, 128))],
)
def test_every_width_of_words_adds_up_in_pieces_too(tmp_path, length, bits):
    words = WordSpec(length, bits)
    found = sites(tmp_path, 4, {"a": words}).set_up()
    terms = drawn(words, found.names)
    total = found.total("a", terms, absent=[found.names[1]])
    assert integers(total) == plain_sum(words, [terms[found.names[n]] for n in (0, 2, 3)])


@pytest.mark.parametrize("count", [3, 8, 64])
def test_as_many_as_may_vanish_at_each_stage(tmp_path, count):
    """At every stage another n - t are away; those who were not heard at all do not count."""
    words = SMALL["a"]
    found = sites(tmp_path, count, SMALL)
    most = count - quorum(count)
    names = found.names
    groups = [names[:most], names[-most:], names[1 : most + 1]]
    found.set_up()
    for stage, away in enumerate(groups):
        of = "ab"[stage % 2]
        terms = drawn(SMALL[of], names, stage)
        if stage == 2:
            break
        masked = found.masked(of, terms, absent=away)
        request = found.signed(masked, of, absent=groups[stage - 1])
        total = found.unmasked(masked, of, request, absent=groups[stage - 2])
        there = [terms[name] for name in names if name not in away]
        assert integers(total) == plain_sum(SMALL[of], there)
        assert masked.missing == tuple(sorted(away))
    if count > 8:
        return
    # And at the set-up: who never shared has no masks that anybody would miss.
    again = sites(tmp_path / "again", count, {"a": words})
    again.advertise()
    again.share(absent=groups[0])
    again.receive()
    assert set(again.server.members) == set(names) - set(groups[0])
    terms = drawn(words, names, 9)
    total = again.total("a", terms)
    assert integers(total) == plain_sum(words, [terms[name] for name in again.server.members])


def test_who_sends_no_keys_is_not_counted(tmp_path):
    found = sites(tmp_path, 5, SMALL, floor=3)
    found.advertise(absent=found.names[:2])
    found.share()
    found.receive()
    assert found.server.quorum == 2
    terms = drawn(SMALL["a"], found.names)
    total = found.total("a", terms)
    assert integers(total) == plain_sum(SMALL["a"], [terms[name] for name in found.names[2:]])


def test_fewer_than_enough_open_nothing(tmp_path):
    found = sites(tmp_path, 8, SMALL, floor=7)
    names = found.names
    found.advertise(absent=names[7:])
    with pytest.raises(QuorumError, match="0 of 7 clients shared"):
        found.server.close_shares()
    found.share()
    found.receive()
    terms = drawn(SMALL["a"], names)
    few = found.masked("a", terms, absent=names[:1])
    with pytest.raises(QuorumError, match="6 of 7 clients are in"):
        few.close()
    few.add(names[0], found.client(names[0]).masked("a", terms[names[0]]))
    few.close()
    with pytest.raises(QuorumError, match="4 of 7 clients have signed"):
        found.signed(few, "a", absent=names[:3])
    request = found.signed(few, "a")
    with pytest.raises(QuorumError, match="4 clients have answered.*5 shares"):
        found.unmasked(few, "a", request, absent=names[:3])
    assert not few.ready
    few.add_unmask(names[0], found.client(names[0]).unmask("a", request))
    assert few.ready and few.answered == (names[0], *names[3:7])
    assert integers(few.total()) == plain_sum(SMALL["a"], [terms[name] for name in names[:7]])


def test_the_floor_is_checked_at_the_set_up(tmp_path):
    found = sites(tmp_path, 4, SMALL, floor=4)
    with pytest.raises(QuorumError, match=r"3 clients sent keys.*`privacy.min_cohort` is 4"):
        found.advertise(absent=found.names[:1])


def test_order_of_arrival_never_shows(tmp_path):
    words = SMALL["b"]
    found = sites(tmp_path, 3, {"a": words})
    terms = drawn(words, found.names)
    adverts = {name: found.client(name).advertise() for name in found.names}
    kept = []
    for order in permutations(found.names):
        found.server = SecureServer(found.plan, found.roster)
        for name in order:
            found.server.add_advert(name, adverts[name])
        found.server.close_adverts()
        for name in reversed(order):
            answer = found.client(name).shares(found.server.adverts_for(name))
            found.server.add_shares(name, answer)
        found.server.close_shares()
        found.receive()
        masked = found.server.sum("a")
        for name in order:
            masked.add(name, found.client(name).masked("a", terms[name]))
        masked.close()
        for name in reversed(order):
            masked.add_signature(name, found.client(name).sign("a", masked.cohort))
        for name in order:
            answer = found.client(name).unmask("a", masked.unmask_request())
            masked.add_unmask(name, answer)
        kept.append({**found.server.state(), **masked.state(), "total": masked.total()})
    for other in kept[1:]:
        assert list(other) == list(kept[0])
        assert all(np.array_equal(other[name], array) for name, array in kept[0].items())


def test_the_same_again_changes_nothing_and_other_bytes_are_refused(tmp_path):
    found = sites(tmp_path, 4, SMALL).set_up()
    name, other = found.names[:2]
    terms = drawn(SMALL["a"], found.names)
    server, masked = found.server, found.masked("a", terms)
    assert server.add_advert(name, found.client(name).advertise()) is None
    server.add_shares(name, found.client(name).shares(server.adverts_for(name)))
    masked.add(name, found.client(name).masked("a", terms[name]))
    with pytest.raises(WireError, match="twice, and others"):
        elsewhere = found.client(name, folder=tmp_path / "new")
        server.add_advert(name, elsewhere.advertise())
    with pytest.raises(WireError, match="twice, and otherwise"):
        server.add_shares(name, found.client(other).shares(server.adverts_for(other)))
    with pytest.raises(WireError, match=f"'{name}' sent two different answers"):
        masked.add(name, found.client(other).masked("a", terms[other]))
    request = found.signed(masked, "a")
    for one in found.names:
        masked.add_unmask(one, found.client(one).unmask("a", request))
        masked.add_unmask(one, found.client(one).unmask("a", request))
    with pytest.raises(WireError, match="two different sets of shares"):
        masked.add_unmask(name, found.client(other).unmask("a", request))
    assert integers(masked.total()) == plain_sum(SMALL["a"], terms.values())


def test_who_comes_too_late_is_told_so(tmp_path):
    found = sites(tmp_path, 4, SMALL)
    name, rest = found.names[0], found.names[1:]
    late = found.client(name).advertise()
    found.advertise(absent=[name])
    with pytest.raises(ReplyRefusedError, match=f"'{name}' came too late"):
        found.server.add_advert(name, late)
    with pytest.raises(WireError, match="takes no part"):
        found.server.adverts_for(name)
    shares = found.client(rest[0]).shares(found.server.adverts_for(rest[0]))
    found.share(absent=rest[:1])
    with pytest.raises(ReplyRefusedError, match="too late"):
        found.server.add_shares(rest[0], shares)
    found.receive()
    terms = drawn(SMALL["a"], found.names)
    answer = found.client(rest[1]).masked("a", terms[rest[1]])
    masked = found.server.sum("a")
    with pytest.raises(WireError, match="no member"):
        masked.add(rest[0], answer)
    masked.add(rest[1], answer)
    masked.add(rest[2], found.client(rest[2]).masked("a", terms[rest[2]]))
    masked.close()
    with pytest.raises(QuorumError, match="adverts of secure sums are not closed"):
        SecureServer(found.plan, found.roster).adverts_for(name)
    assert masked.closed and masked.arrived == tuple(rest[1:])


def test_words_that_come_after_the_list_are_left_out(tmp_path):
    found = sites(tmp_path, 4, SMALL).set_up()
    name = found.names[0]
    terms = drawn(SMALL["a"], found.names)
    masked = found.masked("a", terms, absent=[name])
    late = found.client(name).masked("a", terms[name])
    masked.close()
    with pytest.raises(ReplyRefusedError, match="too late for this sum"):
        masked.add(name, late)
    total = found.unmasked(masked, "a", found.signed(masked, "a"))
    assert integers(total) == plain_sum(SMALL["a"], [terms[one] for one in found.names[1:]])


def test_a_server_goes_on_from_its_state_at_every_step(tmp_path):
    found = sites(tmp_path, 5, SMALL)
    terms = drawn(SMALL["b"], found.names)

    def killed():
        kept = {name: np.array(array) for name, array in found.server.state().items()}
        found.server = SecureServer(found.plan, found.roster)
        found.server.restore(kept)

    def masked_again(masked):
        kept = {name: np.array(array) for name, array in masked.state().items()}
        again = found.server.sum("b")
        again.restore(kept)
        return again

    killed()
    for name in found.names:
        found.server.add_advert(name, found.client(name).advertise())
        killed()
    found.server.close_adverts()
    for name in found.names:
        killed()
        found.server.add_shares(name, found.client(name).shares(found.server.adverts_for(name)))
    found.server.close_shares()
    for name in found.names:
        killed()
        found.client(name).receive(found.server.boxes_for(name))
    masked = found.server.sum("b")
    for name in found.names[1:]:
        masked = masked_again(masked)
        masked.add(name, found.client(name).masked("b", terms[name]))
    masked.close()
    for name in found.names:
        masked = masked_again(masked)
        masked.add_signature(name, found.client(name).sign("b", masked.cohort))
    for name in found.names:
        masked = masked_again(masked)
        masked.add_unmask(name, found.client(name).unmask("b", masked.unmask_request()))
    total = masked_again(masked).total()
    assert integers(total) == plain_sum(SMALL["b"], [terms[name] for name in found.names[1:]])
    with pytest.raises(ValueError, match="'running' is not that of such a sum"):
        found.server.sum("a").restore(masked.state())


def test_a_sum_that_is_not_planned_is_refused(tmp_path):
    found = sites(tmp_path, 4, SMALL).set_up()
    with pytest.raises(WireError, match="not one of this run's plan"):
        found.client(found.names[0]).masked("c", drawn(SMALL["a"], ["x"])["x"])


@pytest.mark.slow
def test_a_thousand_clients(tmp_path):
    words = WordSpec(4, 32)
    found = sites(tmp_path, 1000, {"a": words}, floor=500)
    # A million signatures to check take as many minutes as all the rest takes seconds.
    found.roster = Unsigned()
    found.keys = dict.fromkeys(found.keys, Unsigned())
    found.server = SecureServer(found.plan, found.roster)
    rng = np.random.default_rng(3)
    away = [set(rng.choice(found.names, size=60, replace=False)) for _ in range(4)]
    found.advertise()
    assert len(found.server.participants) == 1000
    found.share(absent=away[0])
    found.receive(absent=away[0])
    terms = drawn(words, found.names)
    masked = found.masked("a", terms, absent=away[1])
    request = found.signed(masked, "a", absent=away[2])
    total = found.unmasked(masked, "a", request, absent=away[3])
    there = [terms[name] for name in found.server.members if name not in away[1]]
    assert len(there) < 900 and integers(total) == plain_sum(words, there)


def test_many_clients_have_a_hundred_neighbours_each(tmp_path):
    """Regular, of the seed alone, both ways, and no two of the columns are mixed up."""
    for count in (COMPLETE + 1, 150, 1001):
        graph = Neighbours(count, b"seed")
        pairs = {(one, int(two)) for one, row in enumerate(graph.holders) for two in row}
        assert len(pairs) == count * (DEGREE + 1)
        assert all((two, one) in pairs for one, two in pairs)
        assert (np.diff(graph.holders, axis=1) > 0).all()
        assert np.array_equal(Neighbours(count, b"seed").holders, graph.holders)
        assert not np.array_equal(Neighbours(count, b"other").holders, graph.holders)
        rows = np.arange(count)[:, None]
        assert (graph.holders[graph.holders, graph.columns] == rows).all()
        assert graph.threshold == 51
    complete = Neighbours(COMPLETE, b"")
    assert complete.holders.shape == (COMPLETE, COMPLETE) and complete.degree == DEGREE
    assert complete.threshold == quorum(COMPLETE) == 68
    assert (complete.columns == np.arange(COMPLETE)[:, None]).all()


@pytest.fixture
def four_neighbours(monkeypatch):
    """Let each client have four neighbours, so that few are many."""
    monkeypatch.setattr(secure_roll, "DEGREE", 4)
    monkeypatch.setattr(secure_roll, "COMPLETE", 5)


def test_sums_among_neighbours(tmp_path, four_neighbours):
    words = SMALL["b"]
    found = sites(tmp_path, 9, SMALL).set_up()
    terms = drawn(words, found.names)
    for gone in found.names[::4]:
        masked = found.masked("b", terms, absent=[gone])
        total = found.unmasked(masked, "b", found.signed(masked, "b"))
        there = [terms[name] for name in found.names if name != gone]
        assert integers(total) == plain_sum(words, there)
        found = sites(tmp_path / gone, 9, SMALL).set_up()


def test_who_has_too_few_neighbours_in_a_sum_is_not_exposed(tmp_path, four_neighbours):
    """Of nine three may be away: were they neighbours of one, few would hide it, or a colluder."""
    found = sites(tmp_path, 9, SMALL).set_up()
    server, names = found.server, found.names
    terms = drawn(SMALL["a"], names)
    around = [names[one] for one in server.roll.neighbours.holders[0] if one != 0]
    masked = found.masked("a", terms, absent=around[:2])
    with pytest.raises(QuorumError, match="too few neighbours"):
        masked.close()
    cohort = np.array([name not in around[:2] for name in names], np.uint8)
    for name in names:
        if name not in around[:2]:
            with pytest.raises(ReplyRefusedError, match="too few neighbours"):
                found.client(name).sign("a", encode_arrays({"cohort": cohort}))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda: SumPlan("run", {"a": WordSpec(0, 8)}, 2),
            "1 or more words of 8, 16, 32, 64, 128 bits, got 0 of 8",
        ),
        (lambda: SumPlan("run", {"a": WordSpec(3, 24)}, 2), "got 3 of 24"),
        (lambda: SumPlan("r", {}, 2), "1 to 16384 secure sums"),
        (lambda: SumPlan("r", SMALL, 1), "floor of 1"),
    ],
)
def test_plans_that_make_no_sense(make, problem):
    with pytest.raises(ConfigError, match=problem):
        make()


def test_a_plan_goes_as_bytes_and_every_part_of_it_counts():
    plan = SumPlan("run", SMALL, LEAST_COHORT)
    assert SumPlan.from_bytes(plan.to_bytes()) == plan
    others = [
        SumPlan("run 2", SMALL, 2),
        SumPlan("run", dict(reversed(SMALL.items())), 2),
        SumPlan("run", {**SMALL, "a": WordSpec(8, 64)}, 2),
        SumPlan("run", SMALL, 3),
    ]
    assert len({one.digest for one in (plan, *others)}) == 5
