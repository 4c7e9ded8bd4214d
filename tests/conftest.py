"""Tests on all cores, one torch thread each, and the options around docs/support.md."""

import functools
import gc
import os
import sys
from pathlib import Path

import jinja2
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import support_matrix

# Read when torch is imported. Tiny tensors gain nothing from two threads, and lose on shared cores.
os.environ["OMP_NUM_THREADS"] = "1"
# PEFT compiles its model card's template at every save, which takes longer than all the rest of it.
jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Whole folders run on all cores; files and single tests in this process, as with `-n 0`.

    A hook instead of `addopts`, which fail where pytest-xdist is not installed.
    """
    xdist = config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput")
    if xdist and all(Path(argument).is_dir() for argument in config.args):
        chosen = config.option.numprocesses is not None or config.option.dist != "no"
        if not chosen and not config.option.collectonly:
            config.option.numprocesses = "auto"
            config.option.maxprocesses = config.option.maxprocesses or 8  # each imports torch
            config.option.dist = "worksteal"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("support matrix")
    group.addoption("--support-matrix", action="store_true", help="write docs/support.md")
    group.addoption("--support-check", action="store_true", help="compare docs/support.md with it")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--support-matrix") or config.getoption("--support-check"):
        config.pluginmanager.register(support_matrix.SupportMatrix(), "support-matrix")


def pytest_itemcollected(item: pytest.Item) -> None:
    item.session.stash.setdefault(support_matrix.COLLECTED, []).append(item)


def pytest_collection_finish() -> None:
    """Modules and collected tests stay to the end: no collection of garbage has to read them."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    plugin = session.config.pluginmanager.get_plugin("support-matrix")
    if plugin is None or hasattr(session.config, "workerinput"):
        return
    if session.config.getoption("--support-matrix"):
        support_matrix.write(plugin.found)
        return
    wrong = support_matrix.differences(plugin.found, support_matrix.written())
    print("\ndocs/support.md:", "; ".join(wrong) or "current")
    if wrong:
        session.exitstatus = 1
