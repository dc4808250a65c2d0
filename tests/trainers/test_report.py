"""Reports: what is counted, how it is compared, what the paper's claims come to, and that the page holds all of it."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from envs.errors import InputError
from envs.registry import PROBLEMS, make_scenario, make_simulator, scenario_names
from envs.team import episode_seeds
from trainers.algorithms import ALGORITHMS
from trainers.cli import main
from trainers.config import make_run_config
from trainers.evaluate import EpisodeResults, evaluate
from trainers.heuristics import heuristics
from trainers.played import Played
from trainers.policy import Policy
from trainers.report import (
    Group,
    Run,
    play,
    read_hints,
    read_runs,
    scenario_label,
    share_to_arrive,
    training_minutes,
    write_marl_eval,
)
from trainers.report_claims import CLAIMS, Claim, PaperFigure, examine, find_claims, judge, overall
from trainers.report_page import groups_of, write_report
from trainers.statistics import Interval, Resampling
from trainers.sweep_config import SWEEPS, ReportHints, load_sweep, make_trials
from trainers.train import train

HOW = Resampling(resamples=200)
SEEDS = episode_seeds(1, 0, 8)
ADDED = {"dag": ("normalised_objective",)}
"""Metrics that comparisons of a problem have besides those of its episodes."""
SMALL = ["training.env_steps=160", "training.num_envs=4", "training.evaluation_interval=5", "training.evaluation_episodes=4"]


def silent(record: object) -> None:
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs each of VDN and QMIX on a game, and one of QMIX on another."""
    out = tmp_path_factory.mktemp("runs")
    planned = [
        ("vdn", "two-step", 1),
        ("vdn", "two-step", 2),
        ("qmix", "two-step", 1),
        ("qmix", "two-step", 2),
        ("qmix", "climb", 1),
    ]
    return [
        train(make_run_config(name, f"games/{game}", seed, SMALL), out / f"{name}-{game}-{seed}", silent)
        for name, game, seed in planned
    ]


@pytest.fixture(scope="module")
def groups(folders: list[Path]) -> list[Group]:
    return play(read_runs(folders[:4], pytest.fail), SEEDS, ReportHints(), how=HOW)


# -- what is counted -----------------------------------------------------------------------------------------------------


def test_only_finished_runs_count_and_the_others_are_named(folders: list[Path], tmp_path: Path) -> None:
    unfinished, damaged, empty, torn = (tmp_path / name for name in ("unfinished", "damaged", "empty", "torn"))
    for copy in (unfinished, damaged, torn):
        shutil.copytree(folders[0], copy)
    shutil.rmtree(unfinished / "bundle")
    weights = damaged / "bundle" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    empty.mkdir()
    (torn / "metrics.jsonl").write_text("{}\nnot JSON\n{}\n")
    told: list[str] = []
    runs = read_runs([unfinished, folders[1], damaged, empty, torn], told.append)
    assert [run.folder for run in runs] == [folders[1]]
    assert len(told) == 4
    assert all(line.startswith("skipped, not counted: ") for line in told)
    for folder, words in ((unfinished, "has not finished"), (damaged, "checksum"), (empty, "config.yaml"), (torn, "line 2")):
        assert any(str(folder) in line and words in line for line in told)
    with pytest.raises(InputError, match="no finished run"):
        read_runs([unfinished], told.append)
    with pytest.raises(InputError, match="no such run folder"):
        read_runs([tmp_path / "nowhere"], told.append)


