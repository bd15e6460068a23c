"""The models that servers sent: whole or absent, whatever happens on the way."""

import errno
import hashlib
import os
import shutil
import threading
import time

import pytest

from client_app import model as models_store
from client_app.model import ModelStore
from fedprune.errors import ModelError, ReplyRefusedError
from fedprune.models.transfer import Manifest, ModelFile, Offer

SEGMENT = 4096
MOST = 10**9


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def model(folder, seed: int = 0, size: int = 10_000) -> Offer:
    folder.mkdir()
    (folder / "config.json").write_text("{}" + " " * seed)
    (folder / "model.safetensors").write_bytes(os.urandom(size))
    return Offer.of(str(folder), None, SEGMENT)


@pytest.fixture
def offer(tmp_path) -> Offer:
    return model(tmp_path / "server")


def deliver(store: ModelStore, offer: Offer, most: int = 10**6) -> int:
    """Send as a server does, at most so many segments; return how many the node has then."""
    held = store.begin(offer.manifest)
    for _ in range(most):
        if held == len(offer.manifest.segments):
            break
        held = store.add(offer.manifest.digest, held, offer.segment(held))
    return held


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_whole(offer: Offer, folder) -> bool:
    expected = {name: path.read_bytes() for name, path in offer.paths.items()}
    return contents(folder) == expected | {"manifest.json": offer.manifest.text}


def rot(path) -> None:
    """Change a byte and nothing that a look at the folder shows."""
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, (1, 1))


def test_a_model_appears_whole(offer, home):
    store = ModelStore(MOST)
    assert store.find(offer.manifest.digest) is None
    assert deliver(store, offer, most=2) == 2
    assert store.find(offer.manifest.digest) is None
    assert deliver(store, offer) == 4
    folder = store.find(offer.manifest.digest)
    assert folder == home / "models" / offer.manifest.digest and is_whole(offer, folder)
    assert [path.name for path in folder.parent.iterdir() if path != folder] == [".lock"]


def test_what_is_there_costs_nothing(offer):
    store = ModelStore(MOST)
    deliver(store, offer)
    assert store.begin(offer.manifest) == 4
    assert store.add(offer.manifest.digest, 0, b"not looked at") == 4


@pytest.mark.parametrize("cut", [1, 4095, 4096, 4097, 9999])
def test_a_transfer_goes_on_where_it_was_cut_off(offer, cut):
    """The process died while it wrote: a file has any number of bytes."""
    store, digest = ModelStore(MOST), offer.manifest.digest
    store.begin(offer.manifest)
    assert store.add(digest, 0, offer.segment(0)) == 1
    growing = store.root / f".{digest}.partial" / "model.safetensors.part"
    growing.write_bytes(offer.paths["model.safetensors"].read_bytes()[:cut])
    assert store.begin(offer.manifest) == 1 + cut // SEGMENT
    assert deliver(store, offer) == 4
    assert is_whole(offer, store.find(digest))


def test_one_that_died_before_the_last_rename(offer):
    store, digest = ModelStore(MOST), offer.manifest.digest
    deliver(store, offer)
    partial = store.root / f".{digest}.partial"
    store.find(digest).rename(partial)
    (partial / "model.safetensors").rename(partial / "model.safetensors.part")
    assert store.find(digest) is None
    assert store.begin(offer.manifest) == 4
    assert is_whole(offer, store.find(digest))


def test_segments_out_of_order_and_again_change_nothing(offer):
    store, digest = ModelStore(MOST), offer.manifest.digest
    store.begin(offer.manifest)
    assert store.add(digest, 2, offer.segment(2)) == 0
    for _ in range(2):
        assert store.add(digest, 0, offer.segment(0)) == 1
    assert deliver(store, offer) == 4


