"""What docs/deployment.md tells to type exists: files, services, settings, options."""

import re
import shlex

import pytest
from flwr.common.config import parse_config_args

from client_app.node_config import NodeConfig
from fedprune.cli import _parsed
from fedprune.config import config_from_overrides
from tests.support.containers import DOCKER, documented, services

GUIDE = (DOCKER.parent / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"```bash (?:try|server|site)\n(.*?)```", GUIDE, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
FEDPRUNE = [shlex.split(line.partition(" cli ")[2]) for line in LINES if " cli fedprune " in line]
_VERBS = {"up", "run", "ps", "logs", "restart", "cp", "stop", "down"}
_NODE_CONFIG = r"^\| (`[a-z-]+=.*?) \|"


def test_there_is_something_to_look_at():
    assert len(BLOCKS) > 8 and len(FEDPRUNE) > 4


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("docker compose")])
def test_compose_files_and_services_are_there(line):
    words = shlex.split(line.partition(" | ")[0])
    file = words[words.index("--file") + 1] if "--file" in words else "compose.yaml"
    known = services(file)
    at = next(place for place, word in enumerate(words) if word in _VERBS)
    plain = [word for word in words[at + 1 :] if not word.startswith("-") and not word.isdecimal()]
    named = {"run": plain[:1], "cp": [word.partition(":")[0] for word in plain[:1]]}
    for service in named.get(words[at], plain):
        assert service in known, service


@pytest.mark.parametrize("words", FEDPRUNE, ids=" ".join)
def test_commands_are_understood(words):
    arguments = _parsed(words[1:])
    if words[1] == "run":
        assert config_from_overrides(arguments.overrides).federation.connection == "server"


def test_settings_that_protect_a_site_are_settings():
    rows = re.findall(_NODE_CONFIG, GUIDE, re.MULTILINE)
    examples = [one for row in rows for one in re.findall(r"`([a-z-]+=[^`…]+)`", row)]
    examples += re.findall(r"`(model-path=[^`]+)`", GUIDE)
    assert len(examples) > 5
    for example in examples:
        (key,) = values = parse_config_args([example.replace("…", "x")])
        given = {"partition-id": 0, "signing-key": "/run/secrets/signing.key"}  # by start.py
        read = NodeConfig.read(given | values)
        assert not read.problems and not read.warnings, (key, read)


def test_environment_variables_are_documented():
    known = {*documented(".env.example"), *documented(".env.client.example")}
    known |= set(re.findall(r"\b[A-Z_]{4,}\b", (DOCKER / "certs.sh").read_text()))
    known |= {"NODE_CONFIG", "CERTIFICATE_VERIFY_FAILED", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
    for name in re.findall(r"`([A-Z]+_[A-Z_]+)[`=]", GUIDE):
        assert name in known, name
