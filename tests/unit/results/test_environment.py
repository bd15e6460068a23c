from pathlib import Path

from fedprune.results import environment


def digest_of(root: Path, monkeypatch) -> str:
    monkeypatch.setattr(
        environment, "__file__", str(root / "fedprune" / "results" / "environment.py")
    )
    return environment.source_digest.__wrapped__()


def make(root: Path) -> Path:
    for name in ("fedprune/results/environment.py", "client_app/app.py", "conf/config.yaml"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return root


def test_equal_sources_agree_wherever_they_lie(tmp_path, monkeypatch):
    first = digest_of(make(tmp_path / "a"), monkeypatch)
    cached = tmp_path / "b" / "client_app" / "__pycache__"
    make(tmp_path / "b")
    cached.mkdir()
    (cached / "app.py").write_text("stale")
    assert digest_of(tmp_path / "b", monkeypatch) == first


def test_any_changed_moved_or_added_source_shows(tmp_path, monkeypatch):
    root = make(tmp_path)
    seen = {digest_of(root, monkeypatch)}
    (root / "client_app" / "app.py").write_text("# other\n")
    seen.add(digest_of(root, monkeypatch))
    (root / "client_app" / "app.py").rename(root / "client_app" / "main.py")
    seen.add(digest_of(root, monkeypatch))
    (root / "conf" / "new.yaml").write_text("a: 1\n")
    seen.add(digest_of(root, monkeypatch))
    assert len(seen) == 4


def test_this_checkout():
    assert len(environment.source_digest()) == 64
