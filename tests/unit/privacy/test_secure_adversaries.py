"""Servers that lie about who is there, clients that lie about their shares; real bytes."""

from itertools import combinations

import numpy as np
import pytest

from fedprune.errors import QuorumError, ReplyRefusedError, WireError
from fedprune.privacy import secure_client, shamir
from fedprune.privacy.secure_masks import new_secret, public_key
from fedprune.privacy.secure_roll import advert_digest, commitments_digest
from fedprune.privacy.secure_server import SecureServer
from fedprune.privacy.secure_sums import SumPlan, WordSpec, names_array
from fedprune.wire.arrays import Arrays, encode_arrays
from tests.support.secure_sums import Sites, drawn, integers, plain_sum, sites
from tests.support.signing import signing_key

SUMS = {"a": WordSpec(6, 64), "b": WordSpec(6, 64)}


@pytest.fixture
def five(tmp_path):
    """Five sites that are set up; any four can be summed."""
    return sites(tmp_path, 5, SUMS).set_up()


def arrays_of(data: bytes) -> dict:
    """Return the arrays of a message, as whoever carries it can see and change them."""
    arrays = Arrays(data, [f"{n:40}" for n in range(40)])
    found = {name: np.array(arrays.take(name, arrays.announced(name))) for name in arrays.names}
    return found


def cohort_of(found: Sites, absent=()) -> bytes:
    there = [name not in absent for name in found.server.participants]
    return encode_arrays({"cohort": np.array(there, np.uint8)})


def request_of(found: Sites, cohort: bytes, signatures: dict[str, bytes]) -> bytes:
    """Return an unmasking request as a server makes it that checks nothing."""
    names = found.server.participants
    told = [arrays_of(signatures[name])["signature"] for name in names if name in signatures]
    return encode_arrays(
        {
            "cohort": arrays_of(cohort)["cohort"],
            "signers": np.array([name in signatures for name in names], np.uint8),
            "signatures": np.stack(told) if told else np.zeros((0, 64), np.uint8),
        }
    )


# A server that lies.


def test_both_questions_about_one_client_are_not_answered(five):
    """It has all words, opens the sum of all, and then says that one was not there."""
    name, rest = five.names[0], five.names[1:]
    terms = drawn(SUMS["a"], five.names)
    masked = five.masked("a", terms)
    request = five.signed(masked, "a")
    assert integers(five.unmasked(masked, "a", request)) == plain_sum(SUMS["a"], terms.values())
    without = cohort_of(five, absent=[name])
    for one in rest:
        with pytest.raises(ReplyRefusedError, match="agreed to another list"):
            five.client(one).sign("a", without)
    stolen = arrays_of(request)
    forged = {**stolen, "cohort": arrays_of(without)["cohort"]}
    for one in rest:
        with pytest.raises(ReplyRefusedError, match="must have signed the same list"):
            five.client(one).unmask("a", encode_arrays(forged))


def test_two_lists_find_no_quorum(five):
    """Half of the sites are shown one list, half another; no signatures do for either."""
    terms = drawn(SUMS["a"], five.names)
    five.masked("a", terms)
    lists = [cohort_of(five, absent=five.names[4:]), cohort_of(five, absent=five.names[:1])]
    shown = {name: lists[place % 2] for place, name in enumerate(five.names)}
    signatures = {name: five.client(name).sign("a", shown[name]) for name in five.names}
    for told in lists:
        for chosen in (signatures, {n: s for n, s in signatures.items() if shown[n] == told}):
            for name in five.names:
                with pytest.raises(ReplyRefusedError, match="another list"):
                    five.client(name).unmask("a", request_of(five, told, chosen))


