"""One torch thread, and the options around the support matrix of docs/support.md."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import support_matrix

torch.set_num_threads(1)  # tiny tensors gain nothing from two, and lose much on shared cores


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("support matrix")
    group.addoption("--support-matrix", action="store_true", help="write docs/support.md")
    group.addoption("--support-check", action="store_true", help="compare docs/support.md with it")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--support-matrix") or config.getoption("--support-check"):
        config.pluginmanager.register(support_matrix.SupportMatrix(), "support-matrix")


def pytest_sessionfinish(session: pytest.Session) -> None:
    plugin = session.config.pluginmanager.get_plugin("support-matrix")
    if plugin is None:
        return
    if session.config.getoption("--support-matrix"):
        support_matrix.write(plugin.found)
        return
    wrong = support_matrix.differences(plugin.found, support_matrix.written())
    print("\ndocs/support.md:", "; ".join(wrong) or "current")
    if wrong:
        session.exitstatus = 1
