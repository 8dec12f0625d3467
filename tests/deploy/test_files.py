"""What is in deploy/ fits the program: options, ports, paths, names, versions and the time that an end may take."""

import importlib.metadata
import json
import re
import runpy
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import mdi
from mdi.cli.commands import prepare_model, secondary, starter
from mdi.cli.parser import options_from
from mdi.cli.serve_options import serve_address
from mdi.cli.signals import GRACE_S
from mdi.config.network import NetworkConfig, load_network
from mdi.config.options import StarterOptions
from mdi.config.prepare_options import PrepareOptions
from mdi.serve import server
from support.paths import ROOT

DEPLOY = ROOT / "deploy"
SYSTEMD, KUBERNETES = DEPLOY / "systemd", DEPLOY / "kubernetes"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
USER_PORT, HTTP_PORT, RING_PORT = 8000, 8088, 5088
NODES, KEY = "/etc/mdi/nodes.json", "ring.key"


def objects() -> Iterator[dict[str, Any]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def kubernetes(kind: str, name: str) -> Any:
    return next(found for found in objects() if (found["kind"], found["metadata"]["name"]) == (kind, name))


def containers(name: str) -> dict[str, Any]:
    """The containers of a StatefulSet, by their names."""
    pod = kubernetes("StatefulSet", name)["spec"]["template"]["spec"]
    return {each["name"]: each for each in pod.get("initContainers", []) + pod["containers"]}


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit."""
    lines = (SYSTEMD / name).read_text().replace("\\\n", "").splitlines()
    found: dict[str, list[str]] = {}
    for setting, _, value in (line.partition("=") for line in lines if "=" in line and not line.startswith("#")):
        found.setdefault(setting, []).append(value)
    return found


# ---- commands

CONTAINERS = {**containers("mdi-starter"), **containers("mdi-secondary")}


def commands() -> dict[str, list[str]]:
    """What each file runs, with values in place of its variables."""
    found = {f"compose {name}": service["command"] for name, service in COMPOSE["services"].items()}
    found |= {f"kubernetes {name}": each["command"] + each.get("args", []) for name, each in CONTAINERS.items()}
    found |= {f"systemd {path.name}": executed(unit(path.name)) for path in SYSTEMD.glob("*.service")}
    found["image"] = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[-1])
    values = {"$(POD_INDEX)": "0", "$(MODEL)": "org/model", "%i": "0", "${MDI_SERVE}": "127.0.0.1:8000"}
    return {name: [values.get(word, word) for word in words] for name, words in found.items()}


def executed(settings: dict[str, list[str]]) -> list[str]:
    """The program and its arguments, without the variables that `env` sets."""
    words = [word for word in shlex.split(settings["ExecStart"][0]) if word != "$MDI_ARGS"]
    assert words[0] == "/usr/bin/env" and "=" in words[1]
    return [Path(words[2]).name, *words[3:]]


def parsed(command: list[str]) -> Any:
    program, *arguments = command
    match program:
        case "mdi-starter":
            return options_from(StarterOptions, starter.build_parser().parse_args(arguments))
        case "mdi-secondary":
            return secondary.parse(arguments)
        case "mdi-prepare":
            return options_from(PrepareOptions, prepare_model.build_parser().parse_args(arguments))
    raise AssertionError(f"{program} is no program of this package")


@pytest.mark.parametrize("name", commands())
def test_every_command_is_accepted_by_the_real_parser(name: str) -> None:
    options = parsed(commands()[name])
    if isinstance(options, StarterOptions):
        assert serve_address(options.serving, has_keys=True)[1] == USER_PORT


@pytest.mark.parametrize("name", [name for name in commands() if name != "image"])
def test_nodes_are_kept_and_the_configuration_is_where_it_is_mounted(name: str) -> None:
    options = parsed(commands()[name])
    assert str(options.nodes_config) == NODES
    if isinstance(options, StarterOptions):
        assert options.keep_nodes  # else all secondaries would end with each update of the starter
        assert options.drain_delay_s >= 5 and options.node_timeout_s >= 300


def test_whoever_stops_a_starter_waits_as_long_as_it_may_take() -> None:
    needed_s = StarterOptions().drain_timeout_s + GRACE_S
    seconds = [
        COMPOSE["services"]["starter"]["stop_grace_period"],
        unit("mdi-starter.service")["TimeoutStopSec"][0],
        f"{kubernetes('StatefulSet', 'mdi-starter')['spec']['template']['spec']['terminationGracePeriodSeconds']}s",
    ]
    assert all(float(text.removesuffix("s")) > needed_s for text in seconds)
    assert float(unit("mdi-secondary@.service")["TimeoutStopSec"][0].removesuffix("s")) > GRACE_S


# ---- nodes


def names_of(network: NetworkConfig) -> list[str]:
    """The nodes' names. They listen on every address of their container, on the ports that the image names."""
    for node in network.nodes:
        assert (node.listen, node.http_port, node.port_in) == ("0.0.0.0", HTTP_PORT, RING_PORT)
        assert node.starter_addr in (None, network.starter.addr)
    return [node.addr for node in network.nodes]


def test_the_nodes_of_compose_are_its_services() -> None:
    assert names_of(load_network(DEPLOY / "nodes.compose.json")) == list(COMPOSE["services"])


def test_the_nodes_of_kubernetes_are_the_names_of_its_pods() -> None:
    names = []
    for name in ("mdi-starter", "mdi-secondary"):
        spec = kubernetes("StatefulSet", name)["spec"]
        assert kubernetes("Service", spec["serviceName"])["spec"]["clusterIP"] == "None"
        names += [f"{name}-{i}.{spec['serviceName']}" for i in range(spec["replicas"])]
    assert names_of(load_network(KUBERNETES / "nodes.json")) == names


def test_names_are_known_before_the_pods_are_ready() -> None:
    """A starter is ready when its ring is formed, for which the others have to find it."""
    assert kubernetes("Service", "mdi")["spec"]["publishNotReadyAddresses"] is True


def test_compose_defines_what_its_services_name() -> None:
    named: dict[str, set[str]] = {"volumes": set(), "secrets": set(), "networks": set()}
    for service in COMPOSE["services"].values():
        named["volumes"] |= {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")}
        named["secrets"] |= set(service["secrets"])
        named["networks"] |= set(service["networks"])
    assert named == {kind: set(COMPOSE[kind]) for kind in named}


# ---- ports


def test_ports_are_those_of_the_nodes() -> None:
    exposed = re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[0].split()
    assert sorted(map(int, exposed)) == sorted((USER_PORT, HTTP_PORT, RING_PORT))
    ring = {"control": HTTP_PORT, "ring": RING_PORT}
    assert ports_of(kubernetes("Service", "mdi")["spec"], "port") == ring
    assert ports_of(CONTAINERS["secondary"], "containerPort") == ring
    assert ports_of(CONTAINERS["starter"], "containerPort") == ring | {"http": USER_PORT}
    assert COMPOSE["services"]["starter"]["ports"] == [f"127.0.0.1:{USER_PORT}:{USER_PORT}"]
    policy = kubernetes("NetworkPolicy", "mdi")["spec"]["ingress"]
    assert {port["port"] for rule in policy for port in rule["ports"]} == {"http", "control", "ring"}


def ports_of(spec: dict[str, Any], number: str) -> dict[str, int]:
    return {port["name"]: port[number] for port in spec["ports"]}


# ---- health


def probes(container: dict[str, Any]) -> dict[str, Any]:
    return {name: probe for name, probe in container.items() if name.endswith("Probe")}


def test_probes_ask_paths_that_need_no_key() -> None:
    paths = {name: probe["httpGet"]["path"] for name, probe in probes(CONTAINERS["starter"]).items()}
    assert paths == {"startupProbe": "/live", "readinessProbe": "/health", "livenessProbe": "/live"}
    assert set(paths.values()) == server._STATES
    assert "option httpchk GET /health\n" in (DEPLOY / "haproxy" / "haproxy.cfg").read_text()


def test_a_secondary_is_asked_only_whether_it_listens() -> None:
    found = probes(CONTAINERS["secondary"])
    assert len(found) == 3 and all(probe["tcpSocket"] == {"port": "control"} for probe in found.values())


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_of_the_image_is_that_of_the_server(status: int) -> None:
    command = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])
    assert command[:2] == ["python3", "-c"] and f"'127.0.0.1', {USER_PORT}," in command[2]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = command[2].replace(str(USER_PORT), str(listener.getsockname()[1]))
        with subprocess.Popen([sys.executable, "-c", code]) as check:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1000).startswith(b"GET /health ")
                connection.sendall(f"HTTP/1.0 {status} \r\n\r\n".encode())
            assert check.wait(60) == (status != 200)


