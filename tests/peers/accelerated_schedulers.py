"""A pytest plugin for diffusers' own tests: every scheduler that they construct is accelerated.

The outcome of each test, and how many schedulers of each class were accelerated or refused, are written to
the file that GMFAST_OUTCOMES names. With GMFAST_ACCELERATE=0 nothing is accelerated.
"""

import collections
import functools
import json
import os
from pathlib import Path

from diffusers import schedulers

from gmfast.integrations.diffusers import accelerate
from gmfast.integrations.diffusers.install import RULES

outcomes, accelerated, refused = {}, collections.Counter(), collections.Counter()


def _accelerate_when_constructed(cls):
    original = cls.__init__

    @functools.wraps(original)
    def construct(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if type(self) is cls:
            try:
                accelerate(self)
                accelerated[cls.__name__] += 1
            except ValueError:
                refused[cls.__name__] += 1

    cls.__init__ = construct


def pytest_configure(config):
    """Patch the classes that have a rule."""
    if os.environ.get("GMFAST_ACCELERATE") != "0":
        for name in RULES:
            if hasattr(schedulers, name):
                _accelerate_when_constructed(getattr(schedulers, name))


def pytest_runtest_logreport(report):
    """Keep the worst outcome of a test's phases."""
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish():
    """Write what was found."""
    found = {"outcomes": outcomes, "accelerated": accelerated, "refused": refused}
    Path(os.environ["GMFAST_OUTCOMES"]).write_text(json.dumps(found))