def test_signatures_of_other_sums_runs_and_members_do_not_count(five, tmp_path):
    terms = drawn(SUMS["a"], five.names)
    signed = {}
    for of in SUMS:
        masked = five.masked(of, terms)
        masked.close()
        signed[of] = {name: five.client(name).sign(of, masked.cohort) for name in five.names}
    again = Sites(tmp_path / "again", SumPlan("run 2", SUMS, 2), five.keys, five.roster)
    again.set_up()
    masked = again.masked("a", terms)
    masked.close()
    other_run = {name: again.client(name).sign("a", masked.cohort) for name in five.names}
    cohort = masked.cohort
    for replayed in (signed["b"], other_run):
        for name in five.names:
            with pytest.raises(ReplyRefusedError, match="these are 1"):
                five.client(name).unmask("a", request_of(five, cohort, replayed))
    others = [*five.names[1:], five.names[0]]
    twisted = {name: signed["a"][other] for name, other in zip(five.names, others, strict=True)}
    with pytest.raises(ReplyRefusedError, match="these are 1"):
        five.client(five.names[0]).unmask("a", request_of(five, cohort, twisted))
    with pytest.raises(WireError, match="no signature of its own"):
        masked = five.masked("a", terms)
        masked.close()
        masked.add_signature(five.names[0], signed["b"][five.names[0]])


def test_sums_of_the_same_words_are_of_one_cohort_whatever_they_are_called(tmp_path):
    """A survey and the pruning after it, of the same statistics: who left would be told."""
    found = sites(tmp_path, 5, {"survey": WordSpec(40, 64), "prune": WordSpec(40, 64)}).set_up()
    gone, rest = found.names[0], found.names[1:]
    terms = drawn(WordSpec(40, 64), found.names)
    found.total("survey", terms)
    masked = found.masked("prune", terms, absent=[gone])
    masked.close()
    for name in rest:
        with pytest.raises(ReplyRefusedError, match="or in one of the same words"):
            found.client(name).sign("prune", masked.cohort)
    again = found.masked("prune", terms)
    total = found.unmasked(again, "prune", found.signed(again, "prune"))
    assert integers(total) == plain_sum(WordSpec(40, 64), terms.values())


def test_short_sums_of_the_same_counts_may_be_of_other_cohorts(five):
    terms = drawn(SUMS["a"], five.names)
    five.total("a", terms)
    rest = five.names[1:]
    total = five.total("b", terms, absent=five.names[:1])
    assert integers(total) == plain_sum(SUMS["b"], [terms[name] for name in rest])


def test_a_site_that_was_told_something_else_is_not_told_from_the_sum(five):
    """A model that makes all others answer what the server knows: one site's words would be left.

    A site says what it was told, so a server that means no harm leaves it out. One that does adds
    the words all the same; they are hidden by masks that nothing opens.
    """
    victim, rest = five.names[0], five.names[1:]
    secret = drawn(SUMS["a"], [victim])[victim]
    known = np.zeros(6, np.uint64)
    masked = five.server.sum("a", context=b"what makes answers zero")
    for name in rest:
        answer = five.client(name).masked("a", known, context=b"what makes answers zero")
        masked.add(name, answer)
    answer = five.client(victim).masked("a", secret, context=b"the model")
    with pytest.raises(WireError, match=f"'{victim}' answered to something else"):
        masked.add(victim, answer)
    told = arrays_of(five.client(rest[0]).masked("a", known, context=b"what makes answers zero"))
    forged = {**arrays_of(answer), "context": told["context"]}
    masked.add(victim, encode_arrays(forged))
    total = five.unmasked(masked, "a", five.signed(masked, "a"))
    assert not np.array_equal(total, secret) and (total != secret).all()
    # With one thing told to all it would have been read off.
    fair = five.server.sum("b")
    for name in five.names:
        fair.add(name, five.client(name).masked("b", secret if name == victim else known))
    assert np.array_equal(five.unmasked(fair, "b", five.signed(fair, "b")), secret)


def test_lists_with_too_few_or_with_who_was_never_there(tmp_path):
    found = sites(tmp_path, 6, SUMS, floor=5)
    found.advertise()
    found.share(absent=found.names[5:])
    found.receive()
    terms = drawn(SUMS["a"], found.names)
    found.masked("a", terms, absent=found.names[4:])
    client = found.client(found.names[0])
    with pytest.raises(ReplyRefusedError, match="over 4 clients.*at least 5"):
        client.sign("a", cohort_of(found, absent=found.names[4:]))
    with pytest.raises(ReplyRefusedError, match="none of the run's members"):
        client.sign("a", cohort_of(found, absent=found.names[:1]))
    with pytest.raises(ReplyRefusedError, match="it sent nothing"):
        found.client(found.names[4]).sign("a", cohort_of(found, absent=found.names[5:]))
    with pytest.raises(WireError, match="0 or 1"):
        client.sign("a", encode_arrays({"cohort": np.full(6, 2, np.uint8)}))


