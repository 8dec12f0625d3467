"""What is in deploy/ as the tools see it that would read it: those that are installed here."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support.paths import ROOT

pytestmark = pytest.mark.deploy

DEPLOY = ROOT / "deploy"
LINTERS = ROOT / ".cache" / "deploy" / "bin"  # as `make deploy-check` installs them
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
KUBERNETES_VERSIONS = ("1.32", "1.37")  # pods have had their index in a label, by default, since 1.28
MAX_EXPOSURE = 1.5  # of a unit, as systemd rates it: 10 is a service without any sandbox


def run(*command: object) -> str:
    """What it prints; fails where it finds fault."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def linter(name: str) -> Path:
    if not (LINTERS / name).exists():
        pytest.skip(f"{name} is not in {LINTERS}: make deploy-check")
    return LINTERS / name


def installed(name: str) -> str:
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert run(linter("hadolint"), DEPLOY / "Dockerfile") == ""


def test_the_compose_file_has_the_form_of_the_specification() -> None:
    merged = json.dumps(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))
    check = "import sys; from compose_spec import PyCompose; PyCompose.from_json(sys.argv[1]).validate()"
    linter("hadolint")  # in the same environment
    run(LINTERS / "python", "-c", check, merged)


def test_docker_compose_reads_the_compose_file(tmp_path: Path) -> None:
    docker = installed("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no plugin for compose")
    folder = with_keys(DEPLOY, tmp_path)
    run(docker, "compose", "--file", folder / "compose.yaml", "config", "--quiet")


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_manifests_have_the_schemas_of_kubernetes(version: str) -> None:
    run(linter("kubernetes-validate"), "--strict", "--kubernetes-version", version, *MANIFESTS)


def test_kustomize_puts_the_manifests_together(tmp_path: Path) -> None:
    together = tmp_path / "together.yaml"
    together.write_text(run(installed("kubectl"), "kustomize", with_keys(DEPLOY / "kubernetes", tmp_path)))
    pods = [item for item in yaml.safe_load_all(together.read_text()) if item["kind"] == "StatefulSet"]
    volumes = [volume for pod in pods for volume in pod["spec"]["template"]["spec"]["volumes"]]
    assert {volume["name"]: volume["secret"]["secretName"][:5] for volume in volumes if "secret" in volume} == {
        "keys": "keys-"
    }
    run(linter("kubernetes-validate"), "--strict", "--kubernetes-version", KUBERNETES_VERSIONS[-1], together)


def with_keys(folder: Path, tmp_path: Path) -> Path:
    """A copy of a folder, with the keys that the steps make."""
    copy = Path(shutil.copytree(folder, tmp_path / folder.name))
    for name in ("ring.key", "api.key"):
        (copy / name).write_text("a key for the tests\n")
    return copy


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program that is on this machine in place of theirs, and one instance of the template."""
    folder = Path(shutil.copytree(DEPLOY / "systemd", tmp_path / "systemd"))
    for path in folder.glob("*.service"):
        text = path.read_text()
        for program in ("mdi-starter", "mdi-secondary"):
            text = text.replace(f"/opt/mdi/bin/{program}", shutil.which("true") or "")
        path.write_text(text)
    template = folder / "mdi-secondary@.service"
    return [folder / "mdi-starter.service", template.rename(folder / "mdi-secondary@0.service")]


def test_systemd_reads_the_units(units: list[Path]) -> None:
    done = subprocess.run(
        [installed("systemd-analyze"), "verify", *units], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_rates_the_units_as_sandboxed(units: list[Path]) -> None:
    for unit in units:
        run(installed("systemd-analyze"), "security", "--offline=true", f"--threshold={MAX_EXPOSURE * 10:g}", unit)
