"""Quantised weights in a Hugging Face folder: compressed-tensors' form ``pack-quantized``.

Each matrix is four tensors in place of ``weight``: ``weight_packed`` (codes, as many in an int32 as
fit), ``weight_scale``, ``weight_shape`` and, where it is not symmetric, ``weight_zero_point``
(packed along the outputs). ``quantization_config`` is as llm-compressor writes it; transformers
with the package compressed-tensors 0.20 and vLLM read both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedprune.errors import ModelError
from fedprune.models.layout import DecoderLayout, LinearRef
from fedprune.models.loading import LoadedModel
from fedprune.wire.changes import Change
from fedprune.wire.lanes import pack_lanes
from fedprune.wire.quantized import QuantizedWeight

FORMAT = "pack-quantized"
_VERSION = "0.20.1"  # of compressed-tensors, whose form it is
_WEIGHT = ".weight"


def check_quantizable(layout: DecoderLayout, group_size: int | None, symmetric: bool) -> None:
    """Refuse a model whose matrices have no such form, before any work.

    `group_size`: consecutive inputs that share a scale; None: a whole row. `symmetric`: whether the
    groups have no zeros of their own. Raises ModelError for layers that are no ``nn.Linear``,
    experts that transformers would not load, and groups that do not make up a row; names the linear
    and says what to do.
    """
    for block in range(len(layout.blocks)):
        for name, linear in layout.linears(block).items():
            why = _why_not(linear, group_size, symmetric)
            if why:
                raise ModelError(f"`{layout.prefix}.{block}.{name}` cannot be quantised: {why}")


def _why_not(linear: LinearRef, group_size: int | None, symmetric: bool) -> str:
    columns = linear.shape[1]
    if isinstance(linear.module, Conv1D):
        return (
            "it is a Conv1D, and compressed-tensors knows nn.Linear only. Prune it instead "
            "(pruner=sparsegpt pruner.bits=null), or choose a model without Conv1D."
        )
    if linear.transposed or (linear.expert is not None and linear.expert.stacked):
        return (
            "its experts are stored input by output, or one under another, for which "
            "compressed-tensors has no form. "
            "Prune it instead: pruner=sparsegpt pruner.bits=null."
        )
    if linear.expert is not None and not symmetric:
        return "transformers reads no zeros of fused experts' groups. Set pruner.symmetric=true."
    if group_size is not None and columns % group_size:
        return (
            f"`pruner.group_size` {group_size} does not divide its {columns} inputs. Set "
            "`pruner.group_size` to a size that does, or to null for one scale a row."
        )
    return ""


@dataclass
class QuantizedExport:
    """Collects what a folder's configuration says while its blocks are written one by one."""

    model: LoadedModel
    _forms: set[tuple[int, bool]] = field(default_factory=set)
    _groups: set[tuple[int, bool]] = field(default_factory=set)
    _quantized: set[str] = field(default_factory=set)
    _dense: dict[str, None] = field(default_factory=dict)

    def tensors(self, block: int, changes: Mapping[str, Change]) -> dict[str, Tensor]:
        """Return the stored tensors of a block's quantised linears, by their stored names.

        `changes`: linear -> change; others than quantised ones are left alone. Raises ModelError if
        the model has no form for them (see :func:`check_quantizable`), or only some of the experts
        that share a parameter are quantised.
        """
        chosen = {name: one for name, one in changes.items() if isinstance(one, QuantizedWeight)}
        if not chosen:
            return {}
        linears = self.model.layout.linears(block)
        self._check(block, linears, chosen)
        inside = f"{self.model.layout.prefix}.{block}."
        self._quantized |= {f"{inside}{linears[name].name}" for name in chosen}
        parts: dict[str, dict[str, Tensor]] = {"codes": {}, "scales": {}, "zeros": {}}
        for key in dict.fromkeys(linears[name].key for name in chosen):
            together = [name for name in chosen if linears[name].key == key]
            for part, found in parts.items():
                found |= _gathered(f"{inside}{key}", part, linears, together, chosen)
        codes, scales, zeros = (
            self.model.source.stored(found) if found else {} for found in parts.values()
        )
        bits = next(iter(chosen.values())).bits
        stored: dict[str, Tensor] = {}
        for name, whole in codes.items():
            if not name.endswith(_WEIGHT) or whole.ndim != 2 or scales[name].ndim != 2:
                raise ModelError(
                    f"'{name}' cannot be quantised: its checkpoint stores several matrices in one "
                    "tensor, for which compressed-tensors has no form. Prune it instead: "
                    "pruner=sparsegpt pruner.bits=null."
                )
            stored[f"{name}_packed"] = packed(whole, bits)
            stored[f"{name}_scale"] = scales[name].contiguous()
            stored[f"{name}_shape"] = torch.tensor(whole.shape)
            if name in zeros:
                stored[f"{name}_zero_point"] = packed(zeros[name].T, bits).T.contiguous()
        return stored

    def left(self, stored: Mapping[str, Tensor]) -> None:
        """Be told which stored tensors stay as they are."""
        for name, tensor in stored.items():
            if name.endswith(_WEIGHT) and tensor.ndim == 2:
                self._dense[name.removesuffix(_WEIGHT)] = None

    def keys(self, block: int, changes: Mapping[str, Change]) -> set[str]:
        """Return the names inside a block of the parameters that are written quantised."""
        linears = self.model.layout.linears(block)
        return {
            linears[name].key for name, one in changes.items() if isinstance(one, QuantizedWeight)
        }

    @property
    def used(self) -> bool:
        """Whether anything was quantised."""
        return bool(self._quantized)

    def configuration(self) -> dict[str, object]:
        """Return the ``quantization_config`` of all that was written.

        Raises ModelError if linears differ in bits, symmetry or the size of groups.
        """
        if len(self._forms) != 1:
            raise ModelError("All quantised linears must have the same bits and symmetry.")
        bits, symmetric = next(iter(self._forms))
        whole_rows = all(alone for _, alone in self._groups)
        sizes = {size for size, _ in self._groups}
        if not whole_rows and len(sizes) != 1:
            raise ModelError(f"All groups must have one size, got {sorted(sizes)}.")
        weights: dict[str, object] = {
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "channel" if whole_rows else "group",
            "group_size": None if whole_rows else sizes.pop(),
            "dynamic": False,
        }
        found: dict[str, object] = {
            "quant_method": "compressed-tensors",
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": weights,
                    "input_activations": None,
                    "output_activations": None,
                    "format": FORMAT,
                }
            },
            "ignore": self._ignored(),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            "sparsity_config": {},
            "transform_config": {},
            "version": _VERSION,
        }
        if not symmetric:
            # transformers 5.23 has no room for packed zeros unless it unpacks while it loads.
            found["dequantize"] = True
        return found

    def _ignored(self) -> list[str]:
        """Return every matrix that stays as it is: dense linears, routers, the head."""
        decoder = self.model.model
        modules = dict(decoder.named_modules())
        tables = {name for name, module in modules.items() if isinstance(module, nn.Embedding)}
        dense = [
            name
            for name, module in modules.items()
            if isinstance(module, nn.Linear) and name not in self._quantized
        ]
        return [name for name in dict.fromkeys([*dense, *self._dense]) if name not in tables]

    def _check(
        self,
        block: int,
        linears: Mapping[str, LinearRef],
        chosen: Mapping[str, QuantizedWeight],
    ) -> None:
        for name, change in chosen.items():
            groups, symmetric = change.scales.shape[1], change.zeros is None
            self._forms.add((change.bits, symmetric))
            self._groups.add((change.group_size, groups == 1))
            why = _why_not(linears[name], change.group_size, symmetric)
            alone = linears[name].expert is not None and any(
                other.key == linears[name].key and one not in chosen
                for one, other in linears.items()
            )
            if alone:
                why = "the other experts are not. transformers loads all of them so, or none."
            if why:
                where = f"{self.model.layout.prefix}.{block}.{name}"
                raise ModelError(f"`{where}` cannot be quantised: {why}")


