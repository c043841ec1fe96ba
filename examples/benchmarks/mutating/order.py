"""A plugin of pytest: a mutant meets its quickest tests first, and no more than it may cost.

How long each test takes, mutmut has measured. The variable `SECONDS` in the environment is the
limit of tests for one mutant; the quickest test always runs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

SECONDS: Final = "MUTANT_SECONDS"

MEASURED: Final = Path("mutmut-stats.json")
"""Beside the folder of tests, where mutmut starts pytest."""


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Sort, and leave out what is beyond the limit, where a mutant is tried."""
    if "__mutmut_" not in os.environ.get("MUTANT_UNDER_TEST", ""):
        return  # the runs that measure the tests, and those that must pass
    seconds = json.loads(MEASURED.read_text("utf-8"))["duration_by_test"]
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
    spent, count = 0.0, 0
    for item in items:
        spent += seconds.get(item.nodeid, 0.0)
        if count and spent > float(os.environ[SECONDS]):
            break
        count += 1
    config.hook.pytest_deselected(items=items[count:])
    del items[count:]
    forget()


def forget() -> None:
    """Empty the package's caches, which the unmutated code has filled before the fork."""
    modules = [module for name, module in sys.modules.items() if name.startswith("lightning_root")]
    for value in [value for module in modules for value in vars(module).values()]:
        if hasattr(value, "cache_clear"):
            value.cache_clear()