@pytest.mark.parametrize("wrong", [b"", b"{} "])
def test_a_segment_of_the_wrong_hash_is_not_written(offer, wrong):
    store, digest = ModelStore(MOST), offer.manifest.digest
    store.begin(offer.manifest)
    with pytest.raises(ReplyRefusedError, match="'config.json' is not what the model's manifest"):
        store.add(digest, 0, wrong)
    assert store.begin(offer.manifest) == 0


def test_a_file_that_the_disk_spoilt_is_sent_again(offer):
    store, digest = ModelStore(MOST), offer.manifest.digest
    deliver(store, offer, most=3)
    growing = store.root / f".{digest}.partial" / "model.safetensors.part"
    rot(growing)
    with pytest.raises(ModelError, match=r"'model.safetensors'.*another file.*Check the disk"):
        store.add(digest, 3, offer.segment(3))
    assert store.find(digest) is None and store.begin(offer.manifest) == 1
    assert deliver(store, offer) == 4


def test_hashes_of_segments_that_contradict_the_file_s(tmp_path):
    data = b"x" * 10
    own = hashlib.sha256(data).hexdigest()
    files = (
        ModelFile("config.json", 10, "0" * 64, (own,)),
        ModelFile("model.safetensors", 10, own, (own,)),
    )
    manifest = Manifest(SEGMENT, files)
    store = ModelStore(MOST)
    store.begin(manifest)
    with pytest.raises(ModelError, match="another file on this node's disk"):
        store.add(manifest.digest, 0, data)
    assert store.find(manifest.digest) is None


def test_a_folder_that_lost_a_file_counts_as_absent(offer):
    store, digest = ModelStore(MOST), offer.manifest.digest
    deliver(store, offer)
    os.truncate(store.find(digest) / "model.safetensors", 9_999)
    assert store.find(digest) is None
    assert store.begin(offer.manifest) == 0
    assert deliver(store, offer) == 4


def test_a_segment_without_its_manifest(offer):
    store, digest = ModelStore(MOST), offer.manifest.digest
    with pytest.raises(ReplyRefusedError, match="no manifest of this model"):
        store.add(digest, 0, offer.segment(0))
    store.begin(offer.manifest)
    shutil.rmtree(store.root)
    with pytest.raises(ReplyRefusedError, match="were deleted on the way"):
        store.add(digest, 0, offer.segment(0))


@pytest.mark.parametrize("digest", ["..", "../" + "a" * 61, "A" * 64, ""])
def test_a_name_that_could_be_a_path(digest):
    with pytest.raises(ReplyRefusedError, match="64 hexadecimal digits"):
        ModelStore(MOST).find(digest)


def test_an_operator_s_limit(offer):
    with pytest.raises(ModelError, match=r"`max-model-gb`.*is 1e-05.*1e-05 GB.*`model-path`"):
        ModelStore(10_000).begin(offer.manifest)
    assert deliver(ModelStore(offer.manifest.size), offer) == 4


def aged(folder, days: float) -> None:
    then = time.time() - days * 24 * 3600
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


def test_models_unused_for_a_day_make_room_the_oldest_first(tmp_path):
    store = ModelStore(33_000)
    first, second, third, fourth = (model(tmp_path / str(n), n) for n in range(4))
    for days, one in ((3, first), (5, second), (0, third)):
        deliver(store, one)
        aged(store.find(one.manifest.digest), days)
    deliver(store, fourth)
    kept = {one.manifest.digest for one in (first, third, fourth)}
    assert {path.name for path in store.root.iterdir() if len(path.name) == 64} == kept


def test_models_of_the_last_day_do_not_make_room(tmp_path):
    store = ModelStore(14_000)
    first, second = model(tmp_path / "a"), model(tmp_path / "b", 1)
    deliver(store, first, most=2)
    with pytest.raises(ModelError, match=r"`max-model-gb`.*models of the last day take"):
        store.begin(second.manifest)
    assert deliver(store, first) == 4


