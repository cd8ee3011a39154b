"""The container as it is declared: an ordinary user, nothing to write to, no privilege to gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]


@pytest.mark.parametrize("name", ["ahamask", "ahamask-gpu"])
def test_the_service_can_write_to_its_volumes_only(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "user" not in service  # that of the image


def test_the_image_runs_as_an_ordinary_user() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    final = {line.split(" AS ")[1]: line.split()[1] for line in (lines[number] for number in stages)}
    assert final["cpu"] == final["cuda"] == "runtime"
    users = [(number, line) for number, line in enumerate(lines) if line.startswith("USER ")]
    assert [line for _, line in users] == ["USER ahamask"]
    assert lines[max(number for number in stages if number < users[0][0])].endswith(" AS runtime")
