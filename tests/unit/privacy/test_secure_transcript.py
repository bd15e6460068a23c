"""Of all that the server received, with colluders' secrets, two inputs of one client look alike.

The attacker takes off every mask that it can compute. What is left must be noise that fits one
input as well as the other. Each test also runs with one mask left out, and must fail then: so it
would see it.
"""

import numpy as np
import pytest

from fedprune.privacy.secure_client import SecureClient
from fedprune.privacy.secure_masks import add_stream, agreed_key, own_key, private_key
from fedprune.privacy.secure_roll import context_digest
from fedprune.privacy.secure_sums import WordSpec
from fedprune.wire.arrays import decode_arrays
from tests.support.secure_sums import Sites, drawn, sites

WORDS = WordSpec(1 << 16, 8)
SUM = "a"
SIGMAS = 8  # of counts in 256 bins: a fair stream is beyond them once in 10**10 runs
VICTIM, HONEST, *COLLUDERS = range(5)  # t - 1 = 3 of five


@pytest.fixture
def leave_out(monkeypatch):
    """Leave the mask on every client's words out that has this place among its masks."""
    streams = SecureClient._streams

    def patch(of: str, place: int):
        def fewer(client, key, context):
            for number, one in enumerate(streams(client, key, context)):
                if client._name != of or number != place:
                    yield one

        monkeypatch.setattr(SecureClient, "_streams", fewer)

    return patch


def inputs(found: Sites, which: int):
    """Return words of which two sets have one sum: the victim's and the other honest one's swap."""
    terms = drawn(WORDS, found.names)
    if which:
        first, second = found.names[VICTIM], found.names[HONEST]
        terms[first], terms[second] = terms[second], terms[first]
    return terms


def known_pairs(found: Sites, words, colluders) -> None:
    """Take off the masks that the victim shares with colluders, by their private keys."""
    roll = found.server.roll
    public = found.server.public_key(VICTIM, 0)
    for other in colluders:
        secret = found.client(found.names[other])._secrets.private_keys[0].tobytes()
        binding = roll.pair_binding(0, context_digest(b""), VICTIM, other)
        key = agreed_key(private_key(secret), public, binding)
        add_stream(words, key, subtract=True)  # the victim is the first: it added it


def telling(left, terms, others) -> float:
    """Return by how many standard deviations one input fits better than the other."""
    score = int((left == terms).sum()) - int((left == others).sum())
    return abs(score) / np.sqrt(2 * left.size / 256)


def unevenness(left, *taken_off) -> float:
    """Return by how many standard deviations words are not spread evenly, minus each input."""
    found = []
    for term in (0, *taken_off):
        counts = np.bincount((left - term).astype(np.uint8), minlength=256)
        expected = left.size / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        found.append(abs(statistic - 255) / np.sqrt(2 * 255))
    return max(found)


def what_is_left_of_who_is_in(folder, which: int):
    """Everything is opened: the attacker has the victim's seed and the colluders' keys."""
    found = sites(folder, 5, {SUM: WORDS}).set_up()
    terms = inputs(found, which)
    masked = found.masked(SUM, terms)
    request = found.signed(masked, SUM)
    for name in found.names:
        masked.add_unmask(name, found.client(name).unmask(SUM, request))
    left = words_of(found, terms)
    seed = masked._opened()[VICTIM]
    add_stream(left, own_key(seed, found.server.roll.own_binding(0, VICTIM)), subtract=True)
    known_pairs(found, left, COLLUDERS)
    return left, found


def what_is_left_of_who_is_late(folder, which: int):
    """Its words came after the list: the attacker has its private key, so all its pair masks."""
    found = sites(folder, 5, {SUM: WORDS}).set_up()
    terms = inputs(found, which)
    left = words_of(found, terms)
    masked = found.masked(SUM, terms, absent=found.names[:1])
    request = found.signed(masked, SUM)
    for name in found.names:
        masked.add_unmask(name, found.client(name).unmask(SUM, request))
    secret, roll = masked._opened()[VICTIM], found.server.roll
    for other in range(1, 5):
        public = found.server.public_key(other, 0)
        binding = roll.pair_binding(0, context_digest(b""), VICTIM, other)
        key = agreed_key(private_key(secret), public, binding)
        add_stream(left, key, subtract=True)
    return left, found


def words_of(found: Sites, terms):
    """Return the victim's masked words, as they came."""
    name = found.names[VICTIM]
    answer = found.client(name).masked(SUM, terms[name])
    return decode_arrays(answer, WORDS.message)["words"].copy()


ATTACKS = {
    # Place among the victim's masks of the one that the attacker cannot take off.
    "in": (what_is_left_of_who_is_in, HONEST),
    "late": (what_is_left_of_who_is_late, 0),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_tells_which_of_two_inputs_it_was(tmp_path, attack, which):
    left, found = ATTACKS[attack][0](tmp_path, which)
    one, other = (inputs(found, number)[found.names[VICTIM]] for number in (0, 1))
    assert telling(left, one, other) < SIGMAS
    assert unevenness(left, one, other) < SIGMAS


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("attack", ATTACKS)
def test_without_one_of_the_masks_it_is_told(tmp_path, leave_out, attack, which):
    run, place = ATTACKS[attack]
    leave_out("site 000", place)
    left, found = run(tmp_path, which)
    inputs_of = [inputs(found, number)[found.names[VICTIM]] for number in (0, 1)]
    assert np.array_equal(left, inputs_of[which])
    assert telling(left, *inputs_of) > 10 * SIGMAS
    assert unevenness(left, *inputs_of) > 10 * SIGMAS


def test_nothing_secret_is_in_what_the_server_received(tmp_path):
    """Seeds, private keys and shares of two sums: it has the shares for the one that is open."""
    found = sites(tmp_path, 5, {SUM: WORDS, "b": WORDS}).set_up()
    terms = inputs(found, 0)
    masked = found.masked(SUM, terms, absent=found.names[4:])
    request = found.signed(masked, SUM)
    found.unmasked(masked, SUM, request)
    state = {**found.server.state(), **masked.state()}
    received = b"\n".join(np.ascontiguousarray(array).tobytes() for array in state.values())
    opened = 0
    for name in found.names:
        client = found.client(name)
        own, held = client._secrets, client._held.shares
        secrets = [own.channel, *map(bytes, own.seeds), *map(bytes, own.private_keys)]
        assert not any(secret in received for secret in secrets)
        for dealer in range(5):
            kinds = [share.tobytes() in received for share in held[dealer].reshape(-1, 32)]
            opened += sum(kinds)
            assert kinds == [dealer < 4, dealer == 4, False, False]
    assert opened == 25