def _gathered(
    key: str,
    part: str,
    linears: Mapping[str, LinearRef],
    names: Iterable[str],
    chosen: Mapping[str, QuantizedWeight],
) -> dict[str, Tensor]:
    """Return one part of what is quantised of a parameter, shaped as the parameter is."""
    found = [
        (linears[name].expert, getattr(chosen[name], part))
        for name in names
        if getattr(chosen[name], part) is not None
    ]
    if not found:
        return {}
    if found[0][0] is None:
        return {key: found[0][1]}
    ordered = sorted(found, key=lambda one: one[0].index if one[0] else 0)
    return {key: torch.stack([tensor for _, tensor in ordered])}


def packed(codes: Tensor, bits: int) -> Tensor:
    """Return codes packed row by row, the first in the lowest bits of an int32.

    `codes`: int8, shape (rows, columns), on the CPU, from ``-2**(bits-1)``. Returns int32, shape
    (rows, ceil(columns * bits / 32)); unused bits are zero.
    """
    rows, columns = codes.shape
    lanes = 32 // bits
    padded: NDArray[np.uint8] = np.zeros((rows, -(-columns // lanes) * lanes), dtype=np.uint8)
    padded[:, :columns] = codes.numpy().astype(np.int16) + (1 << bits - 1)
    words = pack_lanes(padded.reshape(-1), bits).view("<u4").astype(np.uint32).view(np.int32)
    return torch.from_numpy(words.reshape(rows, -1))