def test_a_site_keeps_its_own_floor(tmp_path):
    found = sites(tmp_path, 4, SUMS, floor=2)
    with pytest.raises(ReplyRefusedError, match="over at least 4 clients, the server plans.* 2"):
        found.client(found.names[0], floor=4)
    found.plan = SumPlan("run 1", SUMS, 4)
    found.server = SecureServer(found.plan, found.roster)
    found.client(found.names[0], floor=4).advertise()


@pytest.fixture
def told(tmp_path):
    """Return four sites whose keys are in, and what the first one is to be told."""
    found = sites(tmp_path, 4, SUMS)
    found.advertise()
    return found, arrays_of(found.server.adverts_for(found.names[0]))


def test_keys_that_the_server_made_up_are_refused(told):
    """A server in the middle would know every mask."""
    found, adverts = told
    client = found.client(found.names[0])
    mine, middle = signing_key(), public_key(new_secret())
    mitm = {**adverts, "channels": np.stack([np.frombuffer(middle, np.uint8)] * 3)}
    with pytest.raises(ReplyRefusedError, match=f"'{found.names[1]}' are not those it signed"):
        client.shares(encode_arrays(mitm))
    keys = adverts["keys"].copy()
    keys[1, 1] = np.frombuffer(middle, np.uint8)
    with pytest.raises(ReplyRefusedError, match=f"'{found.names[2]}' are not those it signed"):
        client.shares(encode_arrays({**adverts, "keys": keys}))
    channel, own_keys = adverts["channels"][0].tobytes(), keys[1]
    digest = advert_digest(channel, own_keys, adverts["commitments"][1].tobytes())
    statement = secure_client.advert_statement(found.plan, digest)
    signature = mine.sign(statement, purpose=secure_client.ADVERT, run=found.plan.run)
    forged = {name: array.copy() for name, array in {**adverts, "keys": keys}.items()}
    forged["digests"][2] = np.frombuffer(digest, np.uint8)
    forged["signatures"][2] = np.frombuffer(signature, np.uint8)
    forged["channels"][1] = forged["channels"][0]
    with pytest.raises(ReplyRefusedError, match=f"keys of '{found.names[2]}' are not signed"):
        client.shares(encode_arrays(forged))


def test_keys_that_were_swapped_left_out_or_are_strangers_are_refused(told):
    found, adverts = told
    client = found.client(found.names[0])
    swap = [0, 2, 1, 3]
    swapped = {name: adverts[name][swap] for name in ("digests", "signatures")}
    with pytest.raises(ReplyRefusedError, match=f"'{found.names[1]}' are not signed"):
        client.shares(encode_arrays({**adverts, **swapped}))
    names = names_array([*found.names[:3], "stranger"])
    with pytest.raises(ReplyRefusedError, match="'stranger' are not signed"):
        client.shares(encode_arrays({**adverts, "names": names}))
    for few in (found.names[1:], found.names[:1]):
        with pytest.raises(ReplyRefusedError, match=f"{len(few)} clients take part"):
            client.shares(encode_arrays({**adverts, "names": names_array(few)}))
    with pytest.raises(WireError, match="sorted"):
        client.shares(encode_arrays({**adverts, "names": names_array(found.names[::-1])}))


