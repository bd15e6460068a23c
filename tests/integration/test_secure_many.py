"""Under masks with more clients: the same bytes, and what a client sends for them."""

import pytest

from fedprune.config import config_from_overrides
from fedprune.methods.masked import MaskedExchange
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import get_method
from fedprune.models.export import SIDECAR
from tests.support.jobs import job, opt_folder

METHODS = {
    "fedstats": ["strategy=fedstats"],
    "fedprllm": ["strategy=fedprllm"],
    "fedspallm": ["strategy=fedspallm", "pruner=sparsegpt", "pruner.damping=0.1"],
    "fedhessian": ["strategy=fedhessian", "pruner=sparsegpt", "strategy.moments=nystrom"],
}
SECURE = ("privacy.secure=true", "strategy.min_clients=3")
DATA = ("data.partition=iid", "privacy.first_input=own", "pruner.num_calibration_samples=1")


@pytest.mark.parametrize(
    ("name", "clients"),
    [
        ("fedstats", 8),
        ("fedprllm", 8),
        *(pytest.param(name, 64, marks=pytest.mark.slow) for name in METHODS),
        *(pytest.param(name, 8, marks=pytest.mark.slow) for name in ("fedspallm", "fedhessian")),
    ],
)
def test_masks_are_those_of_a_plain_run_byte_for_byte(tmp_path, name, clients):
    model = f"model={opt_folder(tmp_path / 'opt')}"
    for run, more in (("plain", ()), ("secure", SECURE)):
        job(tmp_path / run, model, *DATA, *METHODS[name], *more, clients=clients)
    masks = [(tmp_path / run / "model" / SIDECAR).read_bytes() for run in ("plain", "secure")]
    assert masks[0] == masks[1]


LLAMA_7B = {
    **{f"self_attn.{name}_proj": (4096, 4096) for name in "qkvo"},
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}
INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def test_fedstats_of_a_7b_model_sends_at_most_four_times_the_bytes_of_a_plain_run():
    config = config_from_overrides(["strategy=fedstats"])
    model = PublicModel((LLAMA_7B,) * 32, "", "", "", None, (INPUTS,) * 32)
    masked = MaskedExchange(get_method("fedstats").exchange(config), 64)
    sent = sum(masked.most_bytes(model, block) for block in range(32))
    assert 11.9e6 < sent < 12.1e6
    assert sent < 4 * 3.4e6
