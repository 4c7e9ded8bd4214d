"""Reports draw no plots in tests that do not look at them."""

from collections.abc import Iterator

import pytest

from recipes.report import report


@pytest.fixture(scope="module", autouse=True)
def undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out what takes two fifths of a tiny run, except in modules that are marked `plots`."""
    with pytest.MonkeyPatch.context() as patched:
        if request.node.get_closest_marker("plots") is None:
            patched.setattr(report, "_write_plots", lambda run, results: [])
        yield
