"""The generated tables of the documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import reference
from service.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("page", reference.PAGES)
def test_a_page_has_the_table_that_would_be_made(page: str) -> None:
    old = (REPOSITORY / page).read_text(encoding="utf-8")
    assert reference.updated(old, reference.PAGES[page]()) == old, "run python -m service.reference"


def test_every_setting_has_a_row_with_what_it_may_be() -> None:
    rows = reference.settings_table().splitlines()
    assert len(rows) == 2 + len(Settings.model_fields)
    assert any(row.startswith("| `AHAMASK_PORT`, `PORT` | integer ≥ 0 ≤ 65535 | `8080` |") for row in rows), (
        rows
    )
    assert any(row.startswith("| `AHAMASK_QUANTIZE` | `int8`, `int4` | |") for row in rows)


def test_a_stale_table_is_replaced_and_the_rest_of_the_page_stays() -> None:
    page = "# A\n\n<!-- made by python -m service.reference -->\nold\n<!-- end -->\n\nB\n"
    new = reference.updated(page, "| table |\n")
    assert new == page.replace("old\n", "\n| table |\n\n")
    with pytest.raises(ValueError, match="no place"):
        reference.updated("# A\n", "| table |\n")
