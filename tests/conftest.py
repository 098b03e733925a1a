import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks as small as those of the tests are faster without threads waiting for each other.

    On a busy machine that is the difference between seconds and minutes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
