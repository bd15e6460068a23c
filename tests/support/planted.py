"""Private data that can be recognised wherever it turns up: words, names of files, ids, states."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

WORDS = ("Quorvaxil", "zymbrethon", "Ouldrikspy")
FILE_WORD = "patient-Xanthorvel"
_IDS = 6  # in a row
_VALUES = 8
_COMMON = "the sum of a list of numbers is what a function returns when it is called".split()

Needles = Mapping[str, Sequence[bytes]]
"""Kind -> what to look for."""


def sentence(number: int) -> str:
    """A private sentence with all words."""
    return f"{WORDS[0]} told {WORDS[1]} number {number} about {WORDS[2]}."


def write_texts(folder: Path, seed: int = 0, documents: int = 6) -> Path:
    """Write a site's folder of texts, each with private sentences; return it."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(documents):
        words = [" ".join(draw.choices(_COMMON, k=12)) for _ in range(12)]
        text = " ".join(f"{part} {sentence(seed)}" for part in words)
        (folder / f"{FILE_WORD}-{seed}-{number}.txt").write_text(text)
    return folder


def broken_line(folder: Path) -> Path:
    """Write a site's folder with a malformed line that holds private words; return it."""
    folder.mkdir(parents=True)
    (folder / f"{FILE_WORD}.jsonl").write_text('{"text": "' + sentence(0) + "\n")
    return folder


def broken_encoding(folder: Path) -> Path:
    """Write a site's folder with a text that is not UTF-8; return it."""
    folder.mkdir(parents=True)
    (folder / f"{FILE_WORD}.txt").write_bytes(sentence(1).encode() + b"\xff\xfe\n" * 9)
    return folder


def words_needles() -> dict[str, list[bytes]]:
    """Words and names of files, as text and as the text of their bytes."""
    return {"text": [form for word in WORDS for form in _forms(word)], "file": _forms(FILE_WORD)}


def _forms(word: str) -> list[bytes]:
    plain = word.encode()
    return [plain, plain.lower(), plain.hex().encode(), word.encode("utf-16-le")]


def id_needles(samples: Iterable[torch.Tensor]) -> list[bytes]:
    """Token ids of samples in a row: in decimal, and as bytes of every integer type."""
    found = []
    for sample in samples:
        ids = [int(value) for value in sample.flatten()[4 : 4 + _IDS]]
        found += [separator.join(map(str, ids)).encode() for separator in (", ", ",", " ")]
        found += [np.array(ids, dtype).tobytes() for dtype in ("<i8", "<i4", "<i2")]
    return found


def state_needles(hidden: Iterable[torch.Tensor]) -> list[bytes]:
    """Values of hidden states in a row, as bytes of every type of floating-point numbers."""
    found = []
    for state in hidden:
        rows = state.reshape(-1, state.shape[-1])
        for row in rows[[len(rows) // 3, len(rows) // 2]]:
            part = row[:_VALUES].float()
            found += [part.numpy().tobytes(), part.half().numpy().tobytes()]
            found.append(part.bfloat16().view(torch.int16).numpy().tobytes())
            found.append(", ".join(f"{float(value):.6g}" for value in part[:3]).encode())
    return found


def kept_tensors(path: Path) -> list[torch.Tensor]:
    """Return the tensors of a safetensors file, which nobody keeps open."""
    with safe_open(path, framework="pt") as file:
        return [file.get_tensor(name).clone() for name in file.keys()]


def found_in(data: bytes, needles: Needles) -> set[str]:
    """Return the kinds of needles that bytes hold."""
    return {kind for kind, forms in needles.items() if any(form in data for form in forms)}


def files_below(folder: Path) -> dict[str, bytes]:
    """Return what all files in a folder hold, by path; the folder's own name is left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_client_lines(log: bytes) -> bytes:
    """Return a log in JSON without the lines of clients, whose logs stay with them."""
    return b"\n".join(
        line for line in log.split(b"\n") if not re.search(rb'"role": "client"', line)
    )
