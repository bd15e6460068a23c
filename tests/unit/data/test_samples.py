"""Calibration samples: shape, coverage without overlap, determinism, and a clear lack of text."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedprune.data.documents import Document
from fedprune.data.samples import packed_samples
from fedprune.errors import DataError

EOS = 0


class Counting:
    """Tokens are the numbers in a text; counts the texts that are read."""

    def __init__(self, eos_token_id=EOS):
        self.eos_token_id = eos_token_id
        self.read = 0

    def encode(self, text, *, add_special_tokens, verbose):
        assert not add_special_tokens and not verbose
        self.read += 1
        return [int(word) for word in text.split()]


def corpus(lengths):
    """Return documents of these many tokens; no token occurs twice, none is EOS."""
    documents, first = [], 1
    for number, length in enumerate(lengths):
        text = " ".join(str(token) for token in range(first, first + length))
        documents.append(Document(text, "g", f"k{number}"))
        first += length
    return documents


def draw(lengths, count, seq_len, seed=0, eos=EOS):
    found = packed_samples(corpus(lengths), Counting(eos), count, seq_len, seed)
    return [sample.tokens for sample in found]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=15)


@settings(deadline=None)
@given(lengths, st.integers(2, 12), st.integers(0, 99), st.sampled_from([EOS, None]))
def test_no_token_is_used_twice_and_samples_are_full(lengths, seq_len, seed, eos):
    possible = sum(lengths) // seq_len  # with EOS between texts there may be more
    if possible == 0:
        return
    samples = draw(lengths, possible, seq_len, seed, eos)
    assert len(samples) == possible
    assert all(s.shape == (seq_len,) and s.dtype == torch.int64 for s in samples)
    tokens = torch.cat(samples)
    used = tokens[tokens != EOS] if eos == EOS else tokens
    assert len(used.unique()) == len(used)
    assert eos == EOS or EOS not in tokens


@settings(deadline=None)
@given(lengths, st.integers(2, 12), st.integers(0, 99))
def test_without_eos_exactly_all_tokens_can_be_had(lengths, seq_len, seed):
    possible = sum(lengths) // seq_len
    with pytest.raises(DataError):
        draw(lengths, possible + 1, seq_len, seed, eos=None)
    if possible:
        draw(lengths, possible, seq_len, seed, eos=None)


def test_each_long_document_gives_one_window_before_any_gives_two():
    samples = draw([30] * 10, 10, 8)
    first = [(int(sample[0]) - 1) // 30 for sample in samples]
    assert sorted(first) == list(range(10))
    again = draw([30] * 10, 30, 8)
    assert all(torch.equal(a, b) for a, b in zip(samples, again, strict=False))
    assert [sum((int(s[0]) - 1) // 30 == n for s in again) for n in range(10)] == [3] * 10


def test_a_window_is_consecutive_text():
    for sample in draw([50] * 4, 4, 16):
        assert torch.equal(sample.diff(), torch.ones(15, dtype=torch.int64))


def test_windows_lie_anywhere_in_a_document():
    starts = {int(draw([50], 1, 10, seed)[0][0]) for seed in range(300)}
    assert min(starts) == 1 and max(starts) == 41
    starts = {int(draw([14], 1, 10, seed)[0][0]) for seed in range(100)}
    assert starts == {1, 2, 3, 4, 5}


def test_short_documents_are_packed_with_eos_between_them():
    sample = draw([3, 3, 3], 1, 11)[0].tolist()
    runs = " ".join(map(str, sample)).split(" 0 ")
    assert sorted(runs) == ["1 2 3", "4 5 6", "7 8 9"]
    assert EOS not in draw([3, 3, 3], 1, 9, eos=None)[0]


def test_a_short_document_goes_on_in_the_next_sample():
    samples = draw([4, 4, 4], 2, 6)
    assert [EOS in sample for sample in samples] == [True, True]
    texts = torch.cat(samples).tolist()
    assert [texts.index(EOS), len(texts) - 1 - texts[::-1].index(EOS)] == [4, 9]
    assert texts[:4] in ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])
    assert texts[5:9] in ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])


def test_only_as_many_documents_are_read_as_it_takes():
    tokenizer = Counting()
    packed_samples(corpus([20] * 50), tokenizer, 5, 10, 0)
    assert tokenizer.read == 5
    tokenizer = Counting(None)
    packed_samples(corpus([5] * 50), tokenizer, 5, 10, 0)
    assert tokenizer.read == 10


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    documents = corpus([25, 7, 30, 9, 11, 40, 3])
    one = draw([25, 7, 30, 9, 11, 40, 3], 4, 8, 1)
    other = packed_samples(documents[::-1], Counting(), 4, 8, 1)
    assert torch.equal(torch.stack(one), torch.stack([sample.tokens for sample in other]))
    assert not torch.equal(torch.stack(one), torch.stack(draw([25, 7, 30, 9, 11, 40, 3], 4, 8, 2)))


def test_the_draw_is_the_same_everywhere():
    assert [s.tolist() for s in draw([9, 30, 4, 17], 3, 6, seed=7)] == [
        [10, 11, 12, 13, 14, 15],
        [44, 45, 46, 47, 48, 49],
        [1, 2, 3, 4, 5, 6],
    ]


def test_too_little_text_says_what_was_found_and_what_to_change():
    with pytest.raises(DataError) as caught:
        draw([10, 10], 5, 8, eos=None)
    message = str(caught.value)
    for word in ("5 samples of 8 tokens (40 tokens)", "2 documents have 20 tokens", "for 2"):
        assert word in message
    for key in ("`pruner.num_calibration_samples`", "`pruner.seq_len`", "`data.path`"):
        assert key in message
    with pytest.raises(DataError, match="these 0 documents have 0 tokens"):
        draw([], 1, 8)


def test_a_real_tokenizer_stays_silent_about_its_context(capfd):
    vocabulary = {"<eos>": 0, "<bos>": 1, "word": 2, "<unk>": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>", model_max_length=8
    )
    documents = [Document("word " * 5, "g", "a"), Document("word other " * 40, "g", "b")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = packed_samples(documents, tokenizer, 4, 20, 0)
    tokens = torch.cat([sample.tokens for sample in samples])
    assert tokens.dtype == torch.int64 and set(tokens.tolist()) <= {0, 2, 3}
    assert "maximum" not in capfd.readouterr().err
