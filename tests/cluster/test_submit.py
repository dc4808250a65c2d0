"""Jobs on a real cluster with a token, and what goes wrong without one."""

import http.server
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import ray

from cluster.jobs import connect, explained, follow
from envs.errors import Failure, InputError
from tests.cluster.head import BIN, ROOT, Head
from tests.ports import free_port
from trainers.cli import main
from trainers.config import RunConfig

TRAIN = ["train", "vdn", "--scenario", "games/two-step", "--num-envs", "4", "--set", "training.checkpoint_interval=10"]


@pytest.fixture(scope="module")
def trained(head: Head, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A training whose runner is on another node than its driver, submitted from a folder of no meaning."""
    command = ["submit", "--name", "trained", "--", *TRAIN, "--env-steps", "200", "--runners", "1", "--run", "runs/one"]
    return head.edgeflock(*command, cwd=tmp_path_factory.mktemp("user"))


def test_a_training_ends_with_a_run_folder_and_exit_code_0(head: Head, trained: subprocess.CompletedProcess[str]) -> None:
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert trained.stderr.splitlines() == ["submitted: trained"]
    assert "kept: ~/edgeflock/one" in trained.stdout
    kept = head.home / "edgeflock" / "one"
    assert RunConfig.load(kept / "config.yaml").training.runners == 1
    assert json.loads((kept / "metrics.jsonl").read_text().splitlines()[-1])["env_steps"] == 200
    assert (kept / "bundle" / "manifest.json").exists()


def test_jobs_are_listed_with_their_logs(head: Head, trained: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    listed = head.edgeflock("jobs", cwd=tmp_path)
    assert re.search(r"trained +SUCCEEDED", listed.stdout)
    assert "kept: ~/edgeflock/one" in head.edgeflock("jobs", "logs", "trained", cwd=tmp_path).stdout
    again = head.edgeflock("submit", "--name", "trained", "--", *TRAIN, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2,
        "edgeflock: --name trained: a job of this name is there already: choose another\n",
    )
    none = head.edgeflock("jobs", "stop", "none", cwd=tmp_path)
    assert none.returncode == 2
    assert "no job none" in none.stderr


def test_a_failing_job_says_why(head: Head, trained: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    failed = head.edgeflock("submit", "--name", "failed", "--", *TRAIN, "--run", "runs/one", cwd=tmp_path)
    assert failed.returncode == 2  # the job's own
    reason = "~/edgeflock/one: exists already: choose another --run, or --resume it"
    assert failed.stderr.splitlines()[-1] == f"edgeflock: failed failed: {reason}"


def test_a_job_that_was_stopped_is_resumed(head: Head, tmp_path: Path) -> None:
    long = ["--env-steps", "1000000", "--run", "runs/long"]
    assert head.edgeflock("submit", "--no-wait", "--name", "long", "--", *TRAIN, *long, cwd=tmp_path).returncode == 0
    checkpoints = head.home / "edgeflock" / "long" / "checkpoints"
    ends = time.monotonic() + 120
    while not list(checkpoints.glob("*.tar")):
        assert time.monotonic() < ends
        time.sleep(0.2)
    assert "told to stop" in head.edgeflock("jobs", "stop", "long", cwd=tmp_path).stdout
    stopped = head.edgeflock("jobs", "logs", "long", "--follow", cwd=tmp_path)
    assert stopped.returncode != 0
    assert "a checkpoint is saved" in stopped.stdout
    before = max(path.stem for path in checkpoints.glob("*.tar"))
    config = RunConfig.load(checkpoints.parent / "config.yaml")
    training = config.training.model_copy(update={"env_steps": 8 * int(before) + 80})
    config.model_copy(update={"training": training}).save(checkpoints.parent / "config.yaml")
    resumed = head.edgeflock("submit", "--", "train", "vdn", "--run", "runs/long", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    records = [json.loads(line) for line in (checkpoints.parent / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == list(range(1, int(before) + 11))


def test_plain_ray_job_submit_packs_the_same(head: Head) -> None:
    command = [BIN / "ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--"]
    code = "import os; print(sorted({p.split(os.sep)[1] for p, _, files in os.walk('.') if files and p != '.'}))"
    environment = {**head.environment, "RAY_AUTH_TOKEN_PATH": str(head.token_file)}
    entry = ["sh", "-c", f'python -c "{code}" && python -m trainers list']
    done = subprocess.run([*command, *entry], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "['cluster', 'envs', 'models', 'serve', 'trainers']" in done.stdout
    assert "vehicular/v50-e6" in done.stdout


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["train", "idmax", "--scenario", "games/two-step"], "unknown algorithm 'idmax'"),
        (["train", "vdn", "--scenario", "games/two-stop"], "unknown scenario 'games/two-stop'"),
        (["train", "vdn", "--scenario", "games/two-step", "--set", "training.env_step=1"], "unknown key 'env_step'"),
        (["train", "vdn", "--scenario", "games/two-step", "--wat"], "No such option"),
        (["sweep", "none"], "none"),
        (["evaluate", "greedy", "--scenario", "games/none"], "unknown scenario 'games/none'"),
        (["serve", "bundle"], "expected one of train, sweep, compare, evaluate, report, export"),
    ],
)
def test_a_wrong_command_is_known_before_anything_is_sent(
    command: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgeflock", "submit", "--address", f"http://127.0.0.1:{free_port()}", "--", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.out == ""


def test_tokens(head: Head, tmp_path: Path) -> None:
    """In processes of their own, as Ray remembers the first token that it found."""

    def asked(*options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [BIN / "edgeflock", "jobs", "--address", head.address, *options]
        variables = {**head.environment, **environment}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)

    (tmp_path / "other").write_text("another-token-of-32-characters-or-more")
    for options, complaint in (
        ([], "wants a token: give --token-file FILE"),
        (["--token-file", tmp_path / "other"], "does not take this token: give --token-file FILE"),
        (["--token-file", tmp_path / "none"], "cannot be read as a token file"),
    ):
        refused = asked(*options)
        assert refused.returncode == 2
        assert complaint in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert asked(RAY_AUTH_TOKEN_PATH=str(head.token_file)).returncode == 0


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers everything with the same."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"")

    def do_GET(self) -> None:
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def other_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("answer", [(404, b""), (200, b"<html>"), (200, b"{}"), (500, b"")])
def test_what_is_no_cluster(answer: tuple[int, bytes], other_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answering, "answer", answer)
    with pytest.raises(InputError, match=f"what answers at {other_server} is no Ray cluster: expected its dashboard"):
        connect(other_server, None)


def test_another_version_of_ray(other_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = {"version": "4", "ray_version": "2.40.0", "ray_commit": "x"}
    monkeypatch.setattr(Answering, "answer", (200, json.dumps(version).encode()))
    with pytest.raises(InputError, match=rf"runs Ray 2\.40\.0, expected {re.escape(ray.__version__)}: start it from"):
        connect(other_server, None)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (
            "http://127.0.0.1:1",
            "no Ray cluster answers at http://127.0.0.1:1: start one with `ray start --head`, or give --address",
        ),
        ("127.0.0.1:6379", "--address 127.0.0.1:6379: expected the address of the cluster's dashboard"),
    ],
)
def test_no_cluster(address: str, complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        connect(address, None)
    assert str(refused.value).startswith(complaint)


def test_a_cluster_that_goes_away_is_not_waited_for_without_end(head: Head, trained: object) -> None:
    client = connect(head.address, head.token_file)
    client._address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Failure, match=r"trained: the cluster has not answered for 1 s .*: submit it again with --resume"):
        follow(client, "trained", print, patience_s=1.0)


def test_a_refusal_is_one_line(head: Head) -> None:
    client = connect(head.address, head.token_file)
    with pytest.raises(Failure, match=f"the cluster at {head.address} refuses: ") as refused, explained(head.address):
        client.get_job_info("none")
    assert "\n" not in str(refused.value)
