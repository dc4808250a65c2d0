"""The bar of commands that play episodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(what: str, total: float, console: Console, as_json: bool) -> Iterator[Any]:
    """Yields a function (done, words) that moves a bar, or does nothing under `--json`."""
    if as_json:
        yield lambda done, words="": None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, words="")
        yield lambda done, words="": progress.update(task, completed=done, words=words)
        progress.update(task, completed=total)
