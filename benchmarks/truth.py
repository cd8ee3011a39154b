"""The texts of plain generate, with head mask and with instruction: what texts are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.client import Truth
from benchmarks.jobs import Recording, Task, load_expected
from lalm.audio import AudioLimits, decode_audio
from lalm.families import load_family
from training.generation import generate


def compute_truth(
    checkpoint: Path, recordings: Sequence[Recording], tasks: Sequence[Task], samples: Path
) -> Truth:
    """Every recording under every task, one at a time, in float32 on the CPU. The model is let go again."""
    family = load_family(checkpoint)
    masked: dict[tuple[str, str], str] = {}
    instructed: dict[tuple[str, str], str] = {}
    for recording in recordings:
        features = family.features(decode_audio(recording.content, AudioLimits()))
        audio = family.embed_audio([features])
        for task in tasks:
            key, limit = (recording.name, task.name), task.spec.max_new_tokens
            for texts, head_mask, instruction in (
                (masked, task.mask_file.head_mask, None),
                (instructed, None, task.instruction),
            ):
                prompt = family.embed_prompt(audio, instruction)
                (ids,) = generate(family, [prompt], head_mask=head_mask, max_new_tokens=limit)
                texts[key] = family.decode_tokens(ids)
    return Truth(masked, instructed, load_expected(samples))
