"""A sweep's folder in storage, for trials that run on nodes without a file system in common."""

from __future__ import annotations

from pathlib import Path

from pyarrow import ArrowException

from envs.errors import Failure, InputError
from trainers.storage import Mirror, Storage, fetch_files, is_checkpoint, one_line, retrying, to_stderr

SWEEP, TRIALS = "sweep.yaml", "trials.json"
TUNE = ".tune"
"""Folder of Tune's own records, which nothing reads after the sweep."""


class SweepKeeper:
    """The driver keeps there what it writes itself, and fetches what trials have kept."""

    def __init__(self, out: Path, storage: Storage, wait_s: float) -> None:
        self.storage = storage
        self._out, self._wait_s = out.absolute(), wait_s

    def begin(self, resume: bool) -> None:
        """Makes sure that the storage can be used, and brings here what an interrupted sweep has kept.

        Raises:
            InputError: It cannot be written, or has another sweep of this name.
        """
        self.storage.check()
        if resume:
            self.fetch()
        elif self.storage.exists(SWEEP):
            raise InputError(f"{self.storage.where}: exists already: choose another --out, or --resume it")

    def update(self) -> None:
        """Writes the sweep and the state of its trials; where that fails it warns, and the next call tries again."""
        try:
            self._write()
        except (OSError, ArrowException) as error:
            to_stderr(f"storage {self.storage.where}: not written, will be tried again: {one_line(error)}")

    def fetch(self, trial: str = "") -> None:
        """Copies here what has been kept (of one trial), but for checkpoints, which only the trial itself needs.

        Raises:
            Failure: The storage could not be read for the whole time.
        """

        def copy() -> None:
            names = [name for name in self.storage.list(trial) if not name.startswith(f"{TUNE}/") and not is_checkpoint(name)]
            fetch_files(self.storage, names, self._out)

        retrying(copy, f"storage {self.storage.where}: not read", "to go on, use --resume", self._wait_s)

    def finish(self) -> None:
        """Writes the end of the sweep, and removes Tune's records.

        Raises:
            Failure: The storage could not be written for the whole time.
        """

        def write() -> None:
            self._write()
            self.storage.delete_folder(TUNE)

        retrying(write, f"storage {self.storage.where}: not written", f"the sweep is in {self._out}", self._wait_s)

    def begin_trial(self, trial: str) -> Mirror:
        """On the node of a trial: the copy of its run folder, of which the last checkpoint is brought here.

        Raises:
            Failure: This node does not reach the storage of the driver.
        """
        if not self.storage.exists(SWEEP):
            raise Failure(f"storage {self.storage.where}: is another place on this node: expected one that all nodes reach")
        mirror = Mirror(self._out / trial, self.storage / trial, self._wait_s, replace=True)
        mirror.fetch()
        return mirror

    def _write(self) -> None:
        for name in (SWEEP, TRIALS):
            self.storage.upload(self._out / name, name)
