import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    """Sets the number of torch's threads for the time of a test; 1 to begin with, which suits the sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)