def test_a_sites_own_keys_of_another_run_or_folder_are_not_told_to_others(told, tmp_path):
    """Its own signature is on them, but it no longer has what belongs to them."""
    found, _ = told
    again = SecureServer(found.plan, found.roster)
    for name in found.names:
        client = found.client(name, folder=tmp_path / "elsewhere" / name)
        again.add_advert(name, client.advertise())
    again.close_adverts()
    with pytest.raises(ReplyRefusedError, match="not told to others as it sent them"):
        found.client(found.names[0]).shares(again.adverts_for(found.names[0]))
    other = Sites(tmp_path / "run", SumPlan("run 2", SUMS, 2), found.keys, found.roster)
    with pytest.raises(WireError, match="not signed by a site of that name"):
        again = SecureServer(found.plan, found.roster)
        again.add_advert(found.names[0], other.client(found.names[0]).advertise())


def test_secrets_are_shared_once_and_shares_taken_once(told, tmp_path):
    found, _ = told
    name = found.names[0]
    first = found.client(name).shares(found.server.adverts_for(name))
    assert found.client(name).shares(found.server.adverts_for(name)) == first
    fewer = SecureServer(found.plan, found.roster)
    for one in found.names[:3]:
        fewer.add_advert(one, found.client(one).advertise())
    fewer.close_adverts()
    with pytest.raises(ReplyRefusedError, match="once in a run"):
        found.client(name).shares(fewer.adverts_for(name))
    found.share()
    boxes = arrays_of(found.server.boxes_for(name))
    for members in ([1, 1, 0, 0], [0, 1, 1, 1]):
        forged = encode_arrays({**boxes, "members": np.array(members, np.uint8)})
        with pytest.raises(ReplyRefusedError, match="shared their secrets, expected 3 or more"):
            found.client(name).receive(forged)
    found.receive()
    forged = encode_arrays({**boxes, "members": np.array([1, 1, 1, 0], np.uint8)})
    with pytest.raises(ReplyRefusedError, match="told of other members"):
        found.client(name).receive(forged)


def test_who_is_told_of_other_participants_cannot_open_the_others_shares(told):
    """Two views of who takes part fall apart: their shares and signatures fit no others."""
    found, _ = told
    first, *_, last = found.names
    fewer = SecureServer(found.plan, found.roster)
    for one in found.names[:3]:
        fewer.add_advert(one, found.client(one).advertise())
    fewer.close_adverts()
    split = {first: found.client(first).shares(fewer.adverts_for(first))}
    # What the first sent goes for what it would have sent to all.
    boxes = arrays_of(split[first])["boxes"]
    found.server.add_shares(first, encode_arrays({"boxes": np.concatenate([boxes, boxes[:1]])}))
    found.share(absent=[first])
    for one in found.names[1:]:
        assert found.client(one).receive(found.server.boxes_for(one)) == (first,)
    terms = drawn(SUMS["a"], found.names)
    masked = found.server.sum("a")
    for one in found.names[1:]:
        masked.add(one, found.client(one).masked("a", terms[one]))
    masked.close()
    for one in found.names[1:]:
        masked.add_signature(one, found.client(one).sign("a", masked.cohort))
    for one in found.names[1:]:
        masked.add_unmask(one, found.client(one).unmask("a", masked.unmask_request()))
    with pytest.raises(QuorumError, match=f"of '{first}'"):
        masked.total()
    assert last in masked.arrived


# A process that dies.


def test_no_words_go_out_twice_under_the_same_masks(five):
    name = five.names[0]
    words = drawn(SUMS["a"], [name])[name]
    sent = five.client(name).masked("a", words)
    assert five.client(name).masked("a", words) == sent
    other = words.copy()
    other[3] += 1
    with pytest.raises(ReplyRefusedError, match="other words under the masks"):
        five.client(name).masked("a", other)
    assert five.client(name).masked("b", other) != five.client(name).masked("a", words)


@pytest.fixture
def killed(monkeypatch):
    """Run a step of a process that dies as soon as a file of its is on the disk."""
    write = secure_client.replace_file

    def run(step, file):
        def dies(target, data, **rest):
            write(target, data, **rest)
            if target.name == file:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(secure_client, "replace_file", dies)
            step()

    return run


