"""`pytest tests/fuzz --cases 10000 [--seed S] [--case NUMBER]`: as many mutated inputs per entry as one has time for."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=300, help="mutated inputs per entry point")
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
