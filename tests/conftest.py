"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_plan_cache() -> Iterator[None]:
    """Tests, and the commands they run, neither read nor write the times that the user's runs remember."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACDC_PLAN_CACHE", "0")
        yield
