"""Results as files that say what they were made from: only what has changed is computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lalm.json_file import read_object, write_object

Record = dict[str, Any]


class Records:
    """A folder of results, one JSON file each: {"inputs", "inputs_sha256", "result"}."""

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        self._folder = folder
        self._force = force

    def get(self, name: str, inputs: Mapping[str, Any], compute: Callable[[], Record]) -> Record:
        """The stored result if it was made from `inputs` (JSON values); otherwise a new one, stored."""
        path = self._folder / f"{name}.json"
        digest = sha256_of(inputs)
        if not self._force and path.is_file():
            try:
                stored = read_object(path)
            except ValueError:
                stored = {}  # a damaged record is made again
            if stored.get("inputs_sha256") == digest:
                result: Record = stored["result"]
                return result
        computed = compute()
        write_object(path, {"inputs": dict(inputs), "inputs_sha256": digest, "result": computed})
        return json.loads(json.dumps(computed))  # type: ignore[no-any-return]


def sha256_of(inputs: Mapping[str, Any]) -> str:
    """Hex digest of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
