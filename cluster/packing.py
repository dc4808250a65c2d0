"""What goes to the cluster with a job: the project's packages, and the user's files that were asked for."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

from envs.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("envs", "models", "trainers", "serve", "cluster")
JOB = ".job"
"""File with the job's name: Ray unpacks equal packages into one folder, and every job is to have its own."""

OUTPUTS = ("--run", "--out", "--storage")
"""Options whose values are written, not read."""


def pack(target: Path, job: str, includes: Iterable[Path] = (), limit: int = GCS_STORAGE_MAX_SIZE) -> set[str]:
    """Writes the zip file of a job's working directory.

    Args:
        includes: Files and folders below the current folder, besides the project's packages.
        limit: Largest zip file that Ray takes, in bytes.

    Returns:
        The names of all files in it.

    Raises:
        InputError: An included path is missing or lies elsewhere, or the whole is too large.
    """
    files = dict(_project_files())
    for path in includes:
        files.update(_included_files(path))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, path in sorted(files.items()):
            archive.write(path, name)
        archive.writestr(JOB, job)
        sizes = {info.filename: info.compress_size for info in archive.infolist()}
    if target.stat().st_size >= limit:
        raise InputError(
            f"the job's files are {_mib(target.stat().st_size)}, more than Ray's limit of {_mib(limit)} (largest: "
            f"{_largest(sizes)}): put them on the cluster's storage, and name them there by an absolute path"
        )
    return set(files)


def check_packed(words: Sequence[str], packed: set[str]) -> None:
    """Complains of relative paths in a command that exist here, but would not on the cluster.

    Raises:
        InputError: There is one.
    """
    folders = {str(parent) for name in packed for parent in Path(name).parents}
    for previous, word in zip(["", *words], words, strict=False):
        if previous in OUTPUTS or word.startswith(tuple(f"{option}=" for option in OUTPUTS)):
            continue
        for part in re.split(r"[=,\[\]{}\"'\s]+", word):
            path = Path(part)
            named = not path.is_absolute() and ("/" in part or "." in part) and path.exists()
            if named and not {str(path), path.as_posix()} & (packed | folders):
                raise InputError(
                    f"{part}: is on this machine and not on the cluster: add --include {part}, or put it on the cluster's "
                    "storage, and name it there by an absolute path or a URI"
                )


def _project_files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), path


def _included_files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.exists():
        raise InputError(f"--include {path}: no such file or folder")
    here = Path.cwd().resolve()
    if not path.resolve().is_relative_to(here):
        raise InputError(f"--include {path}: expected a path below the current folder, as the job finds it by the same name")
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            yield file.resolve().relative_to(here).as_posix(), file


def _largest(sizes: dict[str, int]) -> str:
    """The three largest folders (the first two parts of their names), with their sizes."""
    totals: Counter[str] = Counter()
    for name, size in sizes.items():
        totals["/".join(Path(name).parts[:2])] += size
    return ", ".join(f"{name} {_mib(size)}" for name, size in totals.most_common(3))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
