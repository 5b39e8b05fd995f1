"""For all tests."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import pytest

with contextlib.suppress(ImportError):  # only some folders need it
    from hypothesis import HealthCheck, settings

    # no property fails because the machine is slow, and every run tries the same examples
    settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def no_plan_cache() -> Iterator[None]:
    """Tests, and the commands they run, neither read nor write the times that the user's runs remember."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACDC_PLAN_CACHE", "0")
        yield


@pytest.fixture
def quiet_references() -> Iterator[None]:
    """Without compiled kernels the references stand in, which is said once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*plain torch reference")
        yield
