"""From settings to an engine with its catalogue: the slow part of the start."""

from __future__ import annotations

import joblib
import torch

from lalm.audio import AudioLimits
from lalm.families import load_family
from service.catalogue import Catalogue
from service.inference.decode_graphs import capture_for
from service.inference.engine import Engine, EngineConfig
from service.metrics import Metrics
from service.runtime import InferenceEngine, Loaded
from service.settings import Settings


def load(settings: Settings, metrics: Metrics) -> Loaded:
    """Load the model and the head masks of `settings`; takes seconds to minutes. The engine is not started.

    Raises:
        ModelError: the model cannot be loaded.
        HeadMaskError: the folder of mask files, or a file in it, is wrong.
    """
    torch.set_num_threads(num_threads(settings))
    family = load_family(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        device_map=settings.device_map,
    )
    may_capture = settings.cuda_graphs and settings.device_map is None  # a graph is of one device
    config = EngineConfig(
        max_slots=settings.max_slots,
        max_waiting=settings.max_waiting,
        max_audio_cache_bytes=settings.max_audio_cache_bytes,
        capture=capture_for(family.device) if may_capture else None,
    )
    return complete(settings, Engine(family, config, metrics))


def num_threads(settings: Settings) -> int:
    """CPU threads of the model. torch counts the cores of the machine, of which a container may have few; one
    thread too many makes all of them wait, at every operator."""
    return settings.torch_threads or min(torch.get_num_threads(), joblib.cpu_count())


def complete(settings: Settings, engine: InferenceEngine) -> Loaded:
    """`engine` with the head masks of its model and the limits on its audio.

    Raises:
        HeadMaskError: as `load`.
    """
    identity = engine.family.identity
    limits = AudioLimits(max_bytes=settings.max_upload_bytes, max_duration_s=settings.max_audio_s)
    catalogue = Catalogue.load(settings.masks_dir_for(identity.name), identity)
    return Loaded(engine=engine, catalogue=catalogue, audio_limits=limits)
