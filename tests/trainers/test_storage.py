"""Run folders in storage, on a real file system and in a bucket of a real S3 server."""

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from envs.errors import Failure, InputError
from trainers.config import RunConfig, make_run_config
from trainers.learned_policy import load_policy
from trainers.storage import Mirror, Storage, local_copy
from trainers.train import Interrupted, train

SMALL = ["training.num_envs=4", "training.env_steps=240", "training.evaluation_episodes=4", "training.checkpoint_interval=10"]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a bucket of an S3 server on this machine, with {} for a folder in it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials.items():
            patch.setenv(name, value)
        httpx.put(f"http://{address}/bucket").raise_for_status()
        yield f"s3://bucket/{{}}?endpoint_override={address}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture(params=["path", "file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty one, by path and by URIs."""
    if request.param == "s3":
        return Storage(request.getfixturevalue("bucket").format(tmp_path.name))
    return Storage(str(tmp_path / "storage") if request.param == "path" else f"file://{tmp_path}/storage")


def run_folder(folder: Path, checkpoint: str, metrics: str = "one\n") -> Path:
    """What looks like a run folder with one checkpoint."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    state = folder / "checkpoints" / checkpoint / "state"
    state.mkdir(parents=True)
    (state / "weights").write_bytes(b"weights of " + checkpoint.encode())
    (folder / "config.yaml").write_text("name: vdn\n")
    (folder / "metrics.jsonl").write_text(metrics)
    return folder


def test_a_mirror_holds_what_the_folder_does(storage: Storage, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "00000001")
    mirror = Mirror(folder, storage)
    mirror.begin(resume=False)
    mirror.update()
    assert set(storage.list()) == {"config.yaml", "metrics.jsonl", "checkpoints/00000001.tar"}
    run_folder(folder, "00000002", "one\ntwo\n")
    (folder / "checkpoints" / "00000003.tmp").mkdir()
    mirror.finish()
    assert set(storage.list()) == {"config.yaml", "metrics.jsonl", "checkpoints/00000002.tar"}
    other = tmp_path / "other"
    Mirror(other, storage).fetch()
    assert (other / "metrics.jsonl").read_text() == "one\ntwo\n"
    assert (other / "checkpoints/00000002/state/weights").read_bytes() == b"weights of 00000002"
    assert (local_copy(storage.where) / "metrics.jsonl").read_text() == "one\ntwo\n"
    storage.delete_folder("checkpoints")
    assert set(storage.list()) == {"config.yaml", "metrics.jsonl"}


