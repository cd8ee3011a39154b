from __future__ import annotations

import json
from pathlib import Path

from benchmarks import pruned
from benchmarks.pruned import QUICK, head_masks
from lalm import tiny
from lalm.families import load_family


def test_the_quick_run_writes_its_table_the_largest_first(tmp_path: Path) -> None:
    shipped, random = pruned.main(["--quick", "--out", str(tmp_path)])
    assert shipped.active_heads > random.active_heads == 102
    assert shipped.file_bytes > random.file_bytes
    assert shipped.decoder_bytes > random.decoder_bytes
    assert shipped.cache_bytes_per_token >= random.cache_bytes_per_token
    assert min(random.masked_ms, random.served_ms, random.compiled_ms, random.compiled_to_masked) > 0
    content = json.loads((tmp_path / "pruned.json").read_text())
    assert [each["name"] for each in content["head_masks"]] == [shipped.name, "random, 10%"]
    rows = (tmp_path / "pruned.md").read_text().splitlines()[-2:]
    assert [row.split("|")[1].strip() for row in rows] == [shipped.name, "random, 10%"]


def test_the_whole_plan_has_every_shipped_mask() -> None:
    names = [name for name, _ in head_masks(load_family(tiny.CHECKPOINT), pruned.Plan())]
    assert {"asr", "gr", "ser", "random, 100%", "random, 3%"} <= set(names)
    assert QUICK.max_shipped == 1
