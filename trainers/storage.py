"""Where run folders outlive the machine that trains: a path that nodes share, or a URI (`s3://`, `gs://`, `file://`).

A training works in a local run folder. Its `Mirror` copies there what has changed, after every checkpoint and at the end. Every
file in storage is whole or absent (written under another name, then moved); a checkpoint is one file, `checkpoints/NAME.tar`.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import ArrowException, fs

from envs.errors import Failure, InputError

CONFIG, CHECKPOINTS = "config.yaml", "checkpoints"
"""Of a run folder."""

WAIT_S = 300.0
"""How long the end of a training waits for a storage that cannot be written, unless told otherwise."""

UNWRITTEN = ".tmp"
"""End of the names of what is not whole yet, in run folders and in storage."""


def to_stderr(line: str) -> None:
    """Warns on a line of its own."""
    print(f"edgeflock: {line}", file=sys.stderr, flush=True)


def is_uri(where: str) -> bool:
    """Whether this names a place by a scheme, and not by a local path."""
    return "://" in where


class Storage:
    """A folder of a file system that pyarrow knows.

    Attributes:
        where: How users name it.
        files, root: The file system, and the path of the storage in it.

    Raises:
        InputError: No file system is known for it.
    """

    def __init__(self, where: str) -> None:
        self.where = where.rstrip("/")
        try:
            local = where if is_uri(where) else str(Path(where).expanduser().absolute())
            self.files, self.root = fs.FileSystem.from_uri(local)
        except (OSError, ValueError, ArrowException) as error:
            raise InputError(f"storage {where}: expected a path, or a URI like s3://BUCKET/FOLDER: {one_line(error)}") from None

    def __truediv__(self, name: str) -> Storage:
        place, mark, options = self.where.partition("?")  # s3://BUCKET/FOLDER?region=…
        return Storage(f"{place}/{name}{mark}{options}")

    def check(self) -> None:
        """Writes a small file and removes it.

        Raises:
            InputError: That is not possible.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"edgeflock")
            self.files.delete_file(self._path(probe))
        except (OSError, ArrowException) as error:
            raise InputError(f"storage {self.where}: cannot be written: {one_line(error)}") from None

    def list(self, folder: str = "") -> dict[str, int]:
        """Files below a folder, relative to the storage, with their sizes in bytes; of unwritten ones nothing."""
        chosen = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        found = [info for info in self.files.get_file_info(chosen) if info.type == fs.FileType.File]
        names = {str(PurePosixPath(info.path).relative_to(self.root)): info.size for info in found}
        return {name: size for name, size in names.items() if not name.endswith(UNWRITTEN) and "/.probe-" not in f"/{name}"}

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self.files.get_file_info(self._path(name)).type == fs.FileType.File

    def write(self, name: str, data: bytes) -> None:
        """Writes a file that readers see whole or not at all."""
        self._put(name, lambda stream: stream.write(data))

    def upload(self, source: Path, name: str) -> None:
        """Copies a file, or a folder as one tar file."""

        def put(stream: Any) -> None:
            if source.is_dir():
                with tarfile.open(fileobj=stream, mode="w|") as tar:
                    tar.add(source, arcname=source.name)
            else:
                with source.open("rb") as data:
                    while block := data.read(2**22):
                        stream.write(block)

        self._put(name, put)

    def download(self, name: str, target: Path) -> None:
        """Copies a file here."""
        target.parent.mkdir(parents=True, exist_ok=True)
        unwritten = target.with_name(target.name + UNWRITTEN)
        with self.files.open_input_stream(self._path(name)) as stream, unwritten.open("wb") as copy:
            while block := stream.read(2**22):
                copy.write(block)
        unwritten.replace(target)

    def unpack(self, name: str, target: Path) -> None:
        """Makes the folder `target` from a tar file that `upload` wrote of a folder of this name."""
        with tempfile.TemporaryDirectory(dir=target.parent, suffix=UNWRITTEN) as folder:
            with self.files.open_input_stream(self._path(name)) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(folder, filter="data")
            (Path(folder) / target.name).replace(target)

    def delete(self, name: str) -> None:
        """Removes a file."""
        self.files.delete_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """Removes a folder, if it is there."""
        if self.files.get_file_info(self._path(name)).type == fs.FileType.Directory:
            self.files.delete_dir(self._path(name))

    def _put(self, name: str, put: Callable[[Any], Any]) -> None:
        path = self._path(name)
        self.files.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with self.files.open_output_stream(path + UNWRITTEN) as stream:
            put(stream)
        self.files.move(path + UNWRITTEN, path)

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self.root) / name)


