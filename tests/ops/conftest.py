import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _threads(_threads):
    """Two threads, whatever the machine has: the larger tensors are then divided between them."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
