"""Where the weights of a model go while it is loaded, and what they become.

Weights stay on the CPU, go to one device as they are read, or spread over several (accelerate dispatches them
and moves what flows between them). The linear layers of the decoder may be quantised while they are read
(bitsandbytes): encoder, projector, embeddings, norms and the head stay as they are, and so do projections
that an adapter is added to.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from lalm.errors import ModelError

Quantize = Literal["int8", "int4"]
AUTO = "auto"
DISK = "disk"

Device = TypeVar("Device")


@dataclass(frozen=True)
class Placement:
    """What a loader is told: everything is on `device` that `device_map` does not put elsewhere.

    dtype: what is computed in. quantize: of the decoder's linear layers, or None.
    device_map: `auto`, or accelerate's map from modules to devices as a JSON object; None for one device.
    """

    device: torch.device
    dtype: torch.dtype
    quantize: Quantize | None = None
    device_map: str | None = None

    def arguments(self, model_class: Any, config: Any, adapted: Sequence[str] = ()) -> dict[str, Any]:
        """Keyword arguments of `model_class.from_pretrained`.

        adapted: last names of linear layers that an adapter will be added to; they are not quantised.

        Raises:
            ModelError: a device map that cannot be read or met, or a package that is not installed.
        """
        arguments: dict[str, Any] = {"dtype": self.dtype}
        on_cpu = self.device.type == "cpu"
        if self.quantize is None and self.device_map is None and (on_cpu or not find_spec("accelerate")):
            return arguments
        _check_installed("accelerate")
        with torch.device("meta"):
            outline = model_class(config)
        layers, rest = layers_and_rest(outline)
        arguments["device_map"] = self._map(outline, layers, rest)
        if DISK in arguments["device_map"].values():
            folder = arguments["offload_folder"] = tempfile.mkdtemp(prefix="ahamask-offload-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        if self.quantize is not None:
            arguments["quantization_config"] = self._quantization([*rest, *adapted])
        return arguments

    def finish(self, model: Any) -> None:
        """Put a loaded model where it belongs, unless it is there already."""
        if getattr(model, "hf_device_map", None) is None and self.quantize is None:
            model.to(self.device)

    def _quantization(self, skipped: list[str]) -> BitsAndBytesConfig:
        _check_installed("bitsandbytes")
        # it tells of every conversion to float16 in every layer of every step
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=self.quantize == "int8",
            load_in_4bit=self.quantize == "int4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=self.dtype,
            llm_int8_skip_modules=skipped,
        )

    def _map(self, outline: nn.Module, layers: list[str], rest: list[str]) -> dict[str, Any]:
        if self.device_map is None:
            return {"": self.device}
        if self.device_map != AUTO:
            return read_device_map(self.device_map)
        if not torch.cuda.is_available():
            raise ModelError(f"the device map {AUTO!r} needs a GPU, and there is none")
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        free = [torch.cuda.mem_get_info(device)[0] for device in devices]
        sizes = {name: _num_bytes(outline.get_submodule(name)) for name in (*layers, *rest)}
        return spread(layers, rest, sizes, dict(zip(devices, free, strict=True)))


def layers_and_rest(model: Any) -> tuple[list[str], list[str]]:
    """Names of the decoder's layers, and of the largest modules that hold everything else."""
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    stack = f"{path}.layers"
    rest: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            here = f"{prefix}{name}"
            if stack.startswith(f"{here}."):
                walk(child, f"{here}.")
            elif here != stack:
                rest.append(here)

    walk(model, "")
    return [f"{stack}.{index}" for index in range(len(decoder.layers))], rest


def spread(
    layers: Sequence[str], rest: Sequence[str], sizes: Mapping[str, int], free: Mapping[Device, int]
) -> dict[str, Device]:
    """Consecutive layers on each device, so that each is filled in proportion to its free memory.

    sizes: bytes of each module; free: bytes of each device. What is no layer goes to the first device, where
    the input is and the logits are.
    """
    first, *_ = free
    device_map = dict.fromkeys(rest, first)
    total = sum(sizes.values())
    room = {device: total * bytes_free / sum(free.values()) for device, bytes_free in free.items()}
    room[first] -= sum(sizes[name] for name in rest)
    devices = iter(free)
    device = next(devices)
    for name in layers:
        while room[device] < sizes[name] / 2 and (following := next(devices, None)) is not None:
            device = following
        device_map[name] = device
        room[device] -= sizes[name]
    return device_map


def read_device_map(text: str) -> dict[str, Any]:
    """A JSON object from names of modules to devices: `cuda:1` or its number, `cpu`, `disk`.

    Raises:
        ModelError: something else.
    """
    try:
        device_map = json.loads(text)
    except ValueError as error:
        raise ModelError(f"the device map is neither {AUTO!r} nor a JSON object: {text!r}") from error
    if not isinstance(device_map, dict) or not device_map:
        raise ModelError(f"the device map is not a JSON object of modules and devices: {text!r}")
    for name, device in device_map.items():
        if not isinstance(device, str | int) or isinstance(device, bool):
            raise ModelError(f"the device map puts {name!r} on {device!r}, which is no device")
    return device_map


def _num_bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _check_installed(package: str) -> None:
    if find_spec(package) is None:
        raise ModelError(f"{package} is not installed; pip install 'ahamask[quant]' has it")
