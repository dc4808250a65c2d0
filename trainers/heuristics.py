"""What problems bring along for comparisons: their heuristics, and what a comparison shows of them besides metrics."""

from __future__ import annotations

import importlib
from typing import Any

from envs.registry import PROBLEMS, Scenario
from trainers.policy import Policy, RandomPolicy


def heuristics(problem: str) -> dict[str, type[Policy]]:
    """Name to heuristic, for one problem."""
    where = None if problem not in PROBLEMS else getattr(PROBLEMS[problem].load(), "HEURISTICS", None)
    return importlib.import_module(where).HEURISTICS if where else {"random": RandomPolicy}


def problem_report(scenario: Scenario) -> Any:
    """The module of what a comparison adds for the scenario's problem (`envs.registry.Problem`), or None."""
    where = None if scenario.problem not in PROBLEMS else getattr(PROBLEMS[scenario.problem].load(), "REPORT", None)
    return importlib.import_module(where) if where else None
