"""The heuristics that there are, by problem."""

from __future__ import annotations

import importlib

from envs.registry import PROBLEMS
from trainers.policy import Policy, RandomPolicy


def heuristics(problem: str) -> dict[str, type[Policy]]:
    """Name to heuristic, for one problem."""
    where = None if problem not in PROBLEMS else getattr(PROBLEMS[problem].load(), "HEURISTICS", None)
    return importlib.import_module(where).HEURISTICS if where else {"random": RandomPolicy}
