import torch

from client_app.node import free_bytes, megaflops, memory_bytes, use_threads


def test_a_processor_has_memory_and_speed():
    assert 0 < free_bytes("cpu") < memory_bytes("cpu")
    assert megaflops("cpu") > 10
    assert megaflops("") == 0


def test_an_operator_may_limit_the_threads():
    before = torch.get_num_threads()
    try:
        use_threads(before + 1)
        assert torch.get_num_threads() == before + 1
        use_threads(None)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
