"""From a checkpoint folder to a model of `lalm.families.hf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, PreTrainedTokenizerFast

from lalm import head_gate
from lalm.audio import SAMPLE_RATE_HZ
from lalm.errors import ModelError
from lalm.families.checks import check_complete, check_extractor
from lalm.families.hf import HfFamily
from lalm.families.hf_features import GraniteExtractor, granite_mel
from lalm.families.hf_models import MODELS, HfModel
from lalm.families.hf_prompts import ChatTokens
from lalm.families.offload import keep_encoder_entry
from lalm.families.placement import Placement
from lalm.family import ModelFamily
from lalm.fingerprint import fingerprint
from lalm.head_mask import ModelIdentity

_TEKKEN = "tekken.json"
_ADAPTER = "adapter_config.json"


def load_hf(folder: Path, name: str, placement: Placement) -> ModelFamily:
    """Load the checkpoint in `folder`, freeze it, install the head gate; an adapter in it is merged.

    Raises:
        ModelError: incomplete, or its parts do not fit together; what transformers raises on a damaged
            checkpoint comes through.
    """
    kind, config = _kind_and_config(folder)
    tokens = _chat_tokens(folder, config)
    extractor = _extractor(folder, kind)
    encoder = _encoder_config(config)
    wanted = {"sampling_rate": SAMPLE_RATE_HZ, "feature_size": encoder.num_mel_bins}
    check_extractor(folder, extractor, wanted)
    model_class = getattr(transformers, kind.class_name)
    loaded: Any = model_class.from_pretrained(
        folder,
        config=config,
        **placement.arguments(model_class, config, _adapted(folder)),
        attn_implementation="sdpa",
        key_mapping={f"^{kind.part}\\.": ""} if kind.part else None,
        adapter_kwargs={"subfolder": "none"},  # an adapter is for _with_adapter
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    check_complete(folder, info["missing_keys"])
    model = _with_adapter(folder, model)
    placement.finish(model)
    keep_encoder_entry(model)
    model.eval().requires_grad_(False)
    head_gate.install(model.get_decoder())
    return HfFamily(kind, model, extractor, tokens, _identity(folder, name, kind, config))


def identify_hf(folder: Path, name: str) -> ModelIdentity:
    """Which model the checkpoint in `folder` is; loads no weights.

    Raises:
        ModelError: the weights cannot be read.
    """
    return _identity(folder, name, *_kind_and_config(folder))


def _adapted(folder: Path) -> list[str]:
    """Last names of the linear layers that the checkpoint's adapter changes."""
    path = folder / _ADAPTER
    return list(json.loads(path.read_text(encoding="utf-8"))["target_modules"]) if path.is_file() else []


def _with_adapter(folder: Path, model: Any) -> Any:
    """The model with the LoRA adapter of the checkpoint, if it has one, added to its weights.

    transformers would load it beside them, and switch it off where `generate` is given no waveform.

    Raises:
        ModelError: there is an adapter, but peft is not installed, or a device map offloads what it is for.
    """
    if not (folder / _ADAPTER).is_file():
        return model
    try:
        from peft import PeftModel

        from lalm.families.lora import merge_lora
    except ImportError as error:
        raise ModelError(f"{folder}: the checkpoint has an adapter; pip install peft reads it") from error
    # peft would place a model again that is offloaded in part, by a map of its own, and fail at that
    device_map = model.__dict__.pop("hf_device_map", None)
    merged = merge_lora(PeftModel.from_pretrained(model, str(folder)))
    if device_map is not None:
        merged.hf_device_map = device_map
    return merged


def _kind_and_config(folder: Path) -> tuple[HfModel, Any]:
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = MODELS[config.model_type]
    return kind, getattr(config, f"{kind.part}_config") if kind.part else config


def _chat_tokens(folder: Path, config: Any) -> ChatTokens:
    tokenizer: Any
    if (folder / _TEKKEN).is_file():
        # read without mistral-common, whose tokenizer has another interface
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    audio_token = tokenizer.convert_ids_to_tokens(config.audio_token_id)
    if audio_token is None:
        raise ModelError(f"{folder}: the tokenizer has no token {config.audio_token_id}, the audio's place")
    return ChatTokens(tokenizer, _chat_template(folder, tokenizer), audio_token)


def _chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The processor's template goes over the tokenizer's, which may know no audio."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    if (path := folder / "chat_template.json").is_file():
        return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"])
    template: str | None = tokenizer.chat_template
    return template


def _extractor(folder: Path, kind: HfModel) -> Any:
    if kind.mel is not granite_mel:
        return AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path := folder / name).is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            return GraniteExtractor.from_config(content.get("audio_processor", content))
    raise ModelError(f"{folder}: there is no preprocessor_config.json")


def _encoder_config(config: Any) -> Any:
    return getattr(config, "audio_config", None) or config.encoder_config


def _identity(folder: Path, name: str, kind: HfModel, config: Any) -> ModelIdentity:
    text = config.get_text_config()
    return ModelIdentity(
        family=kind.family,
        name=name,
        fingerprint=fingerprint(folder, _essentials(kind, config)),
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
    )


def _essentials(kind: HfModel, config: Any) -> dict[str, Any]:
    """What of the configuration decides over the computation, and no version of a library changes."""
    text, encoder = config.get_text_config(), _encoder_config(config)
    sizes = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    decoder_keys = (*sizes, "intermediate_size", "num_key_value_heads", "vocab_size", "rms_norm_eps")
    return {
        "family": kind.family,
        **({"granite": _granite_essentials(config)} if kind.mel is granite_mel else {}),
        "decoder": {key: getattr(text, key) for key in decoder_keys},
        "rope_theta": text.rope_parameters["rope_theta"],
        "encoder": {key: getattr(encoder, key) for key in (*sizes, "num_mel_bins")},
    }


def _granite_essentials(config: Any) -> dict[str, Any]:
    """Numbers of Granite Speech that no tensor tells; other models keep the fingerprint they have."""
    scales = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    text = config.get_text_config()
    return {
        **{key: float(getattr(text, key)) for key in scales},
        **{key: getattr(config, key) for key in ("window_size", "downsample_rate")},
    }
