"""Any bytes as a mask file, guided by coverage (pip install atheris).

python -m tests.fuzz.mask_files -max_total_time=300
python -m tests.fuzz.mask_files CRASH                  repeat a finding
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lalm", "training"]):
    from tests.fuzz.targets import MASK_FILE, check_mask_file, seeds


def main() -> None:
    """Fuzz until told to stop, or until something is found."""
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(seeds(MASK_FILE)):
            (Path(folder) / str(number)).write_bytes(content)
        files = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        atheris.Setup([*sys.argv, *([] if files else [folder])], check_mask_file)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
