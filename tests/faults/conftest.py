"""The fault library, built once for the session where every user may read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import library
from tests.lab.enter import SCRATCH


@pytest.fixture(scope="session")
def fault_library() -> Path:
    folder = Path(SCRATCH, "faults")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    return library.build(folder)
