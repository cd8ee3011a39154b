"""The process of the generate peers, as the model card shows it: requests in, answers out, one a line."""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import time
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from transformers import AutoProcessor, CompileConfig, Qwen2AudioForConditionalGeneration
from transformers.generation.streamers import BaseStreamer


class FirstToken(BaseStreamer):
    """Notes when the first token was there; the first call has the prompt."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.time_s = 0.0

    def put(self, _: Any) -> None:
        self.num_calls += 1
        if self.num_calls == 2:
            self.time_s = time.perf_counter()

    def end(self) -> None:
        pass


class Generator:
    """transformers' own model and processor; greedy."""

    def __init__(self, checkpoint: str, *, compiled: bool) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(checkpoint)  # type: ignore[no-untyped-call]
        self.processor.tokenizer.padding_side = "left"
        model: Any = Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self.model: Any = model.eval()
        self._options: dict[str, Any] = {"do_sample": False}
        if compiled:
            config = CompileConfig(mode="default", dynamic=True)
            config._compile_all_devices = True  # type: ignore[assignment]  # otherwise generate compiles on a GPU only
            self._options |= {"cache_implementation": "static", "compile_config": config}

    @torch.no_grad()
    def answers(
        self, recordings: list[bytes], instructions: list[str], max_new_tokens: int
    ) -> tuple[list[str], float]:
        """One batch: the texts, and the seconds between its first token and its end."""
        inputs = self.processor(
            text=[self._prompt(instruction) for instruction in instructions],
            audio=[_waveform(recording) for recording in recordings],
            sampling_rate=16_000,
            return_tensors="pt",
            padding=True,
        )
        first = FirstToken()
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=first, **self._options)
        end_s = time.perf_counter()
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts], end_s - (first.time_s or end_s)

    def _prompt(self, instruction: str) -> str:
        content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": instruction}]
        conversation = [{"role": "user", "content": content}]
        return str(
            self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        )


def _waveform(recording: bytes) -> NDArray[np.float32]:
    samples, rate = soundfile.read(io.BytesIO(recording), dtype="float32")
    if rate != 16_000 or samples.ndim != 1:
        raise ValueError("the recordings of the benchmark are mono and have 16 kHz")
    return np.asarray(samples, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    generator = Generator(arguments.checkpoint, compiled=arguments.compile)
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            texts, after_s = generator.answers(
                [base64.b64decode(request["audio"])], [request["instruction"]], request["max_new_tokens"]
            )
            answer: dict[str, Any] = {"text": texts[0], "after_first_token_s": after_s}
        except Exception as error:  # noqa: BLE001  (told to the benchmark, which counts it)
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
