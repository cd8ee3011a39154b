"""What the documents say is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from service.settings import Settings
from training.config import parse_config

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/**/*.md"))]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("field", Settings.model_fields)
def test_the_readme_lists_every_setting(field: str) -> None:
    assert f"| `AHAMASK_{field.upper()}`" in README


def test_the_readme_lists_no_other_setting() -> None:
    listed = re.findall(r"^\| `AHAMASK_([A-Z_]+)`", README, flags=re.MULTILINE)
    assert {name.lower() for name in listed} == set(Settings.model_fields)


def test_the_recipes_of_the_readme_can_be_read() -> None:
    recipes = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    assert recipes
    for recipe in recipes:
        config = parse_config(tomllib.loads(recipe), "README.md")
        assert config.out.parent.name == Path(config.checkpoint).name  # where the service looks for it


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_index_lists_every_page() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (REPOSITORY / "docs").glob("*.md")}
    unlisted = pages - set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert unlisted <= {"README.md", "results.md"}  # `make results` writes the latter


def test_make_installs_the_torch_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = (name for name in project["dependencies"] if name.startswith("torch=="))
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH := {pin}\n" in makefile
