"""What the README tells a user to type is right: targets, overrides, keys, links."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from fedprune.cli import _parser
from fedprune.config import compose_config, config_from_overrides, find_resumption, resumption

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PATTERN = r"```bash\n(.*?)```"
BLOCKS = "\n".join(re.findall(PATTERN, TEXT, flags=re.S))
LINES = [line for line in BLOCKS.replace("\\\n", " ").splitlines() if line.strip()]
TYPED = [shlex.split(line, comments=True) for line in LINES]


def typed(*start: str) -> list[list[str]]:
    found = [words[len(start) :] for words in TYPED if tuple(words[: len(start)]) == start]
    assert found
    return found


def check(overrides: list[str]) -> None:
    """Compose what a line asks for, unless that is in the folder of a run."""
    if find_resumption(overrides) is None:
        config_from_overrides(overrides)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for words in typed("make"):
        assert re.search(rf"^{words[0]}:", makefile, flags=re.M)
    for target in set(re.findall(r"`make ([a-z-]+)`", TEXT)):
        assert re.search(rf"^{target}:", makefile, flags=re.M)


@pytest.mark.parametrize(
    "overrides",
    # The method and the pruner of the example are known once its package is installed.
    [words for words in typed("fedprune", "run") if "pruner.name=gentle" not in words],
    ids=" ".join,
)
def test_fedprune_run_lines_compose(overrides):
    check(overrides)


def test_run_lines_of_the_other_pages_compose():
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))]
    blocks = "\n".join(block for page in pages for block in re.findall(PATTERN, page, flags=re.S))
    lines = [shlex.split(line, comments=True) for line in blocks.replace("\\\n", " ").splitlines()]
    runs = [words[2:] for words in lines if words[:2] == ["fedprune", "run"]]
    assert len(runs) > 8
    for overrides in runs:
        check(overrides)


def test_other_fedprune_lines_parse():
    for words in TYPED:
        if words[0] == "fedprune":
            _, others = _parser().parse_known_args(words[1:])
            assert not others or words[1] == "supernode", words  # which hands them on to Flower's


def test_flwr_run_lines_compose():
    for words in typed("flwr", "run"):
        if "--run-config" in words:
            config = words[words.index("--run-config") + 1]
            pairs = re.findall(r"([a-z-]+)=('[^']*'|\"[^\"]*\"|\S+)", config)
            values = tomllib.loads("\n".join(f"{key} = {value}" for key, value in pairs))
            if resumption(values) is None:
                compose_config(values)


def test_run_config_table_lists_the_declared_keys():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = set(project["tool"]["flwr"]["app"]["config"])
    section = TEXT.split("## Configuration")[1].split("##")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", section, flags=re.M)) == declared


def test_relative_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if not target.startswith("http"):
            page, _, heading = target.partition("#")
            page = page or "README.md"  # a heading of the page itself
            assert (ROOT / page).exists(), target
            headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.M) if heading else []
            anchors = [
                re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings
            ]
            assert not heading or heading in anchors, target


def test_keys_in_the_text_exist():
    config = config_from_overrides([])
    for key in set(re.findall(r"`([a-z]+\.[a-z_]+)[=`]", TEXT)):
        section, name = key.split(".")
        if hasattr(config, section):
            assert hasattr(getattr(config, section), name), key
