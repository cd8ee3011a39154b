"""What tells virtual speakers of one voice apart, and batches in which they meet."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from training.tiny.features import Changes, Corpus, augment, draw_changes
from training.tiny.records import Record, Traits
from training.tiny.speakers import NAMES, SpeakerBatches, TraitScale
from training.tiny.voices import draw_prosody, draw_speaker

PLAIN = Changes()


def records_of(num_speakers: int = 30, num_each: int = 6) -> list[Record]:
    """Speech of drawn speakers, behind two recordings that nobody speaks alone in."""
    rng, records = Random(0), [Record(path="s", sounds=("bell",)), Record(path="o", second="two")]
    for number in range(num_speakers):
        speaker = draw_speaker(rng, f"{number}", "train")
        for _ in range(num_each):
            records.append(
                Record(
                    path=str(len(records)),
                    gender=speaker.gender,
                    emotion="sad",
                    speaker=speaker.name,
                    voice=speaker.voice.name,
                    traits=Traits.of(speaker, draw_prosody(rng, "sad")),
                )
            )
    return records


def test_traits_are_relative_to_voice_and_gender() -> None:
    records = records_of()
    targets = TraitScale(records).targets(records, PLAIN)
    assert targets[:2].isnan().all()
    known = targets[2:]
    torch.testing.assert_close(known.mean(0), torch.zeros(len(NAMES)), atol=1e-4, rtol=0)
    torch.testing.assert_close(known.std(0, correction=0), torch.ones(len(NAMES)), atol=1e-4, rtol=0)
    groups = {(r.voice, r.gender) for r in records[2:]}
    for group in groups:
        rows = torch.tensor([(r.voice, r.gender) == group for r in records[2:]])
        assert known[rows].mean(0).abs().max() < 1e-4


def test_what_a_change_leaves_nothing_of_is_no_target() -> None:
    records = records_of()
    scale = TraitScale(records)

    def unknown(changes: Changes) -> set[str]:
        targets = scale.targets(records[2:], changes).isnan()
        assert (targets.all(0) | ~targets.any(0)).all()
        return {name for name, is_unknown in zip(NAMES, targets.all(0).tolist(), strict=True) if is_unknown}

    assert unknown(PLAIN) == set()
    assert unknown(Changes(tempo=1.1)) == {"rate", "spoken_rate"}
    assert unknown(Changes(shifted=True)) == {"tract"}


def test_a_voice_that_the_scale_has_not_heard_has_no_targets() -> None:
    records = records_of()
    voice = records[-1].voice
    scale = TraitScale([record for record in records if record.voice != voice])
    assert scale.targets([records[-1]], PLAIN).isnan().all()
    assert TraitScale([]).targets(records, PLAIN).isnan().all()


def test_a_batch_has_speakers_of_one_voice_and_pairs_of_them() -> None:
    records = records_of(60)
    mels = [np.zeros((128, 20 + index % 50)) for index in range(len(records))]
    batches = SpeakerBatches(Corpus(records, mels, []), Random(1))
    assert batches
    kinds: Counter[str] = Counter()
    for _ in range(40):
        batch = batches.draw(60)
        assert len(set(batch.clips)) == len(batch.clips) <= 32
        heard = [records[clip] for clip in batch.clips]
        assert all(record.speaker is not None for record in heard)
        for pair in batch.pairs:
            one, other = heard[pair.first], heard[pair.second]
            assert pair.first != pair.second
            assert pair.same == (one.speaker == other.speaker)
            twins = (one.voice, one.gender) == (other.voice, other.gender)
            kinds["same" if pair.same else "twins" if twins else "others"] += 1
    assert kinds["same"] == 40 * 30
    assert 0.25 < kinds["twins"] / (kinds["twins"] + kinds["others"]) < 0.5


@pytest.mark.parametrize("records", [[], records_of(1), records_of(4, num_each=1)])
def test_nothing_is_drawn_where_no_speakers_can_be_compared(records: list[Record]) -> None:
    assert not SpeakerBatches(Corpus(records, [np.zeros((128, 9))] * len(records), []), Random(0))


def test_changes_are_drawn_in_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_changes(generator) for _ in range(2000)]
    tempos = [changes.tempo for changes in drawn if changes.tempo is not None]
    assert 0.85 <= min(tempos) < max(tempos) <= 1.2
    counts = len(tempos), sum(c.shifted for c in drawn), sum(c.equalised for c in drawn)
    np.testing.assert_allclose(np.array(counts) / 2000, (0.45, 0.2, 0.5), atol=0.05)


def test_every_microphone_has_its_own_response() -> None:
    mels, lengths = torch.zeros(64, 128, 2000), torch.full((64,), 2000)

    def response(changes: Changes) -> torch.Tensor:
        out, _ = augment(mels, lengths, torch.Generator().manual_seed(0), changes)
        return out.mean(2) - out.mean((1, 2))[:, None]  # [clips, bins]

    assert response(PLAIN).abs().max() < 0.02
    equalised = response(Changes(equalised=True))
    assert equalised.std(1).mean() > 0.02
    assert equalised.abs().max() < 0.4
    assert (equalised[0] - equalised[1]).abs().max() > 0.02
