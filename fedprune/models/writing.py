"""Texts that a model writes itself, sampled from what it predicts: nobody's private text is needed.

The model runs block by block from its files, on all texts at once, once for each token; nothing is
kept between two tokens. So only one block need fit the device, and the cost is that of reading
half as many tokens again for each token written: it is meant for short texts.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.capture import output_of
from fedprune.models.device import DEFAULT, Limits
from fedprune.models.loading import LoadedModel
from fedprune.models.walk import ModelWalk


def write_texts(  # noqa: PLR0913 - a draw, a device, and whom to tell
    model: LoadedModel,
    count: int,
    length: int,
    seed: int,
    device: str | torch.device = "cpu",
    limits: Limits = DEFAULT,
    report: Callable[[int], None] = lambda _tokens: None,
) -> Tensor:
    """Return texts that a model writes, each begun by the token that begins or ends a text.

    Every next token is drawn from the whole distribution, at temperature 1. Where the tokenizer
    knows neither token, the first one is drawn evenly from the vocabulary.

    `model`: the model; its blocks must pass on hidden states alone. `report`: told how many tokens
    each text has, after each. Returns token ids, int64, shape (count, length), on the CPU. Raises
    ModelError if the model's predictions are not finite, or a text is too long for it.
    """
    draws = torch.Generator().manual_seed(seed)
    texts = torch.empty(count, 1, dtype=torch.int64)
    begin = first_token(model)
    if begin is None:
        size = int(model.model.get_input_embeddings().weight.shape[0])
        texts = torch.randint(size, texts.shape, generator=draws)
    else:
        texts.fill_(begin)
    outer = {name: tensor.to(device) for name, tensor in model.outer_tensors().items()}
    while texts.shape[1] < length:
        walk = ModelWalk(model, list(texts), device, limits=replace(limits, batch_size=count))
        while walk.blocks_left:
            walk.advance({})
        last = torch.cat([hidden[:, -1:] for hidden in walk.hidden]).to(device)
        logits = output_of(model, texts[:, -1:].to(device), last, outer)[:, -1].float().cpu()
        if not bool(torch.isfinite(logits.max(-1).values).all()) or bool(logits.isnan().any()):
            raise ModelError(
                "The model's own predictions are NaN or infinite, so it can write no text. Give a "
                "sound checkpoint, or `model.dtype=float32`."
            )
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=draws)
        texts = torch.cat([texts, drawn], dim=1)
        report(texts.shape[1])
    return texts


def first_token(model: LoadedModel) -> int | None:
    """Return the token that a text begins with, or else ends with; None if there is neither."""
    both = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    return next((token for token in both if token is not None), None)
