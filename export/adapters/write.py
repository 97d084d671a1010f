"""LoRA adapters as files that a runtime applies to an opened base model and removes again.

`merge.plan_edits` reads the PEFT folder and computes each layer's scaling, so an adapter file and a merge agree by
construction; `adapters.proof` checks it. The scaling is multiplied into the factor B, because llama.cpp has one alpha for
all layers and onnxruntime none.
Formats: `convert_lora_to_gguf.py` of llama.cpp; `onnxruntime/lora/adapter_format/adapter_schema.fbs` of onnxruntime.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError, UnsupportedError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.export.weights import merge
from edgekit.export.weights.folder import read_json
from edgekit.export.weights.safetensors_io import Weights
from edgekit.models.source import BASE_DIGEST, MERGED, PROVENANCE, read_config

STAGE = "export.adapter"


@dataclass(frozen=True)
class LowRank:
    """The change of one weight `(out, in)`: `scaling * b @ a`, with `a (r, in)` and `b (out, r)`, float32."""

    name: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scaling: float

    @property
    def rank(self) -> int:
        """r, the rows of `a`."""
        return len(self.a)


def base_digest(base: Path) -> str:
    """The SHA-256 of the model that the folder `base` was made from, which its exported files carry too.

    Raises `ConfigError` for a folder without this digest, and for one with an adapter merged in.
    """
    origin = read_json(base / PROVENANCE) if (base / PROVENANCE).is_file() else {}
    digest = origin.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(
            f"{base} has no sha256 in {PROVENANCE}, so the adapter cannot be bound to it. Nothing was written.",
            "Name the base model itself; edgekit imports it and records its digest.",
        )
    if origin.get(MERGED):
        raise ConfigError(
            f"{base} already has an adapter merged into its weights. Nothing was written.",
            "Name the plain base model that the adapter was tuned on.",
        )
    return digest


def read_adapter(base: Path, adapter: Path) -> list[LowRank]:
    """The layers that the PEFT LoRA folder `adapter` changes in `base`, in the order of their names.

    Raises `UnsupportedError` for an adapter that does more than add low-rank products to linear layers of the
    decoder, and all that `merge.plan_edits` raises.
    """
    layers = []
    for name, edits in sorted(merge.plan_edits(base, Weights(base).shapes, adapter).items()):
        for edit in edits:
            if name.split(".")[-2] in merge.EMBEDDINGS:
                raise _refusal(adapter, f"changes {name}")
            if not isinstance(edit, partial) or edit.func is not merge._add_low_rank:
                raise _refusal(
                    adapter, f"stores {name} whole or as a bias (modules_to_save, bias or lora_bias)"
                )
            a, b, scaling, magnitude, _ = edit.args
            if magnitude is not None:
                raise _refusal(adapter, f"is a DoRA adapter ({name} has a magnitude)")
            layers.append(LowRank(name, a.float().numpy(), b.float().numpy(), scaling))
    return layers


def _refusal(adapter: Path, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{adapter} {what}, which an adapter file cannot hold. Nothing was written.",
        "Merge it into the base instead: edgekit merge BASE ADAPTER.",
    )


def to_gguf(base: Path, adapter: Path, out: Path, emit: Emit = ignore) -> None:
    """Write the PEFT LoRA folder `adapter` of the Hugging Face folder `base` as llama.cpp's GGUF adapter `out`.

    The file is bound to the base: it carries the base's digest as `edgekit.base_sha256`. Equal inputs give equal
    bytes. Raises as `read_adapter` and `base_digest`, and `UnsupportedError` for a base that GGUF cannot hold.
    """
    import gguf

    from edgekit.export.gguf import families

    raw = read_config(base)
    if fault := next(families.faults(raw), ""):
        raise UnsupportedError(f"{fault} No adapter was written.", "Merge it and export to another format.")
    config, family = families.typed(raw), families.FAMILIES[families.architecture(raw)]
    digest, layers = base_digest(base), read_adapter(base, adapter)
    # llama.cpp scales by alpha / rank and reads an alpha of 0 as 1. Any difference from a common alpha goes into b.
    alpha = layers[0].scaling * layers[0].rank or 1.0
    names = families.name_map(config, family)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[family.arch])
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_string(BASE_DIGEST, digest)
        for layer in layers:
            name = names.get_name(layer.name, try_suffixes=(".weight",))
            b = families.to_gguf(
                layer.name, layer.b, config, family
            )  # rows of q and k in the order of the base's file
            b = b * np.float32(layer.scaling * layer.rank / alpha)
            writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(layer.a))
            writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except BaseException:
        writer.close()
        out.unlink(missing_ok=True)
        raise
    writer.close()
    emit(Progress(STAGE, len(layers), len(layers), "layers"))


def to_onnx(base: Path, adapter: Path, out: Path, emit: Emit = ignore) -> None:
    """Write the PEFT LoRA folder `adapter` of the Hugging Face folder `base` as onnxruntime's adapter file `out`.

    It fits the folders that `onnx.slots.open_slots` makes from an export of `base`, at any precision, and is bound to
    the base by a parameter `edgekit.base_sha256` of 32 bytes. Raises as `read_adapter` and `base_digest`.
    """
    import onnxruntime

    digest = np.frombuffer(bytes.fromhex(base_digest(base)), np.uint8)
    layers = read_adapter(base, adapter)
    parameters: dict[str, NDArray[Any]] = {BASE_DIGEST: digest}
    for layer in layers:
        parameters.update(_slots(layer))
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in parameters.items()}
    )
    file.export_adapter(str(out.absolute()))
    emit(Progress(STAGE, len(layers), len(layers), "layers"))


def _slots(layer: LowRank) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The factors by which the layer's input is multiplied: `(in, r)`, then `(r, out)` with the scaling included."""
    a_name, b_name = slot_names(layer.name)
    yield a_name, np.ascontiguousarray(layer.a.T)
    yield b_name, np.ascontiguousarray(layer.b.T) * np.float32(layer.scaling)


def slot_names(weight: str) -> tuple[str, str]:
    """The ONNX names of the two factors of the weight called `weight`, which are PEFT's names."""
    module = weight.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"
