"""What all tests run with.

One thread: tiny layers are not worth sharing out, and threads that wait for a busy core cost minutes. And modules, which
stay to the end, are not looked through for garbage each time: there are a million objects in them.
"""

import gc
import os

import pytest
import torch

gc.disable()
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/fuzz --cases 10000 [--seed S] [--case NUMBER]`: as many mutated inputs as one has time for.

    Also of tests/comfy/test_strange_inputs.py, which needs a ComfyUI in its process.
    """
    parser.addoption("--cases", type=int, default=50, help="mutated inputs per entry point")
    parser.addoption("--seed", type=int, default=0, help="of the mutations")
    parser.addoption("--case", type=int, default=None, help="only the one of this number")


@pytest.fixture
def numbers(pytestconfig: pytest.Config) -> range:
    """Of the cases to run."""
    one = pytestconfig.getoption("--case")
    return range(pytestconfig.getoption("--cases")) if one is None else range(one, one + 1)


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    seed: int = pytestconfig.getoption("--seed")
    return seed
