"""Weights that a device map keeps on disk, or beside a GPU in the host's memory, until they are used."""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_encoder_entry(model: Any) -> None:
    """The encoder's first layer and its tables of positions, a few MB, stay on the device that computes them.

    accelerate brings the weights of a module in when it is called, but encoders look at some without a call:
    Voxtral's sends its input to the device of its first layer, and like that of Audio Flamingo 3 it adds the
    weight of its table. `lalm.families.hf` asks the first layer as well where features have to go.

    model: of transformers, loaded, with `get_decoder` and an output embedding; where nothing is offloaded,
        nothing is done.
    """
    decoder = {*model.get_decoder().modules(), model.get_output_embeddings()}
    first, *others = (module for module in model.modules() if module not in decoder and _weights(module))
    for module in (first, *others):
        if (module is first or isinstance(module, nn.Embedding)) and _weights(module)[0][1].is_meta:
            _bring_in(module)


def _bring_in(module: Any) -> None:
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import set_module_tensor_to_device

    hook, names = module._hf_hook, [name for name, _ in _weights(module)]
    remove_hook_from_module(module)
    for name in names:
        set_module_tensor_to_device(module, name, hook.execution_device, value=hook.weights_map[name])


def _weights(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))
