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


LONGEST = ("tests/conformance/test_isa_levels.py", "tests/triton/", "tests/emulator/")
APART = LONGEST[:2]  # tests of minutes, each a process of its own


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of processes that test side by side (pytest-xdist) none is left with the longest tests; a file stays together."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if not item.nodeid.startswith(APART):
                item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


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