def test_a_disk_without_room_is_told_before_a_byte_comes(offer, monkeypatch):
    room = shutil.disk_usage("/")._replace(free=150_000_000)
    monkeypatch.setattr(models_store.shutil, "disk_usage", lambda path: room)
    words = r"disk has 0.15 GB free.*needs 0.2 GB more.*FEDPRUNE_HOME.*`model-path`"
    with pytest.raises(ModelError, match=words):
        ModelStore(MOST).begin(offer.manifest)


def test_a_disk_that_fills_on_the_way(offer, monkeypatch):
    store, digest = ModelStore(MOST), offer.manifest.digest
    deliver(store, offer, most=2)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(models_store.os, "fsync", full)
        with pytest.raises(ModelError, match=r"No space left on device.*goes on where this one"):
            store.add(digest, 2, offer.segment(2))
    assert store.begin(offer.manifest) == 2
    assert deliver(store, offer) == 4


def swept(store, keep: str, monkeypatch) -> set[str]:
    """Sweep today and tomorrow: at first sight a clock may be wrong."""
    before, now = set(store.root.iterdir()), time.time()
    for days in (0, 1.1):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda later=days: now + later * 24 * 3600)
            store.sweep(keep)
        if not days:
            assert before <= set(store.root.iterdir())
    return {path.name for path in store.root.iterdir()} - {".lock", ".unused.json"}


def test_what_nobody_uses_is_swept(tmp_path, monkeypatch):
    store = ModelStore(MOST)
    old, older, new, half = (model(tmp_path / str(n), n) for n in range(4))
    for one in (old, older, new):
        deliver(store, one)
    deliver(store, half, most=2)
    for one, days in ((old, 31), (older, 40), (new, 20)):
        aged(store.root / one.manifest.digest, days)
    aged(store.root / f".{half.manifest.digest}.partial", 8)
    found = swept(store, older.manifest.digest, monkeypatch)
    assert found == {older.manifest.digest, new.manifest.digest}
    aged(store.root / new.manifest.digest, 50)
    aged(store.root / older.manifest.digest, 60)
    assert swept(store, "0" * 64, monkeypatch) == {new.manifest.digest}


def test_two_nodes_of_one_machine_share_the_work(tmp_path):
    offer = model(tmp_path / "server", size=400_000)
    store, digest = ModelStore(MOST), offer.manifest.digest
    failures, taken = [], []

    def node() -> None:
        try:
            held, parts = store.begin(offer.manifest), 0
            while held < len(offer.manifest.segments):
                held, parts = store.add(digest, held, offer.segment(held)), parts + 1
            taken.append(parts)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=node) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(taken) == 4
    assert is_whole(offer, store.find(digest))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_a_model_that_rots_is_thrown_away_and_comes_again(offer, name):
    store, digest = ModelStore(MOST), offer.manifest.digest
    store.heal(digest)
    deliver(store, offer)
    store.heal(digest)
    assert is_whole(offer, store.find(digest))
    rot(store.find(digest) / name)
    store.heal(digest)
    assert store.find(digest) is None
    assert deliver(store, offer) == 4
    store.heal(digest)
    assert is_whole(offer, store.find(digest))


def test_a_model_is_read_once(offer, monkeypatch):
    store, digest = ModelStore(MOST), offer.manifest.digest
    deliver(store, offer)
    store.heal(digest)
    monkeypatch.setattr(models_store, "file_sha256", lambda path: pytest.fail("read again"))
    store.heal(digest)
    assert store.find(digest) is not None


def test_a_rotten_model_that_cannot_be_deleted_is_named(offer, monkeypatch):
    store, digest = ModelStore(MOST), offer.manifest.digest
    deliver(store, offer)
    rot(store.find(digest) / "model.safetensors")
    monkeypatch.setattr(models_store.shutil, "rmtree", lambda folder, ignore_errors: None)
    with pytest.raises(ModelError, match=f"{digest}' has changed on this node's disk.*Delete"):
        store.heal(digest)
