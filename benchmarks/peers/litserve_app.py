"""What a team builds in a day: LitServe's dynamic batching around a batched generate, one prompt a task."""

import argparse
import base64
from typing import Any

import litserve

from benchmarks.peers.generate_worker import Generator


class InstructionAPI(litserve.LitAPI):  # type: ignore[misc]
    """A batch may hold requests of any tasks; it ends with its longest answer."""

    def __init__(self, checkpoint: str, max_batch_size: int, batch_timeout_s: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout_s)
        self._checkpoint = checkpoint

    def setup(self, device: str) -> None:  # noqa: ARG002
        self._generator = Generator(self._checkpoint, compiled=False)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return {**request, "audio": base64.b64decode(request["audio"])}

    def predict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        texts, after_s = self._generator.answers(
            [request["audio"] for request in batch],
            [request["instruction"] for request in batch],
            max(request["max_new_tokens"] for request in batch),
        )
        return [{"text": text, "after_first_token_s": after_s} for text in texts]

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--batch-timeout-s", type=float, default=0.02)
    arguments = parser.parse_args()
    api = InstructionAPI(arguments.checkpoint, arguments.max_batch_size, arguments.batch_timeout_s)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