def test_a_sweeps_folder_stands_for_its_trials_and_knows_their_labels(folders: list[Path], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    names = ["vdn-two-step-1", "missing"]
    shutil.copytree(folders[0], sweep / names[0])
    (sweep / "trials.json").write_text(json.dumps({"trials": [{"name": name, "label": "vdn so and so"} for name in names]}))
    told: list[str] = []
    assert [run.label for run in read_runs([sweep], told.append)] == ["vdn so and so"]
    assert told == [f"skipped, not counted: {sweep / 'missing'}: was not begun"]
    assert [run.label for run in read_runs([sweep / names[0]], told.append)] == ["vdn so and so"]
    shutil.copy(SWEEPS / "dialogue-ablation.yaml", sweep / "sweep.yaml")
    text = (sweep / "sweep.yaml").read_text()
    (sweep / "sweep.yaml").write_text(text[: text.index("quick:")])
    assert read_hints([tmp_path, sweep]).own == ["observe_budget"]


def test_runs_of_one_algorithm_with_other_settings_are_told_apart(folders: list[Path], tmp_path: Path) -> None:
    overrides = [*SMALL, "algorithm.td_lambda=0.1", "algorithm.double_q=false"]
    other = train(make_run_config("vdn", "games/two-step", 3, overrides), tmp_path / "other", silent)
    labels = [run.label for run in read_runs([folders[0], folders[1], other], pytest.fail)]
    assert labels == ["vdn", "vdn", "vdn td_lambda=0.1 double_q=False"]
    alone = [run.label for run in read_runs([other, folders[2]], pytest.fail)]
    assert alone == ["vdn", "qmix"]  # what all runs of an algorithm share needs no words


def test_an_interrupted_report_goes_on_with_what_is_left(
    folders: list[Path], groups: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, played = read_runs(folders[:4], pytest.fail), Played(tmp_path)

    def interrupt(done: float, total: int, what: str) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(runs, SEEDS, ReportHints(), interrupt, HOW, played)
    assert len(list(tmp_path.glob(".played/*.json"))) == 3
    evaluated: list[str] = []

    def counted(policy: Policy, *arguments: Any, **options: Any) -> EpisodeResults:
        evaluated.append(policy.name)
        return evaluate(policy, *arguments, **options)

    monkeypatch.setattr("trainers.report.evaluate", counted)
    (again,), (whole,) = play(runs, SEEDS, ReportHints(), None, HOW, played), groups
    assert len(evaluated) == sum(map(len, whole.comparison.results.values())) - 3
    assert again.comparison.rows() == whole.comparison.rows()
    for label, of_label in whole.comparison.results.items():
        for one, other in zip(of_label, again.comparison.results[label], strict=True):
            assert (one.run, one.env_steps, one.metrics) == (other.run, other.env_steps, other.metrics)
            assert all((one.sums[name] == other.sums[name]).all() for name in one.sums)
    play(runs, SEEDS[:4], ReportHints(), None, HOW, played)  # other episodes
    assert len(evaluated) == 2 * sum(map(len, whole.comparison.results.values())) - 3
    played.forget()
    assert not list(tmp_path.iterdir())


def test_a_changed_scenario_has_another_name() -> None:
    assert scenario_label(make_scenario("dag/paper")) == "dag/paper"
    changed = make_scenario("dag/paper", {"bandwidth_hz": 5e6, "deadline_s": 2.5})
    assert scenario_label(changed) == "dag/paper bandwidth_hz=5e+06 deadline_s=2.5"
    assert scenario_label(changed, own=["bandwidth_hz"]) == "dag/paper deadline_s=2.5"


# -- what is compared ----------------------------------------------------------------------------------------------------


def test_every_policy_plays_the_same_episodes(groups: list[Group]) -> None:
    (group,) = groups
    assert group.scenario == "games/two-step"
    assert {label: len(runs) for label, runs in group.comparison.results.items()} == {"vdn": 2, "qmix": 2, "random": 1}
    for runs in group.comparison.results.values():
        assert all((run.seeds == SEEDS.numpy()).all() for run in runs)
    assert [run.config.seed for run in group.runs["qmix"]] == [1, 2]


def test_scores_are_0_for_random_and_1_for_the_best(groups: list[Group]) -> None:
    (group,) = groups
    low, high = group.anchors
    assert group.scores("random") == pytest.approx([0.0])
    assert group.normalised(np.array([low, high, (low + high) / 2])) == pytest.approx([0.0, 1.0, 0.5])


def test_evaluation_can_differ_from_training(folders: list[Path]) -> None:
    runs = read_runs(folders[:1], pytest.fail)
    with pytest.raises(InputError, match="unknown key"):
        play(runs, SEEDS, ReportHints(evaluation={"scenario.no_such": 1}), how=HOW)
    with pytest.raises(InputError, match=r"only scenario\.\*"):
        play(runs, SEEDS, ReportHints(evaluation={"algorithm.lr": 1}), how=HOW)
    with pytest.raises(InputError, match="unknown heuristic greedy"):
        play(runs, SEEDS, ReportHints(heuristics=["greedy"]), how=HOW)


def test_wall_clock_adds_up_the_processes_and_leaves_out_the_time_between(tmp_path: Path) -> None:
    run = Run(tmp_path, "vdn", make_run_config("vdn", "games/climb"))
    for first in (1e9, 1.001e9):
        with SummaryWriter(str(tmp_path), filename_suffix=str(first)) as writer:
            for second in (0.0, 60.0, 90.0):
                writer.add_scalar("x", 0.0, walltime=first + second)
    # each file's first event is the writer's, of now: the span of a file cannot be negative or less than its own events
    assert training_minutes(run) >= 2 * 1.5


def test_when_a_training_arrived(groups: list[Group]) -> None:
    (group,) = groups
    low, high = group.anchors
    records = [
        {"env_steps": step, "evaluation_return_mean": low + share * (high - low)}
        for step, share in ((100, 0.2), (200, 0.91), (300, 0.5), (400, 1.0))
    ]
    run = replace(group.runs["vdn"][0], records=records)
    assert share_to_arrive(group, run) == 0.5
    assert share_to_arrive(group, replace(run, records=records[:1])) == np.inf


def test_marl_eval_has_the_returns_on_the_way(groups: list[Group], tmp_path: Path) -> None:
    written = json.loads(write_marl_eval(groups, tmp_path / "marl_eval.json").read_text())
    algorithms = written["games"]["two-step"]
    assert set(algorithms) == {"vdn", "qmix", "random"}
    run = algorithms["qmix"]["seed_1"]
    steps = [run[f"step_{index}"]["step_count"] for index in range(len(run) - 1)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 160
    assert len(run["absolute_metrics"]["return"]) == len(SEEDS)
    assert all(len(run[f"step_{index}"]["return"]) == 1 for index in range(len(steps) - 1))


# -- claims --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "sign", "enough", "verdict"),
    [
        (0.1, 0.3, 1.0, True, "reproduced"),
        (-0.3, -0.1, 1.0, True, "contradicted"),
        (-0.1, 0.3, 1.0, True, "not reproduced"),
        (-0.3, -0.1, -1.0, True, "reproduced"),  # less is better
        (0.1, 0.3, -1.0, True, "contradicted"),
        (0.1, 0.3, 1.0, False, "not enough runs"),
        (np.nan, np.nan, 1.0, True, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_interval(low: float, high: float, sign: float, enough: bool, verdict: str) -> None:
    assert judge(Interval((low + high) / 2, low, high, 8), sign, enough) == verdict
    assert judge(Interval(np.nan, np.nan, np.nan, 0), sign, enough) == "not defined"


def figure_with(*claims: Claim) -> PaperFigure:
    return PaperFigure(name="Fig. 1", title="t", chart="bars", scenarios=["games/two-step"], claims=list(claims))


def repeated(group: Group, runs: int, shift: float) -> Group:
    """The group with QMIX's and VDN's runs repeated, and QMIX's rewards shifted."""
    results = dict(group.comparison.results)
    results["vdn"] = results["vdn"][:1] * runs
    first = results["vdn"][0]
    results["qmix"] = [replace(first, policy="qmix", sums={**first.sums, "reward": first.sums["reward"] + shift})] * runs
    return replace(group, comparison=replace(group.comparison, results=results))


def test_claims_are_tested_pair_by_pair(groups: list[Group]) -> None:
    claim = Claim(says="QMIX wins", better="qmix", than=["vdn", "absent"])
    for shift, runs, expected in ((0.5, 5, "reproduced"), (-0.5, 5, "contradicted"), (0.5, 4, "not enough runs")):
        tested = examine(claim, figure_with(claim), [repeated(groups[0], runs, shift).comparison])
        assert [(pair.other, pair.verdict) for pair in tested] == [("vdn", expected)]
        assert tested[0].difference.estimate == pytest.approx(shift)
        assert tested[0].improvement.estimate == (1.0 if shift > 0 else 0.0)
        assert overall(claim, tested) == expected
    assert overall(claim, []) == "not in these runs"
    assert overall(Claim(says="curves are smooth"), []) == "not tested"
    both = [*examine(claim, figure_with(claim), [repeated(groups[0], 5, shift).comparison for shift in (0.5, -0.5)])]
    assert overall(claim, both) == "contradicted"


def test_a_figure_over_a_field_takes_the_scenarios_that_differ_in_it_only(groups: list[Group]) -> None:
    def named(scenario: str) -> Group:
        return replace(groups[0], comparison=replace(groups[0].comparison, scenario=scenario))

    all_of_them = [named(name) for name in ("dag/paper", "dag/paper w=5", "dag/paper t=2", "dag/paper w=5 t=2", "dag/t5")]
    lines = PaperFigure(name="", title="", chart="lines", over="w", scenarios=["dag/paper"])
    assert [group.scenario for group in groups_of(lines, all_of_them)] == ["dag/paper", "dag/paper w=5"]
    curves = PaperFigure(name="", title="", chart="curves", scenarios=["dag/paper", "dag/t5"])
    assert [group.scenario for group in groups_of(curves, all_of_them)] == ["dag/paper", "dag/t5"]


@pytest.mark.parametrize("path", sorted(CLAIMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_claims_name_what_there_is(path: Path) -> None:
    """Scenarios, metrics and policies of the claims exist; labels of ablations come from the sweeps that use the claims."""
    claims = find_claims(path.stem)
    sweeps = [load_sweep(file) for file in SWEEPS.glob("*.yaml")]
    labels = {
        trial.label
        for sweep in sweeps
        if sweep.report.claims == path.stem
        for trial in make_trials(sweep.model_copy(update={"seeds": [1]}))
    }
    for figure in claims.figures:
        assert set(figure.scenarios) <= set(scenario_names())
        problem = figure.scenarios[0].split("/")[0]
        known = labels | set(ALGORITHMS) | set(heuristics(problem))
        overrides = {"test": "both"} if problem == "velo" else {}
        spec = make_simulator(make_scenario(figure.scenarios[0], overrides), 1).spec
        for claim in figure.claims:
            assert (claim.metric or figure.metric) in {*spec.metrics, *ADDED.get(problem, ())}
            assert {claim.better or "random", *claim.than} <= known
            assert set(claim.scenarios or []) <= set(figure.scenarios)
        assert set(figure.policies or []) <= known
        if figure.over is not None:
            assert figure.over in PROBLEMS[problem].load().SCENARIO.model_fields


@pytest.mark.parametrize("text", ["[1]", "paper: x", "paper: x\nfigures: [{name: a}]", "a: ["])
def test_files_that_are_no_claims_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        find_claims(str(tmp_path / "c.yaml"))


# -- the page ------------------------------------------------------------------------------------------------------------


def test_the_page_holds_everything_and_needs_nothing(groups: list[Group], tmp_path: Path) -> None:
    claims = find_claims("idmac").model_copy(
        update={
            "figures": [
                figure_with(Claim(says="A < B & so on", numbers="10 %", better="qmix", than=["vdn"]), Claim(says="a remark")),
                PaperFigure(name="Fig. 2", title="u", chart="curves", scenarios=["games/two-step"]),
                PaperFigure(name="Fig. 3", title="not there", chart="bars", scenarios=["games/climb"]),
            ]
        }
    )
    page = write_report(tmp_path, [repeated(groups[0], 5, 0.5)], claims, ["skipped, not counted: x <y>"], "edgeflock report x")
    text = page.read_text()
    assert "A &lt; B &amp; so on" in text
    assert "skipped, not counted: x &lt;y&gt;" in text
    assert "Fig. 3: not there" not in text
    for words in ("reproduced, provisional", "not tested", "Fig. 2: u", "edgeflock report x", "Performance profiles", "100 %"):
        assert words in text
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "<script" not in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert {"profiles", "improvement", "efficiency", "wall-clock", "scenario0-curves", "scenario0-bars"} <= drawn
    for svg in (tmp_path / "figures").glob("*.svg"):
        ElementTree.parse(svg)
        assert svg.stem in drawn


def test_the_command_writes_page_figures_and_marl_eval(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, broken = tmp_path / "report", tmp_path / "broken"
    broken.mkdir()
    arguments = ["edgeflock", "report", *map(str, folders), str(broken), "--out", str(out), "--episodes", "4", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == {"page": str(out / "index.html"), "runs": 5, "skipped": 1}
    playing = [json.loads(line) for line in printed.out.splitlines()[:-1]]
    assert [line["done"] for line in playing] == list(range(playing[0]["of"]))  # each policy once
    assert printed.err.count("skipped, not counted") == 1
    assert {path.name for path in out.iterdir()} == {"index.html", "figures", "marl_eval.json"}
    assert set(json.loads((out / "marl_eval.json").read_text())["games"]) == {"two-step", "climb"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such run folder"),
        (["."], "no finished run"),
        ([".", "--claims", "nothing"], "cannot be read as claims"),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgeflock", "report", *arguments, "--out", "out"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
