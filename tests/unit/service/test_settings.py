from __future__ import annotations

from pathlib import Path

import pytest

from lalm import tiny
from service.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)
    for field in Settings.model_fields:
        monkeypatch.delenv(f"AHAMASK_{field.upper()}", raising=False)


def test_the_defaults_serve_the_embedded_model_on_8080() -> None:
    settings = Settings()
    assert (settings.port, settings.model) == (8080, str(tiny.CHECKPOINT))


def test_the_environment_is_read_under_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHAMASK_MAX_SLOTS", "3")
    monkeypatch.setenv("AHAMASK_LOG_JSON", "true")
    settings = Settings.from_environment()
    assert settings.max_slots == 3
    assert settings.log_json is True


def test_port_is_honoured_and_the_prefixed_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9001")
    assert Settings().port == 9001
    monkeypatch.setenv("AHAMASK_PORT", "9002")
    assert Settings().port == 9002
    assert Settings.from_environment(port=9003).port == 9003


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHAMASK_REVISION", "")
    monkeypatch.setenv("PORT", "")
    settings = Settings()
    assert settings.revision is None
    assert settings.port == 8080


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("port", "70000", "less than or equal to 65535"),
        ("max_slots", "0", "greater than or equal to 1"),
        ("max_waiting", "many", "valid integer"),
        ("dtype", "int8", "'float32', 'bfloat16' or 'float16'"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("max_audio_s", "-1", "greater than 0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, field: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"AHAMASK_{field.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment()
    message = str(caught.value)
    assert f"AHAMASK_{field.upper()}" in message
    assert allowed in message
    assert repr(value) in message
    assert "\n" not in message


def test_a_misspelt_override_is_refused() -> None:
    with pytest.raises(SettingsError, match="no setting 'max_slot'"):
        Settings.from_environment(max_slot=3)


def test_masks_lie_beside_the_packages_under_the_models_name_unless_said_otherwise(tmp_path: Path) -> None:
    repository = Path(__file__).resolve().parents[3]
    assert Settings().masks_dir_for("tiny-lalm") == repository / "masks" / "tiny-lalm"
    assert Settings(masks_dir=tmp_path).masks_dir_for("tiny-lalm") == tmp_path
    (tmp_path / "lalm" / "masks").mkdir(parents=True)
    assert Settings(model=str(tmp_path / "lalm")).masks_dir_for("lalm") == tmp_path / "lalm" / "masks"
    assert Settings(model=str(tmp_path / "lalm"), masks_dir=tmp_path).masks_dir_for("lalm") == tmp_path


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
