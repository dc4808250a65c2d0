"""The command line that the headroom tables of all problems share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from envs.errors import InputError


def run(
    report: Callable[..., None],
    best: str,
    problem: str,
    arguments: list[str] | None,
    episodes: int = 64,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Prints the tables that are asked for; the exit code, 2 on bad input.

    Args:
        report: Called with a scenario's name, `episodes`, `seed` and the further options.
        best: What stands beside random and the heuristics, for the help.
        episodes: Default of their number.
        more: Further options: name to what `argparse` takes.
    """
    parser = argparse.ArgumentParser(description=f"Random, heuristics and {best} on the same episodes.")
    parser.add_argument("scenario", nargs="+", help=f"{problem}/NAME")
    parser.add_argument("--episodes", type=int, default=episodes)
    parser.add_argument("--seed", type=int, default=0, help="of the list of episodes")
    for name, settings in (more or {}).items():
        parser.add_argument(name, **settings)
    options = vars(parser.parse_args(arguments))
    names = options.pop("scenario")
    torch.set_num_threads(1)
    try:
        for name in names:
            report(name, **options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