# ---- keys


def test_the_key_is_read_where_it_is_mounted() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["environment"]["MDI_KEY_FILE"] == f"/run/secrets/{KEY}"
        assert set(service["secrets"]) == ({KEY, "api.key"} if name == "starter" else {KEY})
    for name in ("starter", "secondary"):
        container = CONTAINERS[name]
        (folder,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "keys"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert variables["MDI_KEY_FILE"] == f"{folder}/{KEY}"
    for path in SYSTEMD.glob("*.service"):
        settings = unit(path.name)
        assert f"{KEY}:/etc/mdi/{KEY}" in settings["LoadCredential"]
        assert f"MDI_KEY_FILE=${{CREDENTIALS_DIRECTORY}}/{KEY}" in shlex.split(settings["ExecStart"][0])


def test_secondaries_get_no_key_of_the_users() -> None:
    (keys,) = [
        volume["secret"]
        for volume in kubernetes("StatefulSet", "mdi-secondary")["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    ]
    assert [item["path"] for item in keys["items"]] == [KEY]


def test_git_ignores_the_keys_that_the_steps_make() -> None:
    paths = [f"deploy/{folder}{name}" for folder in ("", "kubernetes/") for name in (KEY, "api.key")]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        pytest.skip(f"not a checkout: {done.stderr.strip()}")
    assert done.stdout.split() == paths


# ---- the image


def test_the_version_of_the_image_is_that_of_the_program() -> None:
    image = f"mdi-llm:{mdi.__version__}"
    assert f"-t {image} ." in DOCKERFILE
    assert {service["image"] for service in COMPOSE["services"].values()} == {image}
    assert kubernetes_images() == {"mdi-llm": mdi.__version__}
    assert {container["image"] for container in CONTAINERS.values()} == {"mdi-llm"}


def kubernetes_images() -> dict[str, str]:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return {image["name"]: image["newTag"] for image in kustomization["images"]}


def test_the_image_has_one_user_who_is_not_root() -> None:
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert f"--uid {user} " in DOCKERFILE
    for name in ("mdi-starter", "mdi-secondary"):
        context = kubernetes("StatefulSet", name)["spec"]["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"] and {context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {
            int(user)
        }


def test_what_is_copied_into_the_image_is_in_its_context() -> None:
    sources = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]
    let_in = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(sources) == sorted(let_in)
    assert all((ROOT / source).exists() for source in sources)


def test_no_compiler_is_in_the_last_stage() -> None:
    *_, last = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    assert "apt-get" not in last and "pip install" not in last


Constraints = Callable[..., dict[str, str]]


@pytest.fixture
def constraints(monkeypatch: pytest.MonkeyPatch) -> Constraints:
    """What deploy/constraints.py makes of requirements.txt where the base image has these packages."""
    requirements = (ROOT / "requirements.txt").read_text()

    def of(**installed: str) -> dict[str, str]:
        def version(name: str) -> str:
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        made = runpy.run_path(str(DEPLOY / "constraints.py"))["constraints"](requirements)
        return dict(re.findall(r"^([\w-]+)==(\S+)", made, re.MULTILINE))

    return of


def test_an_image_without_torch_gets_what_the_requirements_pin(constraints: Constraints) -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert constraints() == pinned


def test_an_image_with_torch_keeps_it_and_its_numpy(constraints: Constraints) -> None:
    base = {"torch": "2.9.1+cu128", "numpy": "1.26.4"}
    assert constraints(**base) == constraints() | base
