"""Where to compute."""

import torch

from fedprune.errors import ConfigError


def pick_device(wanted: str) -> torch.device:
    """Return the device to compute on: as configured, or the accelerator if there is one.

    Raises
    ------
    ConfigError
        If the machine has no such accelerator.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, count = torch.device(wanted), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"`pruner.device` (a node's own: `device`) must be a device of this machine, which has "
            f"{count} for CUDA, got '{wanted}'. Choose 'auto' or 'cpu'."
        )
    return device