class Mirror:
    """Keeps the copy of a run folder in storage up to date."""

    def __init__(self, folder: Path, storage: Storage, wait_s: float = WAIT_S, replace: bool = False) -> None:
        """
        Args:
            wait_s: How long `finish` waits for a storage that cannot be written.
            replace: What the storage has of this name may be overwritten.
        """
        self._folder, self.storage, self._wait_s, self._replace = folder, storage, wait_s, replace
        self._copied: dict[str, tuple[int, int]] = {}

    def begin(self, resume: bool) -> None:
        """Makes sure that the storage can be used.

        Raises:
            InputError: It cannot be written, or has another run under this name.
        """
        self.storage.check()
        if not (resume or self._replace) and self.storage.exists(CONFIG):
            raise InputError(f"{self.storage.where}: exists already: choose another --run, or --resume it")

    def update(self) -> None:
        """Copies what has changed; where that fails it warns, and the next call tries again."""
        try:
            self._copy()
        except (OSError, ArrowException) as error:
            to_stderr(f"storage {self.storage.where}: not written, will be tried again: {one_line(error)}")

    def finish(self) -> None:
        """Copies what has changed, and waits for the storage if it must.

        Raises:
            Failure: The storage could not be written for the whole time.
        """
        retrying(self._copy, f"storage {self.storage.where}: not written", f"the run is whole in {self._folder}", self._wait_s)

    def fetch(self) -> None:
        """Brings here what the local run folder lacks, where the storage has a newer checkpoint than it.

        Raises:
            InputError: The storage cannot be read.
        """
        try:
            stored = self.storage.list()
            if CONFIG not in stored:
                return
            newest = max((name for name in stored if is_checkpoint(name)), default=None)
            local = max((path.name for path in (self._folder / CHECKPOINTS).glob("*") if path.suffix != UNWRITTEN), default="")
            if (self._folder / CONFIG).exists() and (newest is None or PurePosixPath(newest).stem <= local):
                return
            fetch_files(self.storage, (name for name in stored if not is_checkpoint(name)), self._folder)
            if newest is not None:
                (self._folder / CHECKPOINTS).mkdir(exist_ok=True)
                self.storage.unpack(newest, self._folder / CHECKPOINTS / PurePosixPath(newest).stem)
        except (OSError, ArrowException) as error:
            raise InputError(f"storage {self.storage.where}: cannot be read: {one_line(error)}") from None

    def _copy(self) -> None:
        here = self._here()
        for name, source in here.items():
            status = source.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if self._copied.get(name) != stamp:
                self.storage.upload(source, name)
                self._copied[name] = stamp
        for old in self.storage.list(CHECKPOINTS):
            if old not in here:
                self.storage.delete(old)

    def _here(self) -> dict[str, Path]:
        """Name in storage to what is to be copied there, checkpoints last: what belongs to them is there before them."""
        paths = [path for path in sorted(self._folder.rglob("*")) if path.suffix != UNWRITTEN]
        names = {path.relative_to(self._folder).as_posix(): path for path in paths if path.is_file()}
        files = {name: path for name, path in names.items() if not name.startswith(f"{CHECKPOINTS}/")}
        folders = [path for path in sorted((self._folder / CHECKPOINTS).glob("*")) if path.suffix != UNWRITTEN]
        return {**files, **{f"{CHECKPOINTS}/{path.name}.tar": path for path in folders}}


def is_checkpoint(name: str) -> bool:
    """Whether a file in storage is one."""
    return name.split("/")[-2:-1] == [CHECKPOINTS]


def retrying(action: Callable[[], None], what: str, otherwise: str, wait_s: float) -> None:
    """Does it again and again, at growing intervals, until it succeeds or the time is over.

    Raises:
        Failure: `what` never succeeded; the message ends with `otherwise`.
    """
    ends, pause = time.monotonic() + wait_s, 1.0
    while True:
        try:
            return action()
        except (OSError, ArrowException) as error:
            if time.monotonic() + pause > ends:
                raise Failure(f"{what} within {wait_s:g} s: {otherwise}: {one_line(error)}") from None
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def keep(folder: Path, storage: Storage, wait_s: float = WAIT_S) -> None:
    """Copies a folder of results into the storage, under its name.

    Raises:
        Failure: The storage could not be written for the whole time.
    """
    Mirror(folder, storage / folder.absolute().name, wait_s).finish()


def fetch_files(storage: Storage, names: Iterable[str], folder: Path) -> None:
    """Copies files of a storage into a local folder."""
    for name in names:
        storage.download(name, folder / name)


def local_copy(where: str) -> Path:
    """A local path as it is; of a URI, a copy without its checkpoints in a temporary folder that lives as long as the process.

    Raises:
        InputError: There is nothing at the URI, or it cannot be read.
    """
    return _download(where) if is_uri(where) else Path(where).expanduser()


@cache
def _download(where: str) -> Path:
    storage = Storage(where)
    folder = Path(_copies().name) / uuid.uuid4().hex / PurePosixPath(where.partition("?")[0]).name
    try:
        names = [name for name in storage.list() if not is_checkpoint(name)]
        fetch_files(storage, names, folder)
    except (OSError, ArrowException) as error:
        raise InputError(f"{where}: cannot be read: {one_line(error)}") from None
    if not names:
        raise InputError(f"{where}: nothing is there")
    return folder


@cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgeflock-")


def one_line(error: BaseException) -> str:
    """The first line of what it says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
