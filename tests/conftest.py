"""Where tests run and what they stand on: see `tests/lab/lab.py` for the fixtures' use.

The test process moves into namespaces of its own before anything else: nothing that a test sends can leave the machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import enter
from tests.lab.hosts import FAMILIES, Wires
from tests.lab.internet import NARROW, Internet
from tests.lab.lab import Caller, Lab, outside
from tests.lab.processes import CALLERS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "network: uses the machine's own network (the real registry)")
    config.addinivalue_line("markers", "case(*ids): the cases of the engine's catalogue that this test shows, as A01")
    config.addinivalue_line("markers", "soak: long; run by `make soak`, not by `make test`")
    where = enter.enter()
    if not where.closed and config.option.basetemp is None:
        config.option.basetemp = f"{enter.SCRATCH}/pytest"


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Fails, with the reason, where this user can't have the lab."""
    if closed := enter.whereabouts().closed:
        pytest.fail(f"{closed}; run the tests as root (sudo make test) or allow user namespaces")


@pytest.fixture(scope="session")
def direct_map(namespaces: None) -> Iterator[Lab]:
    lab = Lab(Wires.direct())
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def routed_map(namespaces: None) -> Iterator[Lab]:
    lab = Lab(Wires.routed())
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def internet_map(namespaces: None) -> Iterator[Internet]:
    lab = Internet()
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def narrow_map(namespaces: None) -> Iterator[Internet]:
    lab = Internet(NARROW)
    yield lab
    lab.close()


@pytest.fixture
def lab(direct_map: Lab) -> Iterator[Lab]:
    """Laptop and server on one wire."""
    yield direct_map
    direct_map.restore()


@pytest.fixture
def routed_lab(routed_map: Lab) -> Iterator[Lab]:
    """Laptop and server with a router between."""
    yield routed_map
    routed_map.restore()


@pytest.fixture
def internet(internet_map: Internet) -> Iterator[Internet]:
    """A server that accepts for every address, and says what arrived."""
    internet_map.restore()
    yield internet_map
    internet_map.restore()


@pytest.fixture
def narrow_internet(narrow_map: Internet) -> Iterator[Internet]:
    """The same behind a router that passes 1280 bytes."""
    narrow_map.restore()
    yield narrow_map
    narrow_map.restore()


@pytest.fixture(params=CALLERS)
def user(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def caller(lab: Lab, user: str) -> Caller:
    """Each caller in turn, on the laptop of `lab`."""
    return lab.caller(user)


@pytest.fixture
def routed_caller(routed_lab: Lab, user: str) -> Caller:
    """Each caller in turn, on the laptop of `routed_lab`."""
    return routed_lab.caller(user)


@pytest.fixture(scope="session")
def machine_network(namespaces: None) -> None:
    """Skips where there is no way back to the machine's own network: a user namespace is a one-way street."""
    if enter.whereabouts().machine_net < 0:
        pytest.skip("needs root to return to the machine's network: sudo make test")


@pytest.fixture
def outside_caller(machine_network: None, user: str) -> Caller:
    """Each caller in turn, on the machine's own network; only for tests marked `network`."""
    return outside(user)


@pytest.fixture(params=FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    """4 and 6."""
    return int(request.param)
