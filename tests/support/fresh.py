"""Models loaded by plain transformers in a process that never imports this package."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

TOKENS = torch.arange(3, 19)[None]
"""What models are given there."""

_LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(info.values()), (folder, info)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 19)[None]).logits
    found[folder] = logits, str(model.dtype)
assert not any(name.partition(".")[0] == "fedprune" for name in sys.modules)
torch.save(found, sys.argv[1])
"""


def in_a_fresh_process(folders: Sequence[Path], tmp_path: Path) -> dict[str, tuple[Tensor, str]]:
    """Return folder -> logits of :data:`TOKENS` and dtype; all tensors must find their place."""
    out = tmp_path / "logits.pt"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", _LOAD, str(out), *map(str, folders)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, tuple[Tensor, str]] = torch.load(out)
    return found
