"""What must hold for every container, whoever edits the compose files."""

import os
import subprocess

import pytest

from tests.support.containers import (
    DOCKER,
    FILES,
    documented,
    no_compose,
    parsed,
    services,
    variables,
)

ONE_SHOT = {"registrar", "cli"}
ALL = [(file, name) for file in FILES for name in services(file)]
every_service = pytest.mark.parametrize(("file", "name"), ALL)


def networks(service: dict) -> set[str]:
    return set(service["networks"])


def is_node_executor(file: str, name: str) -> bool:
    return name.startswith("executor-") or (file == "compose.client.yaml" and name == "executor")


@every_service
def test_is_locked_down(file, name):
    service = services(file)[name]
    assert service["read_only"] is True and service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for key in ("privileged", "user", "cap_add", "ulimits", "oom_score_adj", "network_mode", "pid"):
        assert key not in service
    assert any(mount.startswith("/tmp:size=") for mount in service["tmpfs"])
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@every_service
def test_speaks_to_its_neighbours_past_a_proxy(file, name):
    environment = services(file)[name]["environment"]
    named = environment["NO_PROXY"].split(",")
    assert environment["no_proxy"].split(",") == named and named[-1] == "${NO_PROXY:-}"
    assert {"localhost", "127.0.0.1", "superlink", "gateway", "runtime"} <= set(named)


@every_service
def test_comes_back_and_says_whether_it_works(file, name):
    service = services(file)[name]
    if name in ONE_SHOT:
        assert service["restart"] in ("no", "on-failure:3")
        assert service["healthcheck"] == {"disable": True}
    else:
        # Executors end with 0 when their peer goes away: `on-failure` would leave them dead.
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert "health.py" in str(service["healthcheck"]) or "--check" in str(service)


@every_service
def test_only_the_gateway_can_be_reached(file, name):
    service = services(file)[name]
    if name == "gateway":
        assert service["ports"] == ["${FLEET_BIND:-0.0.0.0}:${FLEET_PORT:-8443}:8443"]
        assert networks(service) == {"core", "outside"}
    else:
        assert "ports" not in service
        wanted = {True: lambda n: n.startswith(("inside", "outside")), False: {"core"}.__contains__}
        of_node = "supernode" in name or is_node_executor(file, name)
        assert all(wanted[of_node](network) for network in networks(service))


@every_service
def test_private_text_is_seen_by_the_nodes_executor_alone_which_has_no_way_out(file, name):
    service = services(file)[name]
    mounts = [volume for volume in service.get("volumes", []) if "DATA_DIR" in str(volume)]
    if not is_node_executor(file, name):
        assert not mounts and "/data" not in str(service.get("volumes"))
        return
    assert [(mount["target"], mount["read_only"]) for mount in mounts] == [("/data", True)]
    (network,) = networks(service)
    whole = parsed(file)
    assert whole["networks"][network]["internal"] is True
    options = whole["networks"][network]["driver_opts"]
    assert options == {"com.docker.network.bridge.inhibit_ipv4": "true"}
    others = [other for other, one in services(file).items() if network in networks(one)]
    assert len(others) == 2 and all("supernode" in other or other == name for other in others)


@every_service
def test_host_folders_are_mounted_read_only_and_must_exist(file, name):
    for volume in services(file)[name].get("volumes", []):
        if isinstance(volume, dict):
            assert volume["type"] == "bind" and volume["read_only"] is True
            assert volume["bind"] == {"create_host_path": False}
        else:  # a named volume
            assert volume.split(":")[0] in parsed(file)["volumes"]


@every_service
def test_secrets_are_files_and_each_service_has_its_own_only(file, name):
    service = services(file)[name]
    for key, value in service.get("environment", {}).items():
        assert not any(word in key for word in ("SECRET", "KEY", "TOKEN", "PASSWORD", "CERT"))
        assert "secret" not in value.lower()
    given = {s if isinstance(s, str) else s["target"] for s in service.get("secrets", [])}
    kind = "node-executor" if is_node_executor(file, name) else name.split("-")[0]
    assert (
        given
        == {
            "superlink": {"ca.crt", "server.pem", "server.key", "superexec.secret"},
            "executor": {"ca.crt", "superexec.secret"},
            "registrar": {"ca.crt"},
            "cli": {"ca.crt"},
            "gateway": {"ca.crt", "server.pem", "server.key"},
            "supernode": {"ca.crt", "node.key", "superexec.secret"},
            "node-executor": {"signing.key", "superexec.secret"},
        }[kind]
    )


@pytest.mark.parametrize("file", FILES)
def test_the_authoritys_key_is_mounted_nowhere(file):
    text = (DOCKER / file).read_text() + (DOCKER / "common.yaml").read_text()
    assert "ca.key" not in text
    for path in parsed(file)["secrets"].values():
        assert "/ca/" not in path["file"]


@pytest.mark.parametrize("file", FILES)
def test_each_image_is_built_once(file):
    found = services(file).values()
    for image in {service["image"] for service in found}:
        builders = [s for s in found if s["image"] == image and "build" in s]
        others = [s for s in found if s["image"] == image and "build" not in s]
        assert len(builders) == 1
        assert all(service["pull_policy"] == "never" for service in others)


def of_file(name: str, *more: str) -> dict[str, str | None]:
    """Return the variables that a file uses, those of the common services it extends included."""
    whole, common = variables(name, "common.yaml", *more), str(services(name))
    own = variables(name, *more)
    return {key: value for key, value in whole.items() if key in own or f"${{{key}" in common}


def test_every_variable_of_the_server_is_documented_with_its_default():
    used = of_file("compose.server.yaml", "compose.gpu.yaml") | of_file("compose.yaml")
    assert documented(".env.example") == used


def test_every_variable_of_a_node_is_documented_with_its_default():
    used = of_file("compose.client.yaml", "compose.gpu.yaml")
    assert documented(".env.client.example") == used


@pytest.mark.parametrize(
    ("files", "example"),
    [
        (["compose.yaml"], ".env.example"),
        (["compose.server.yaml"], ".env.example"),
        (["compose.server.yaml", "compose.gpu.yaml"], ".env.example"),
        (["compose.client.yaml"], ".env.client.example"),
        (["compose.client.yaml", "compose.gpu.yaml"], ".env.client.example"),
    ],
)
@pytest.mark.skipif(no_compose() != "", reason=no_compose())
def test_docker_compose_takes_them(files, example):
    words = [word for file in files for word in ("--file", file)]
    done = subprocess.run(
        ["docker", "compose", "--env-file", example, *words, "config", "--quiet"],
        cwd=DOCKER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("missing", ["SERVER", "SITE", "PARTITION_ID", "DATA_DIR"])
@pytest.mark.skipif(no_compose() != "", reason=no_compose())
def test_docker_compose_says_what_a_node_lacks(missing, tmp_path):
    lines = (DOCKER / ".env.client.example").read_text().splitlines()
    (tmp_path / "env").write_text("\n".join(x for x in lines if not x.startswith(missing + "=")))
    done = subprocess.run(
        ["docker", "compose", "--env-file", tmp_path / "env", "--file", "compose.client.yaml"]
        + ["config", "--quiet"],
        cwd=DOCKER,
        env={key: value for key, value in os.environ.items() if key != missing},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and missing in done.stderr
