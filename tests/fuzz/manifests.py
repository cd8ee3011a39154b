"""Any bytes as a manifest, guided by coverage (pip install atheris).

python -m tests.fuzz.manifests -max_total_time=300
python -m tests.fuzz.manifests CRASH                   repeat a finding
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lalm", "training"]):
    from tests.fuzz.targets import ANNOTATION, check_manifest, seeds


def main() -> None:
    """Fuzz until told to stop, or until something is found."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, data = Path(folder) / "corpus", Path(folder) / "data"
        corpus.mkdir()
        data.mkdir()
        (data / "a.wav").touch()
        for number, content in enumerate([*seeds(ANNOTATION), *seeds({"annotation": [ANNOTATION]})]):
            (corpus / str(number)).write_bytes(content)
        files = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        arguments = [*sys.argv, *([] if files else [str(corpus)])]
        atheris.Setup(arguments, lambda content: check_manifest(content, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
