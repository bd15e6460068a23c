"""What blocks leave for the next where that is more than hidden states.

Decoders that share keys and values between blocks, or pass chosen indices on, have a state beside
the hidden states. It becomes one tensor of bytes a sample, so that it is kept, spilled and written
down as hidden states are.
"""

import copy
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedprune.errors import ModelError

_FORM = "form"
_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Carried:
    """What the blocks so far left for the next."""

    # what the last of them returned: tensors, plain values, and tuples, lists and mappings of these
    output: object
    # what blocks left in mappings that the model hands them: argument -> key -> value
    written: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def pack(self) -> Tensor:
        """Return it as bytes, uint8 of one dimension.

        Raises ModelError if there is something in it that is neither a tensor nor plain.
        """
        tensors: dict[str, Tensor] = {}
        form = [_encoded(self.output, tensors), _encoded(dict(self.written), tensors)]
        text = torch.frombuffer(bytearray(json.dumps(form).encode()), dtype=torch.uint8)
        return torch.frombuffer(bytearray(save({**tensors, _FORM: text})), dtype=torch.uint8)

    @classmethod
    def unpack(cls, packed: Tensor) -> "Carried":
        """Return what :meth:`pack` made bytes of; ModelError if these are others."""
        try:
            tensors = load(packed.cpu().numpy().tobytes())
            output, written = json.loads(bytes(tensors[_FORM].tolist()))
            found = _decoded(written, tensors)
            if not isinstance(found, dict) or not all(isinstance(e, dict) for e in found.values()):
                raise ValueError("no form of what blocks wrote.")
            return cls(_decoded(output, tensors), found)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelError(
                "Saved states are not those of this decoder. Start the run again from block 0."
            ) from error


def _encoded(value: object, tensors: dict[str, Tensor]) -> object:
    """Return a value as JSON: the tensors in it by their number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, _PLAIN):
        return {"value": value}
    if isinstance(value, tuple | list):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(entry, tensors) for entry in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _encoded(entry, tensors) for key, entry in value.items()}}
    raise ModelError(
        f"A decoder block returned a {type(value).__name__}, expected tensors, plain values, and "
        "tuples, lists and mappings of them. Choose another model."
    )


def _decoded(form: object, tensors: Mapping[str, Tensor]) -> object:
    if not isinstance(form, dict) or len(form) != 1:
        raise ValueError("no form of a value.")
    ((kind, inside),) = form.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "value":
        return inside
    if kind == "mapping":
        return {key: _decoded(entry, tensors) for key, entry in inside.items()}
    made = [_decoded(entry, tensors) for entry in inside]
    return made if kind == "list" else tuple(made)


def entries(call: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return what is in the mappings among arguments: argument -> key -> value."""
    return {name: dict(value) for name, value in call.items() if isinstance(value, MutableMapping)}


def put_back(call: Mapping[str, object], written: Mapping[str, Mapping[str, object]]) -> None:
    """Leave in the mappings among arguments what blocks have left in them before."""
    for name, found in written.items():
        target = call.get(name)
        if isinstance(target, MutableMapping):
            target.update(copy.copy(found))


def newly_written(
    before: Mapping[str, Mapping[str, object]], after: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """Return the entries of mappings that a block has replaced or added."""
    found = {
        name: {
            key: value
            for key, value in now.items()
            if key not in before.get(name, {}) or before[name][key] is not value
        }
        for name, now in after.items()
    }
    return {name: changed for name, changed in found.items() if changed}


def merged(
    one: Mapping[str, Mapping[str, object]], other: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """Return the entries of both, the later ones where both have one."""
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in (*one, *other)}
