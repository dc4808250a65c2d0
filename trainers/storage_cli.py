"""What commands share that read run folders from storage, or keep there what they write."""

from __future__ import annotations

from pathlib import Path

import click

JOB_STORAGE = "EDGEFLOCK_JOB_STORAGE"
"""Environment variable of a submitted job: where it keeps what it writes if neither user nor cluster have named a storage."""

STORAGE = click.option(
    "--storage",
    envvar=["EDGEFLOCK_STORAGE", JOB_STORAGE],
    metavar="PATH|URI",
    help="Keep a copy of what is written there, in a folder of the same name: s3://BUCKET/FOLDER or a path that nodes share "
    "[env: EDGEFLOCK_STORAGE].",
)
STORAGE_WAIT = click.option(
    "--storage-wait",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="Seconds that the end waits for a storage that cannot be written.",
)
RESUME_OR_START = click.option(
    "--resume-or-start", is_flag=True, help="Resume what has begun, else begin: for whoever starts the command again and again."
)


def keep_results(folder: Path, storage: str | None) -> None:
    """Copies the folder into the storage, if there is one.

    Raises:
        InputError: There is no such storage.
        Failure: It could not be written for five minutes.
    """
    if storage is not None:
        from trainers.storage import Storage, keep

        keep(folder, Storage(storage))