def test_a_process_that_dies_in_the_set_up_is_followed_by_one_that_says_the_same(tmp_path, killed):
    found = sites(tmp_path, 5, SUMS)
    name = found.names[0]
    killed(lambda: found.client(name).advertise(), "said.bin")  # there are no keys yet
    killed(lambda: found.client(name).advertise(), "keys.bin")
    keys = (tmp_path / name / "keys.bin").read_bytes()
    found.advertise()
    assert (tmp_path / name / "keys.bin").read_bytes() == keys
    adverts = found.server.adverts_for(name)
    killed(lambda: found.client(name).shares(adverts), "shares.bin")
    kept = (tmp_path / name / "shares.bin").read_bytes()
    found.share()
    assert (tmp_path / name / "shares.bin").read_bytes() == kept
    killed(lambda: found.client(name).receive(found.server.boxes_for(name)), "boxes.bin")
    found.receive()
    terms = drawn(SUMS["a"], found.names)
    assert integers(found.total("a", terms)) == plain_sum(SUMS["a"], terms.values())


@pytest.mark.parametrize("stage", ["masked", "sign", "unmask"])
def test_what_a_process_kept_before_it_died_binds_the_next(five, killed, stage):
    """It dies when its answer is on the disk, before that is sent; nothing else is ever sent."""
    name, rest = five.names[0], five.names[1:]
    terms, others = drawn(SUMS["a"], five.names), drawn(SUMS["a"], five.names, 1)
    if stage == "masked":
        killed(lambda: five.client(name).masked("a", terms[name]), "said.bin")
        with pytest.raises(ReplyRefusedError, match="other words"):
            five.client(name).masked("a", others[name])
    masked = five.masked("a", terms)
    masked.close()
    if stage == "sign":
        killed(lambda: five.client(name).sign("a", masked.cohort), "said.bin")
    for one in rest:
        masked.add_signature(one, five.client(one).sign("a", masked.cohort))
    request = masked.unmask_request()
    if stage == "unmask":  # it has not signed: its consent is its answer
        killed(lambda: five.client(name).unmask("a", request), "said.bin")
    if stage != "masked":
        with pytest.raises(ReplyRefusedError, match="another list"):
            five.client(name).sign("a", cohort_of(five, absent=rest[-1:]))
    total = five.unmasked(masked, "a", request)
    assert integers(total) == plain_sum(SUMS["a"], terms.values())


def test_nothing_is_sent_that_could_not_be_kept(five, monkeypatch):
    name = five.names[0]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(secure_client, "replace_file", full)
    with pytest.raises(OSError, match="No space"):
        five.client(name).masked("a", drawn(SUMS["a"], [name])[name])


def test_a_folder_that_lost_something_or_is_of_another_plan_is_refused(five, tmp_path):
    name = five.names[0]
    folder = tmp_path / name
    with pytest.raises(ReplyRefusedError, match="those of another plan"):
        five.client(name, plan=SumPlan("run 2", SUMS, 2))
    assert (folder / "keys.bin").stat().st_mode & 0o77 == 0 == folder.stat().st_mode & 0o77
    for lost in ("boxes.bin", "shares.bin", "said.bin"):
        (folder / lost).rename(tmp_path / "lost")
        with pytest.raises(ReplyRefusedError, match="or its folder was emptied"):
            five.client(name).masked("a", drawn(SUMS["a"], [name])[name])
        (tmp_path / "lost").rename(folder / lost)
    (folder / "said.bin").write_bytes(b"rubbish")
    with pytest.raises(WireError):
        five.client(name).masked("a", drawn(SUMS["a"], [name])[name])


def test_a_site_that_signed_a_list_without_it_sends_no_words_any_more(five):
    name, rest = five.names[0], five.names[1:]
    terms = drawn(SUMS["a"], five.names)
    masked = five.masked("a", terms, absent=[name])
    five.signed(masked, "a")
    with pytest.raises(ReplyRefusedError, match="it is closed"):
        five.client(name).masked("a", terms[name])
    five.client(rest[0]).masked("a", terms[rest[0]])  # the same again


