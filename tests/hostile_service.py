"""Sends the corpus of hostile audio to a service in this process, under a limit on its processor time.

    python -m tests.hostile_service FOLDER    FOLDER takes mask files and records.jsonl

A record is a JSON object a file, {"name", "status", "type"}, and last {"grown_bytes"}: by how much the most
memory that the process ever had is more than before the first file.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from service.app import create_app
from service.logging import configure_logging
from service.settings import Settings
from tests.fake_engine import FakeEngine, recording, write_masks
from tests.hostile_audio import corpus
from tests.ready_client import ready_client
from tests.served import WAV

# A few seconds are needed on a laptop; a file that loops takes any amount.
MAX_CPU_S = 300


def main(folder: Path) -> None:
    """Send every file, in the order of the corpus."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    configure_logging("error", as_json=False)
    write_masks(folder / "masks")
    files = list(corpus())
    app = create_app(Settings(masks_dir=folder / "masks"), FakeEngine())
    with (
        ready_client(app, raise_server_exceptions=False) as client,
        (folder / "records.jsonl").open("w", encoding="utf-8") as records,
    ):
        client.post("/tasks/asr", content=recording(), headers=WAV)
        before = peak_bytes()
        for name, content in files:
            print("sending", name, flush=True)  # the last one is known when it ends the process
            response = client.post("/tasks/asr", content=content, headers=WAV)
            kind = response.json().get("error", {}).get("type")
            print(json.dumps({"name": name, "status": response.status_code, "type": kind}), file=records)
        assert client.post("/tasks/asr", content=recording(), headers=WAV).status_code == 200
        print(json.dumps({"grown_bytes": peak_bytes() - before}), file=records)


def peak_bytes() -> int:
    """The most memory that this process has had at a time."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
