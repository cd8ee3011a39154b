"""What is known of a recording of the corpus, and the right answer of every task that it can be asked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.tiny.voices import EMOTIONS, GENDERS, Prosody, Speaker

# In which order tasks stand in tables and files. asv asks about two recordings (`Pair`), the others about
# one.
TASKS = (
    "asr", "gr", "ser", "s2tt", "asv", "aac", "osr", "asr-gr", "gr-asr", "asr-gr-json", "gr-ser-asr-json",
)  # fmt: skip

Group = tuple[str | None, str | None]  # synthesis voice and gender


@dataclass(frozen=True)
class Traits:
    """What a virtual speaker was drawn with, and how they spoke this time; `tract` scales formants, rates
    are factors on the engine voice's own."""

    pitch_hz: float
    tract: float
    rate: float
    spoken_pitch_hz: float
    spoken_rate: float

    @classmethod
    def of(cls, speaker: Speaker, prosody: Prosody) -> Traits:
        spoken = speaker.pitch_hz * prosody.pitch, speaker.rate * prosody.rate
        return cls(speaker.pitch_hz, speaker.tract, speaker.rate, *spoken)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A recording; `path` is relative to its split's folder. What is None or empty is not there or not known.

    speech: transcript, translation, gender, emotion, speaker, voice, traits where it is synthetic; a caption
        where sounds are behind it; no transcript where a voice of another language speaks
    scene: sounds alone, with a caption
    overlap: two speakers at once; `transcript` belongs to who begins, `second` to the other
    """

    path: str
    transcript: str | None = None
    translation: str | None = None
    gender: str | None = None
    emotion: str | None = None
    speaker: str | None = None
    voice: str | None = None
    traits: Traits | None = None
    second: str | None = None
    caption: str | None = None
    sounds: tuple[str, ...] = ()

    @property
    def group(self) -> Group:
        """Recordings of one group differ by their speakers alone, as far as voices go."""
        return self.voice, self.gender

    @property
    def has_known_words(self) -> bool:
        """Whether it is known what is said, if only that nobody speaks."""
        return self.transcript is not None or self.speaker is None

    @property
    def is_virtual_speaker(self) -> bool:
        """Whether somebody speaks who was drawn, of whom there are many; not a person as they are."""
        return self.speaker is not None and (self.emotion is not None or self.traits is not None)

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def read(cls, values: dict[str, Any]) -> Record:
        traits = Traits(**values["traits"]) if "traits" in values else None
        return cls(**{**values, "sounds": tuple(values.get("sounds", ())), "traits": traits})


@dataclass(frozen=True)
class Pair:
    """Two recordings of a split by index, of the same speaker or of two."""

    first: int
    second: int
    same: bool

    @property
    def answer(self) -> str:
        return "same" if self.same else "different"


def answers(record: Record) -> dict[str, str]:
    """The right answer of every task for a recording, in the wording that the model is trained to give."""
    text, gender, emotion = record.transcript, record.gender, record.emotion
    out: dict[str, str] = {}
    if record.caption is not None:
        out["aac"] = record.caption
    if emotion in EMOTIONS:
        out["ser"] = emotion
    if gender in GENDERS:
        out["gr"] = gender
    if text is None:
        return out
    if record.second is not None:
        return {**out, "osr": f"{text} | {record.second}"}
    out["asr"] = text
    if record.translation is not None:
        out["s2tt"] = record.translation
    if gender in GENDERS:
        out |= {"asr-gr": f"{text} | {gender}", "gr-asr": f"{gender} | {text}"}
        out["asr-gr-json"] = json.dumps({"transcript": text, "gender": gender}, ensure_ascii=False)
        if emotion in EMOTIONS:
            whole = {"gender": gender, "emotion": emotion, "transcript": text}
            out["gr-ser-asr-json"] = json.dumps(whole, ensure_ascii=False)
    return out


def read_records(folder: Path) -> list[Record]:
    """The records of a split, in file order."""
    return [Record.read(json.loads(line)) for line in (folder / "utterances.jsonl").open(encoding="utf-8")]


def read_pairs(folder: Path) -> list[Pair]:
    """The speaker pairs of a split, if it has any."""
    path = folder / "pairs.jsonl"
    return [Pair(**json.loads(line)) for line in path.open(encoding="utf-8")] if path.exists() else []