# Clients that lie.


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(5, np.uint64),
        np.zeros(7, np.uint64),
        np.zeros((6, 1), np.uint64),
        np.zeros(6, np.int64),
        np.zeros(6, np.uint32),
        np.full(6, np.nan),
    ],
)
def test_words_of_another_form_are_refused_and_the_client_named(five, words):
    name = five.names[0]
    masked = five.server.sum("a")
    context = arrays_of(five.client(name).masked("a", np.zeros(6, np.uint64)))["context"]
    sound = {"words": np.zeros(6, np.uint64), "context": context}
    for message in (
        {**sound, "words": words},
        {**sound, "more": words},
        {"words": sound["words"]},
        {**sound, "context": context[1:]},
    ):
        with pytest.raises(WireError, match=f"'{name}' sent for a secure sum"):
            masked.add(name, encode_arrays(message))
    assert masked.arrived == () and not masked._running.any()
    with pytest.raises(WireError, match=r"must be uint64\[6\]"):
        five.client(name).masked("a", words)


def test_adverts_that_are_not_the_senders_or_hide_nothing_are_refused(tmp_path):
    found = sites(tmp_path, 3, SUMS)
    first, second, _ = found.names
    advert = found.client(first).advertise()
    with pytest.raises(WireError, match=f"'{second}' sent are not signed"):
        found.server.add_advert(second, advert)
    with pytest.raises(WireError, match="'stranger' sent are not signed"):
        found.server.add_advert("stranger", advert)
    told = arrays_of(advert)
    for name, size in (("keys", (3, 32)), ("channel", (31,)), ("signature", (65,))):
        with pytest.raises(WireError, match=f"'{first}' sent for a secure sum"):
            found.server.add_advert(first, encode_arrays({**told, name: np.ones(size, np.uint8)}))
    keys = told["keys"].copy()
    keys[1] = 0  # every secret agrees on the same with it
    digest = advert_digest(told["channel"].tobytes(), keys, commitments_digest(told["commitments"]))
    statement = secure_client.advert_statement(found.plan, digest)
    key = found.keys[first]
    signature = key.sign(statement, purpose=secure_client.ADVERT, run=found.plan.run)
    forged = {**told, "keys": keys, "signature": np.frombuffer(signature, np.uint8)}
    with pytest.raises(WireError, match="one that hides nothing"):
        found.server.add_advert(first, encode_arrays(forged))


def lied(answer: bytes, places=slice(None)) -> bytes:
    told = arrays_of(answer)
    told["shares"][places] ^= 0x55
    return encode_arrays(told)


@pytest.mark.parametrize("liars", [1, 2])
def test_who_gives_wrong_shares_is_found_and_the_sum_is_right(tmp_path, liars):
    found = sites(tmp_path, 8, SUMS).set_up()
    terms = drawn(SUMS["a"], found.names)
    away = found.names[7:]
    masked = found.masked("a", terms, absent=away)
    request = found.signed(masked, "a")
    bad = found.names[1 : 1 + liars]
    for name in found.names:
        answer = found.client(name).unmask("a", request)
        masked.add_unmask(name, lied(answer) if name in bad else answer)
    total = masked.total()
    assert integers(total) == plain_sum(SUMS["a"], [terms[n] for n in found.names[:7]])
    assert {holder for _, holder in masked.misfits} == set(bad)
    assert {dealer for dealer, _ in masked.misfits} == set(found.names)


def test_too_many_wrong_shares_open_nothing_and_more_answers_do(tmp_path):
    found = sites(tmp_path, 8, SUMS).set_up()
    terms = drawn(SUMS["a"], found.names)
    masked = found.masked("a", terms)
    request = found.signed(masked, "a")
    answers = {name: found.client(name).unmask("a", request) for name in found.names}
    first, *rest = found.names
    masked.add_unmask(first, lied(answers[first], places=[3]))
    for name in rest[:5]:
        masked.add_unmask(name, answers[name])
    with pytest.raises(QuorumError, match=f"secret of '{found.names[3]}' do not fit"):
        masked.total()
    masked.add_unmask(rest[5], answers[rest[5]])
    assert integers(masked.total()) == plain_sum(SUMS["a"], terms.values())
    assert masked.misfits == ((found.names[3], first),)


