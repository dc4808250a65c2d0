"""What goes to the cluster with a job, and what a command must not name."""

import zipfile
from pathlib import Path

import pytest

from cluster.packing import JOB, ROOT, check_packed, pack
from envs.errors import InputError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is the current one."""
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "city.xml").write_text("<fcd/>")
    monkeypatch.chdir(folder)
    return folder


def test_the_code_goes_along_and_nothing_else(here: Path, tmp_path: Path) -> None:
    names = pack(tmp_path / "job.zip", "one")
    assert {"trainers/__main__.py", "trainers/presets/idmac.yaml", "serve/pages/index.html", "cluster/cli.py"} <= names
    assert {name.split("/")[0] for name in names} == {"envs", "models", "trainers", "serve", "cluster"}
    assert not [name for name in names if "__pycache__" in name]
    with zipfile.ZipFile(tmp_path / "job.zip") as archive:
        assert set(archive.namelist()) == names | {JOB}
        assert archive.read("trainers/__main__.py") == (ROOT / "trainers/__main__.py").read_bytes()


def test_equal_commands_are_different_jobs(here: Path, tmp_path: Path) -> None:
    for job in ("one", "two"):
        pack(tmp_path / f"{job}.zip", job)
    assert (tmp_path / "one.zip").read_bytes() != (tmp_path / "two.zip").read_bytes()


def test_included_files_keep_their_names(here: Path, tmp_path: Path) -> None:
    (here / "mine.yaml").write_text("name: mine")
    names = pack(tmp_path / "job.zip", "one", [Path("data"), Path("mine.yaml")])
    assert {"data/city.xml", "mine.yaml"} <= names


@pytest.mark.parametrize(
    ("include", "complaint"),
    [("none.xml", "--include none.xml: no such file or folder"), ("/etc/hostname", "expected a path below the current folder")],
)
def test_what_cannot_be_included(include: str, complaint: str, here: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        pack(tmp_path / "job.zip", "one", [Path(include)])


def test_too_much_names_the_largest(here: Path, tmp_path: Path) -> None:
    (here / "data" / "big").write_bytes(bytes(range(256)) * 20_000)
    with zipfile.ZipFile(here / "data" / "big.zip", "w", zipfile.ZIP_STORED) as stored:
        stored.writestr("noise", __import__("random").Random(1).randbytes(3_000_000))
    with pytest.raises(InputError) as refused:
        pack(tmp_path / "job.zip", "one", [Path("data")], limit=2_500_000)
    assert "more than Ray's limit of 2.4 MiB (largest: data/big.zip 2.9 MiB, " in str(refused.value)
    assert "put them on the cluster's storage" in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "idmac", "--traces", "data/city.xml"],
        ["train", "idmac", "--set", "scenario.traces=data/city.xml"],
        ["train", "coma", "--set", "scenario.graphs=[data/city.xml,visual-question-answering]"],
        ["report", "data/", "--out", "page"],
    ],
)
def test_files_that_the_cluster_does_not_have(words: list[str], here: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is on this machine and not on the cluster: add --include data/"):
        check_packed(words, pack(tmp_path / "a.zip", "one"))
    check_packed(words, pack(tmp_path / "b.zip", "one", [Path("data")]))


def test_what_a_command_may_name(here: Path, tmp_path: Path) -> None:
    names = pack(tmp_path / "job.zip", "one")
    check_packed(["train", "idmac", "--scenario", "vehicular/v50-e6", "--run", "data/city.xml", "--out=data/city.xml"], names)
    check_packed(["train", "idmac", "--traces", str(here / "data" / "city.xml")], names)  # absolute: on the cluster's storage
