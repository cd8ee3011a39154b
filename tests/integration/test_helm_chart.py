"""What the Helm chart renders, by helm itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import reference
from service.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "deploy/helm/ahamask"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
EVERYTHING = [
    "--set=autoscaling.enabled=true",
    "--set=serviceMonitor.enabled=true",
    "--set=serviceMonitor.labels.release=prometheus",
    "--set=serviceMonitor.apiKeySecret=scraper",
    "--set=apiKeys.secretName=keys",
    "--set=cache.claimName=models",
    "--set=masks.claimName=masks",
    "--set-string=env.AHAMASK_MODEL=Qwen/Qwen2-Audio-7B",
]
Manifests = dict[str, dict[str, Any]]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("helm") or shutil.which("helm", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("helm is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)


def rendered(*options: str) -> Manifests:
    """The manifests by kind."""
    ran = helm("template", "speech", str(CHART), "--namespace=audio", *options)
    assert ran.returncode == 0, ran.stderr
    documents = [document for document in yaml.safe_load_all(ran.stdout) if document]
    return {document["kind"]: document for document in documents}


def pod_of(manifests: Manifests) -> dict[str, Any]:
    pod: dict[str, Any] = manifests["Deployment"]["spec"]["template"]
    return pod


def environment(manifests: Manifests) -> dict[str, str]:
    (container,) = pod_of(manifests)["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_the_chart_names_no_setting_that_there_is_not() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in CHART.rglob("*.yaml"))
    named = set(re.findall(r"AHAMASK_([A-Z_]+[A-Z])", text))
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_autoscaling_asks_for_a_series_that_there_is() -> None:
    text = (CHART / "templates/scaledobject.yaml").read_text(encoding="utf-8")
    (name,) = re.findall(r"sum\((\w+)\{", text)
    assert f"| `{name}` | gauge | |" in reference.metrics_table()


def test_lint_finds_nothing() -> None:
    ran = helm("lint", "--strict", str(CHART), *EVERYTHING)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("options", [[], EVERYTHING], ids=["as it is", "everything on"])
def test_the_parts_find_each_other(options: list[str]) -> None:
    manifests = rendered(*options)
    labels = pod_of(manifests)["metadata"]["labels"]
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (container,) = pod_of(manifests)["spec"]["containers"]
    (port,) = manifests["Service"]["spec"]["ports"]
    assert port["targetPort"] in {named["name"] for named in container["ports"]}
    volumes = {volume["name"] for volume in pod_of(manifests)["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    if options:
        monitor = manifests["ServiceMonitor"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= (
            manifests["Service"]["metadata"]["labels"].items()
        )
        assert monitor["spec"]["endpoints"][0]["port"] == port["name"]
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
    else:
        assert {"ServiceMonitor", "ScaledObject"}.isdisjoint(manifests)


def test_a_pod_may_drain_before_it_is_killed() -> None:
    manifests = rendered("--set=drain.noticeSeconds=7", "--set=drain.timeoutSeconds=100")
    spec = pod_of(manifests)["spec"]
    (container,) = spec["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert environment(manifests)["AHAMASK_DRAIN_TIMEOUT_S"] == "100"
    assert spec["terminationGracePeriodSeconds"] > 107


def test_a_pod_is_asked_whether_it_is_ready_and_alive() -> None:
    (container,) = pod_of(rendered())["spec"]["containers"]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == VALUES["startSeconds"]


def test_kubernetes_adds_no_variables_that_look_like_settings() -> None:
    assert pod_of(rendered())["spec"]["enableServiceLinks"] is False


def test_a_pod_is_nobody_and_writes_nowhere() -> None:
    spec = pod_of(rendered())["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {spec['securityContext']['runAsUser']} " in (REPOSITORY / "Dockerfile").read_text("utf-8")
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_keda_sets_the_number_of_copies() -> None:
    manifests = rendered(*EVERYTHING)
    assert "replicas" not in manifests["Deployment"]["spec"]
    scaled = manifests["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["query"] == 'sum(ahamask_waiting{namespace="audio", service="speech"})'
    assert rendered()["Deployment"]["spec"]["replicas"] == VALUES["replicas"]


def test_the_environment_is_settings_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(rendered(*EVERYTHING)).items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment()
    assert (settings.model, settings.port) == ("Qwen/Qwen2-Audio-7B", 8080)
    assert str(settings.api_keys_file) == "/etc/ahamask/keys"
    assert str(settings.masks_dir) == "/var/lib/ahamask/masks"


@pytest.mark.parametrize(
    ("option", "source", "read_only"),
    [
        ("claimName", {"persistentVolumeClaim": {"claimName": "mine"}}, None),
        ("configMapName", {"configMap": {"name": "mine"}}, True),
    ],
)
def test_head_masks_come_from_a_volume(option: str, source: dict[str, Any], read_only: bool | None) -> None:
    manifests = rendered(f"--set=masks.{option}=mine")
    (container,) = pod_of(manifests)["spec"]["containers"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "masks"]
    assert mount["mountPath"] == environment(manifests)["AHAMASK_MASKS_DIR"]
    assert mount.get("readOnly") is read_only
    assert {"name": "masks", **source} in pod_of(manifests)["spec"]["volumes"]
    assert "AHAMASK_MASKS_DIR" not in environment(rendered())


def test_autoscaling_is_refused_where_nothing_gives_it_its_labels() -> None:
    alone = ["template", "speech", str(CHART), "--set=autoscaling.enabled=true"]
    assert "needs serviceMonitor.enabled" in helm(*alone).stderr
    scaled = rendered("--set=autoscaling.enabled=true", "--set=autoscaling.query=sum(ahamask_waiting)")
    (trigger,) = scaled["ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["query"] == "sum(ahamask_waiting)"


@pytest.mark.parametrize(
    "wrong",
    [
        "--set=replica=3",
        "--set=env.AHAMASK_MAX_SLOTS=3",
        "--set-string=env.AHAMASK_PORT=1",
        "--set=masks.claimName=a,masks.configMapName=b",
    ],
)
def test_values_that_do_not_fit_are_refused(wrong: str) -> None:
    assert "schema" in helm("template", "speech", str(CHART), wrong).stderr