def test_who_deals_shares_that_do_not_fit_is_named(tmp_path, monkeypatch):
    found = sites(tmp_path, 5, SUMS)
    bad = found.names[2]
    found.advertise()
    split = shamir.split
    for name in found.names:
        if name == bad:
            wrong = lambda s, t, n: split(s, t, n) ^ np.arange(n, dtype=np.uint8)[:, None, None]  # noqa: E731
            monkeypatch.setattr(shamir, "split", wrong)
        adverts = found.server.adverts_for(name)
        found.server.add_shares(name, found.client(name).shares(adverts))
        monkeypatch.setattr(shamir, "split", split)
    found.server.close_shares()
    found.receive()
    terms = drawn(SUMS["a"], found.names)
    masked = found.masked("a", terms)
    request = found.signed(masked, "a")
    with pytest.raises(QuorumError, match=f"secret of '{bad}' do not fit"):
        found.unmasked(masked, "a", request)


def test_a_box_that_cannot_be_opened_costs_its_share_only(tmp_path):
    found = sites(tmp_path, 5, SUMS)
    found.advertise()
    first, second = found.names[:2]
    for name in found.names:
        boxes = arrays_of(found.client(name).shares(found.server.adverts_for(name)))["boxes"]
        if name == second:
            boxes[0, 40] ^= 1  # that for the first
        found.server.add_shares(name, encode_arrays({"boxes": boxes}))
    found.server.close_shares()
    for name in found.names:
        damaged = found.client(name).receive(found.server.boxes_for(name))
        assert damaged == ((second,) if name == first else ())
    terms = drawn(SUMS["a"], found.names)
    assert integers(found.total("a", terms)) == plain_sum(SUMS["a"], terms.values())


def test_a_key_that_is_opened_is_that_of_its_sum_only(five):
    """With all shares that were sent for one sum, of who was not there: no other key of its."""
    gone = five.names[0]
    terms = drawn(SUMS["a"], five.names)
    masked = five.masked("a", terms, absent=[gone])
    request = five.signed(masked, "a")
    five.unmasked(masked, "a", request)
    advert = arrays_of(five.client(gone).advertise())
    opened = masked._opened()[0]
    assert public_key(opened) == advert["keys"][0].tobytes()
    assert all(public_key(opened) != key.tobytes() for key in advert["keys"][1:])
    own = five.client(gone)._secrets
    others = {key.tobytes() for key in [*own.private_keys[1:], *own.seeds]}
    sent = b"".join(array.tobytes() for array in masked.state().values())
    assert own.private_keys[0].tobytes() == opened
    assert not any(secret in sent for secret in others)


def test_fewer_colluders_than_the_threshold_cannot_open_a_secret(five):
    """What t - 1 of them hold of the first's seeds and keys, put together, is none of them."""
    victim = five.client(five.names[0])._secrets
    secrets = {one.tobytes() for one in [*victim.seeds, *victim.private_keys]}
    threshold = five.server.quorum
    held = {name: five.client(name)._held.shares[0] for name in five.names[1:]}
    for count in (threshold - 1, threshold):
        found = set()
        for some in combinations(range(1, 5), count):
            shares = np.stack([held[five.names[one]] for one in some]).reshape(count, -1, 16)
            numbers = np.array([some]) + 1
            halves = shamir.combine(numbers, shares[None])[0].reshape(-1, 32)
            found |= {one.tobytes() for one in halves}
        assert found & secrets == (secrets if count == threshold else set())


def test_unmasking_answers_of_another_form_are_refused(five):
    name = five.names[0]
    terms = drawn(SUMS["a"], five.names)
    masked = five.masked("a", terms)
    request = five.signed(masked, "a")
    told = arrays_of(five.client(name).unmask("a", request))
    for change in (
        {"given": np.full(5, 2, np.uint8)},
        {"given": np.ones(4, np.uint8)},
        {"shares": np.ones((5, 31), np.uint8)},
    ):
        with pytest.raises(WireError, match=f"'{name}'"):
            masked.add_unmask(name, encode_arrays({**told, **change}))
    assert masked.answered == () and told["shares"].shape == (5, 32)
