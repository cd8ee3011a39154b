"""What deploy/ asks Prometheus for is what a scrape of the service has."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service import reference
from service.app import create_app
from service.settings import Settings
from tests.ready_client import ready_client
from tests.toy import toy_waveform
from tests.toy_masks import write_toy_masks

REPOSITORY = Path(__file__).resolve().parents[2]
PROMETHEUS = REPOSITORY / "deploy/prometheus"
GRAFANA = REPOSITORY / "deploy/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/ahamask.json").read_text(encoding="utf-8"))
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
TARGETS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES = [*TARGETS, *(rule["expr"] for rule in RULES)]
# What Prometheus adds to every series, and the one that it makes itself.
ADDED_LABELS = {"job", "instance"}
OWN = "up"

Series = dict[str, set[str]]


@pytest.fixture(scope="module")
def scrape(toy_checkpoint: Path, toy_family: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The metrics of a service on a real engine, after an answer, a refusal, and a client's mistake."""
    masks_dir = tmp_path_factory.mktemp("masks")
    write_toy_masks(masks_dir, toy_family.identity)
    buffer = io.BytesIO()
    sf.write(buffer, toy_waveform(0.8), 16_000, format="WAV", subtype="PCM_16")
    app = create_app(Settings(model=str(toy_checkpoint), masks_dir=masks_dir, max_slots=2))
    with ready_client(app) as client:
        assert client.post("/tasks/asr", content=buffer.getvalue()).status_code == 200
        assert client.post("/tasks/asr", content=b"").status_code == 400
        yield client.get("/metrics").text


@pytest.fixture(scope="module")
def series(scrape: str) -> Series:
    """The labels of each series, by its name."""
    found: Series = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def names_in(query: str) -> set[str]:
    """The names of the series of a PromQL query."""
    return set(re.findall(r"\b(?:ahamask_|process_|python_)\w+|\bup\b", query))


def labels_in(query: str) -> set[str]:
    """The labels that it selects or groups by."""
    grouped = [name for names in re.findall(r"\bby \(([^)]*)\)", query) for name in names.split(",")]
    return {*(name.strip() for name in grouped), *re.findall(r"(\w+)(?:=~|!=|!~|=)\"", query)}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_a_scrape_has(query: str, series: Series) -> None:
    names = names_in(query)
    assert names
    assert names - {OWN} <= set(series)
    known = set().union(*(series.get(name, set()) for name in names)) | ADDED_LABELS
    assert labels_in(query) <= known


def test_the_dashboard_shows_every_series_of_the_table(series: Series) -> None:
    listed = re.findall(r"^\| `(ahamask_\w+)` \| (\w+)", reference.metrics_table(), flags=re.MULTILINE)
    expected = {name + ("_bucket" if kind == "histogram" else "") for name, kind in listed}
    assert expected <= set(series)
    assert expected - set().union(*(names_in(target) for target in TARGETS)) == set()


def test_the_table_lists_every_series_of_a_scrape(scrape: str) -> None:
    listed = set(re.findall(r"^\| `(ahamask_\w+)`", reference.metrics_table(), flags=re.MULTILINE))
    scraped = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(scrape)
        if family.name.startswith("ahamask_") and not family.name.endswith("_created")
    }
    assert listed == scraped


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_has_a_section_in_the_runbook(rule: dict[str, Any]) -> None:
    page = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    assert f"\n### {rule['alert']}\n" in page


def test_the_runbook_has_no_other_alerts() -> None:
    page = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (Ahamask\w+)$", page, flags=re.MULTILINE)) == {
        rule["alert"] for rule in RULES
    }


def test_compose_mounts_what_is_there_where_it_is_looked_for() -> None:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    mounts = {
        target: source
        for name in ("prometheus", "grafana")
        for source, target in (mount.split(":")[:2] for mount in services[name]["volumes"])
    }
    for source in mounts.values():
        assert not source.startswith(".") or (REPOSITORY / source).exists()
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= set(mounts)
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/ahamask.yml").read_text(encoding="utf-8"))
    assert provider["providers"][0]["options"]["path"] in mounts
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["datasources"][0]["uid"]}


@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_promtool_accepts_the_rules(arguments: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    ran = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_accepts_a_scrape(scrape: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    ran = subprocess.run(
        [promtool, "check", "metrics"], input=scrape, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
