"""Secure sums of FedStats' statistics of a 7B model: a client's CPU and bytes at every step.

All clients are real and on this machine; one of them is timed. The floor of a mask is AES-CTR's
stream alone, without adding it.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from benchmarks.measure import alternate, report
from fedprune.privacy.roster import Roster
from fedprune.privacy.secure_client import SecureClient
from fedprune.privacy.secure_masks import add_stream, new_secret
from fedprune.privacy.secure_server import SecureServer
from fedprune.privacy.secure_sums import BITS, SumPlan, WordSpec
from fedprune.privacy.signing import SigningKey

COLUMNS = 745_472  # inputs of the linears of Llama-2-7B, q, k and v together, gate and up together
BLOCKS = 32
Row = dict[str, str | float]


def streams(size: int, rounds: int) -> list[Row]:
    """Return how fast masks are made and added, by bits of a word."""
    key, zeros, piece = new_secret(), bytes(1 << 18), bytearray((1 << 18) + 16)

    def stream() -> None:
        encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
        for start in range(0, size, len(zeros)):
            encryptor.update_into(memoryview(zeros)[: size - start], piece)

    cases: dict[str, Callable[[], object]] = {"floor": stream}
    for bits in BITS:
        spec = WordSpec(size * 8 // bits, bits).spec
        words = np.zeros(spec.shape, spec.dtype)
        cases[str(bits)] = lambda words=words: add_stream(words, key)  # type: ignore[misc]
    seconds = alternate(cases, rounds)
    return [
        {
            "bits": bits,
            "MB/s": size / seconds[str(bits)] / 1e6,
            "floor, MB/s": size / seconds["floor"] / 1e6,
            "times the floor": seconds[str(bits)] / seconds["floor"],
        }
        for bits in BITS
    ]


def a_run(clients: int, columns: int, blocks: int, bits: int, folder: Path) -> list[Row]:
    """Return what each step of one client takes, in a run of one sum a block."""
    steps: list[Row] = []

    def timed(step: str, told: int, work: Callable[[], Any]) -> Any:
        start = time.thread_time()
        answer = work()
        seconds = time.thread_time() - start
        sent = len(answer) if isinstance(answer, bytes) else 0
        steps.append({"step": step, "CPU, ms": seconds * 1e3, "bytes up": sent, "bytes down": told})
        return answer

    keys = {f"site {n:03}": SigningKey(Ed25519PrivateKey.generate()) for n in range(clients)}
    roster = Roster({name: key.public for name, key in keys.items()})
    words = WordSpec(columns // blocks, bits)
    plan = SumPlan("benchmark", {f"block {n}": words for n in range(blocks)}, 2)
    server = SecureServer(plan, roster)
    first, *rest = keys

    def client(name: str) -> SecureClient:
        return SecureClient(plan, name, keys[name], roster, folder / name)

    nodes = {name: client(name) for name in keys}
    for name in rest:
        server.add_advert(name, nodes[name].advertise())
    server.add_advert(first, timed("keys", len(plan.to_bytes()), client(first).advertise))
    server.close_adverts()
    for name in rest:
        server.add_shares(name, nodes[name].shares(server.adverts_for(name)))
    told = server.adverts_for(first)
    shares = timed("shares", len(told), lambda: client(first).shares(told))
    server.add_shares(first, shares)
    server.close_shares()
    boxes = server.boxes_for(first)
    timed("receive", len(boxes), lambda: client(first).receive(boxes))
    for name in rest:
        nodes[name].receive(server.boxes_for(name))
    spec = words.spec
    values = np.ones(spec.shape, spec.dtype)
    found = server.sum("block 0")
    for name in rest:
        found.add(name, nodes[name].masked("block 0", values))
    found.add(first, timed("a block's words", 0, lambda: client(first).masked("block 0", values)))
    found.close()
    for name in rest:
        found.add_signature(name, nodes[name].sign("block 0", found.cohort))
    cohort = found.cohort
    signature = timed("signature", len(cohort), lambda: client(first).sign("block 0", cohort))
    found.add_signature(first, signature)
    request = found.unmask_request()
    for name in rest:
        found.add_unmask(name, nodes[name].unmask("block 0", request))
    answer = timed("unmasking", len(request), lambda: client(first).unmask("block 0", request))
    found.add_unmask(first, answer)
    timed("server: the total", 0, found.total)
    if not np.array_equal(found.total(), values * np.array(clients, spec.dtype)):
        raise RuntimeError("The sum is wrong.")
    return steps


def main(
    clients: int = 64,
    columns: int = COLUMNS,
    blocks: int = BLOCKS,
    bits: Sequence[int] = (128, 64),
    rounds: int = 5,
) -> None:
    size = min(columns * 16, 12 << 20)
    report("masks_of_sums", "Masks of secure sums, one core", streams(size, rounds))
    rows: list[Row] = []
    for width in bits:
        with tempfile.TemporaryDirectory() as folder:
            steps = a_run(clients, columns, blocks, width, Path(folder))
        rows += [{"clients": clients, "bits": width, **step} for step in steps]
        total = {
            key: sum(
                float(step[key]) * (1 if n < 3 else blocks) for n, step in enumerate(steps[:-1])
            )
            for key in ("CPU, ms", "bytes up", "bytes down")
        }
        rows.append({"clients": clients, "bits": width, "step": "a client, all blocks", **total})
    report("secure", f"Secure sums of {blocks} blocks, {columns} columns", rows)


if __name__ == "__main__":
    main()
