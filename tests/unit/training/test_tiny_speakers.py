"""What tells virtual speakers of one voice apart, and batches in which they meet."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.tiny.features import Changes, Corpus, augment, draw_changes
from training.tiny.listener import PASSED_SIZE, Listener
from training.tiny.records import Record, Traits
from training.tiny.speakers import NAMES, SpeakerBatches, TraitScale
from training.tiny.voices import EMOTIONS, draw_prosody, draw_speaker

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
    records = records_of(200)
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
    assert 0.4 < kinds["twins"] / (kinds["twins"] + kinds["others"]) < 0.6


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


def test_speakers_and_emotions_are_told_apart_by_what_is_theirs() -> None:
    """Of speakers who were not there to learn by, in tokens that mostly vary by something else."""
    rng = torch.Generator().manual_seed(0)
    width, theirs, num_each = 16, 6, 8
    people = 0.1 * torch.randn(60, 1, theirs, generator=rng)
    means = torch.randn(60, num_each, width, generator=rng)  # what is said, and how
    means[..., :theirs] = people + 0.02 * torch.randn(60, num_each, theirs, generator=rng)
    emotions = torch.randint(len(EMOTIONS), (60, num_each), generator=rng)
    means[..., theirs] = 0.1 * emotions + 0.01 * torch.randn(60, num_each, generator=rng)
    listener = Listener(width, 5, [str(number) for number in range(40)])

    def is_nearest(of: Listener) -> float:
        """How often a recording of an unheard speaker is nearer to their others than to anyone else's."""
        with torch.no_grad():
            voices = F.normalize(of.voice(means[40:]), dim=-1)
        asked, others = voices[:, 0], F.normalize(voices[:, 1:].mean(1), dim=-1)
        return float(((asked @ others.T).argmax(1) == torch.arange(20)).float().mean())

    def is_right(of: Listener) -> float:
        """How often the emotion of an unheard speaker is."""
        return float((of.emotion(means[40:]).argmax(-1) == emotions[40:]).float().mean())

    before = is_nearest(listener), is_right(listener)
    owners = torch.arange(40).repeat_interleave(num_each)
    listener.fit(means[:40].flatten(0, 1), owners, emotions[:40].flatten())
    assert before[0] < 0.5 < 0.8 < is_nearest(listener)
    assert before[1] < 0.5 < 0.9 < is_right(listener)


def test_a_projector_passes_on_what_speakers_and_emotions_are_told_apart_by() -> None:
    """Beside what it did before, as loud along each direction, however faint it was."""
    torch.manual_seed(0)
    listener, projector = Listener(48, 5, ["one"]), torch.nn.Linear(48, 64)
    means = torch.randn(200, 48) * 0.1 + 3
    with torch.no_grad():
        before, told = projector(means), (listener.voice(means), listener.emotion(means))
        listener.pass_on(projector, means)
        added = projector(means) - before
    torch.testing.assert_close(added.mean(0), torch.zeros(64), atol=1e-3, rtol=0)
    wanted = torch.cat([(x - x.mean(0)) / x.std(0, correction=0).mean() for x in told], dim=1) * PASSED_SIZE
    torch.testing.assert_close(added @ added.T, wanted @ wanted.T, atol=1e-1, rtol=1e-3)