def test_a_newer_local_checkpoint_is_kept(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    folder = run_folder(tmp_path / "run", "00000001")
    Mirror(folder, storage).update()
    run_folder(folder, "00000002", "newer\n")
    Mirror(folder, storage).fetch()
    assert (folder / "metrics.jsonl").read_text() == "newer\n"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["00000002"]


def test_what_is_not_whole_is_not_there(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    Mirror(run_folder(tmp_path / "run", "00000001"), storage).update()
    (tmp_path / "storage/checkpoints/00000009.tar.tmp").write_bytes(b"half")  # as a node that died leaves it
    Mirror(tmp_path / "other", storage).fetch()
    assert [path.name for path in (tmp_path / "other/checkpoints").iterdir()] == ["00000001"]


def test_a_name_that_is_taken_is_not_overwritten(storage: Storage, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "00000001")
    Mirror(folder, storage).update()
    with pytest.raises(InputError, match="exists already: choose another --run, or --resume it"):
        Mirror(folder, storage).begin(resume=False)
    Mirror(folder, storage).begin(resume=True)
    Mirror(folder, storage, replace=True).begin(resume=False)


def test_a_storage_that_is_away_for_a_while(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "storage"
    place.write_text("a file where a folder is to be")
    mirror = Mirror(run_folder(tmp_path / "run", "00000001"), Storage(str(place)), wait_s=20.0)
    mirror.update()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"edgeflock: storage {place}: not written, will be tried again: ")
    threading.Timer(1.5, place.unlink).start()
    mirror.finish()
    assert (place / "checkpoints/00000001.tar").exists()


def test_a_storage_that_does_not_come_back(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("")
    folder = run_folder(tmp_path / "run", "00000001")
    with pytest.raises(Failure, match=rf"not written within 0 s: the run is whole in {folder}: ") as failed:
        Mirror(folder, Storage(str(tmp_path / "storage")), wait_s=0).finish()
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("nowhere://bucket/x", "expected a path, or a URI like s3://BUCKET/FOLDER: Unrecognized filesystem"),
        ("/proc/edgeflock", "storage /proc/edgeflock/run: cannot be written: "),
    ],
)
def test_an_unusable_storage_ends_before_anything_begins(where: str, complaint: str, tmp_path: Path) -> None:
    def begin() -> None:
        mirror = Mirror(tmp_path / "run", Storage(where) / "run")
        train(make_run_config("vdn", "games/two-step"), tmp_path / "run", print, mirror=mirror)

    with pytest.raises(InputError) as refused:
        begin()
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_options_of_a_uri_stay_at_its_end() -> None:
    assert (Storage("s3://bucket/runs?region=us-east-1") / "one" / "two").where == "s3://bucket/runs/one/two?region=us-east-1"


def test_nothing_at_a_uri(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is there"):
        local_copy(f"file://{tmp_path}/none")


def test_a_training_goes_on_from_storage_where_its_node_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit what it would have become, though in between the storage was away and at last the node itself was gone."""
    config = make_run_config("vdn", "games/two-step", overrides=SMALL)
    place = tmp_path / "storage" / "run"
    train(config, tmp_path / "whole", lambda record: None)

    def lose(record: dict[str, float]) -> None:
        if record["iteration"] == 12:  # after the first checkpoint: nobody can write the next one
            place.rename(tmp_path / "away")
            place.write_text("")
        if record["iteration"] == 22:
            place.unlink()
            (tmp_path / "away").rename(place)
            raise Interrupted

    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", lose, mirror=Mirror(tmp_path / "run", Storage(str(place))))
    assert "will be tried again" in capsys.readouterr().err
    assert [path.name for path in (place / "checkpoints").iterdir()] == ["00000010.tar"]
    shutil.rmtree(tmp_path / "run")
    mirror = Mirror(tmp_path / "run", Storage(str(place)))
    mirror.fetch()
    train(RunConfig.load(tmp_path / "run" / "config.yaml"), tmp_path / "run", lambda record: None, resume=True, mirror=mirror)
    lines = (place / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, 31))
    weights = [(folder / "bundle/policy.safetensors").read_bytes() for folder in (tmp_path / "whole", place)]
    assert weights[0] == weights[1]
    assert load_policy(local_copy(f"file://{place}")).spec == load_policy(tmp_path / "whole").spec


def test_a_training_is_kept_in_a_bucket_and_goes_on_from_there(bucket: str, tmp_path: Path) -> None:
    config, place = make_run_config("vdn", "games/two-step", overrides=SMALL), Storage(bucket.format("runs")) / "run"

    def lose(record: dict[str, float]) -> None:
        if record["iteration"] == 12:
            raise Interrupted

    mirror = Mirror(tmp_path / "run", place)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", lose, mirror=mirror)
    shutil.rmtree(tmp_path / "run")
    mirror.fetch()
    train(config, tmp_path / "run", lambda record: None, resume=True, mirror=mirror)
    train(config, tmp_path / "whole", lambda record: None)
    weights = [(folder / "bundle/policy.safetensors").read_bytes() for folder in (tmp_path / "whole", local_copy(place.where))]
    assert weights[0] == weights[1]


def test_a_bucket_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written") as refused:
        Storage(bucket.replace("bucket/", "nothing/").format("x")).check()
    assert "\n" not in str(refused.value)


@given(name=st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}", fullmatch=True), data=st.binary(max_size=100))
def test_what_is_written_is_read(name: str, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("files")
    storage = Storage(str(folder / "storage"))
    storage.write(name, data)
    storage.download(name, folder / "copy")
    assert (folder / "copy").read_bytes() == data
    assert storage.list() == {name: len(data)}
    storage.delete(name)
    assert storage.list() == {}
