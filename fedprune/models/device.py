"""Where to compute."""

import torch


def pick_device(wanted: str) -> torch.device:
    """Return the device to compute on: as configured, or the accelerator if there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
