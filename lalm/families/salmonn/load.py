"""From the published files to a loaded SALMONN."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import WhisperFeatureExtractor

from lalm import head_gate
from lalm.families.checks import check_extractor, of_whisper
from lalm.families.model_file import ModelFile
from lalm.families.placement import Placement
from lalm.families.salmonn.decoder import check_decoder, load_decoder
from lalm.families.salmonn.encoders import beats_encoder, bridge_module, whisper_encoder
from lalm.families.salmonn.family import SalmonnFamily
from lalm.families.salmonn.features import SalmonnFeatures
from lalm.families.salmonn.hearing import Hearing
from lalm.families.salmonn.parts import Part, Parts, open_parts
from lalm.families.salmonn.tokenizer import Tokenizer
from lalm.family import ModelFamily

log = logging.getLogger(__name__)


def load(model_file: ModelFile, name: str, placement: Placement) -> ModelFamily:
    """Load what `model_file` names, frozen and gated; a log line a part says how many bytes it is.

    placement: a device map and quantisation are for Vicuna; the encoders are small beside it.

    Raises:
        ModelError: something is missing, unknown, or does not fit together; what transformers raises on
            damaged files comes through.
    """
    parts = open_parts(model_file)
    check_decoder(parts)
    device, dtype = placement.device, placement.dtype
    tokenizer, extractor = Tokenizer(parts.vicuna.path), _extractor(parts)
    with _progress("Q-Former and LoRA", parts.bridge):
        bridge = bridge_module(parts, device, dtype)
    with _progress("BEATs", parts.beats):
        beats = beats_encoder(parts, device, dtype)
    with _progress("Whisper", parts.whisper):
        whisper = whisper_encoder(parts, device, dtype)
    with _progress("Vicuna", parts.vicuna):
        llama = load_decoder(parts, placement)
    llama.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
    head_gate.install(llama.model)
    hearing = Hearing(whisper, beats, bridge, dtype).eval().requires_grad_(False)
    features = SalmonnFeatures(extractor, hearing.num_tokens)
    return SalmonnFamily(llama, hearing, tokenizer, features, parts.identity(name))


@contextmanager
def _progress(name: str, part: Part) -> Iterator[None]:
    """Log what is loaded and how long that took."""
    start_s = time.perf_counter()
    log.info("loading %s: %s bytes in %d file(s)", name, f"{part.num_bytes:,}", len(part.files))
    yield
    log.info("loaded %s in %.1f s", name, time.perf_counter() - start_s)


def _extractor(parts: Parts) -> WhisperFeatureExtractor:
    """Whisper's features, which must be those of its encoder.

    Raises:
        ModelError: rate, bins or window are others.
    """
    folder, config = parts.whisper.path, parts.whisper_config
    extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    check_extractor(folder, extractor, of_whisper(config))
    return extractor
