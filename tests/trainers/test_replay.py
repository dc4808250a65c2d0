"""The replay keeps whole episodes, forgets the oldest, and repeats itself after a restart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.team_module import ACTION_MASK, FILLED, OBSERVATION, REWARD
from trainers.replay import EpisodeReplay

MAX_STEPS = 5


def episodes(numbers: list[int], lengths: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Joint rows, as long as the longest of them: the reward of episode n at step t is 100 n + t, its observation 1 more.

    The masks are the reward's lowest 11 bits.
    """
    lengths = lengths or [MAX_STEPS] * len(numbers)
    steps = torch.arange(max(lengths) + 1)
    values = 100 * torch.tensor(numbers)[:, None] + steps
    filled = steps[:-1] < torch.tensor(lengths)[:, None]
    return {
        OBSERVATION: (values + 1)[..., None].to(torch.float16),  # [B, T + 1, 1]
        ACTION_MASK: ((values[..., None] >> torch.arange(11)) % 2 == 1).unflatten(-1, (1, 11)),  # [B, T + 1, 1, 11]
        REWARD: values[:, :-1].to(torch.float32) * filled,
        FILLED: filled,
    }


def filled_replay(capacity: int, *batches: list[int], seed: int = 0) -> EpisodeReplay:
    replay = EpisodeReplay(capacity, seed)
    for numbers in batches:
        replay.add(episodes(numbers), MAX_STEPS)
    return replay


def stored(replay: EpisodeReplay) -> set[int]:
    """Numbers of the episodes that sampling brings up."""
    rewards = [replay.sample(50, draw)[REWARD][:, 0] for draw in range(4)]
    return {int(reward) // 100 for reward in torch.cat(rewards)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_oldest_episodes_are_forgotten():
    replay = filled_replay(5, [1, 2, 3])
    assert (replay.size, stored(replay)) == (3, {1, 2, 3})
    replay.add(episodes([4, 5, 6]), MAX_STEPS)
    assert (replay.size, stored(replay)) == (5, {2, 3, 4, 5, 6})
    replay.add(episodes([7]), MAX_STEPS)
    assert stored(replay) == {3, 4, 5, 6, 7}


def test_of_more_episodes_than_it_holds_it_keeps_the_last():
    assert stored(filled_replay(3, [1, 2], [3, 4, 5, 6, 7, 8, 9])) == {7, 8, 9}
    replay = filled_replay(3, [1, 2], [3, 4, 5, 6, 7, 8, 9], [10])
    assert stored(replay) == {8, 9, 10}


def test_rows_stay_whole():
    replay = filled_replay(4, [1, 2, 3, 4, 5, 6])
    batch = replay.sample(20, 0)
    number = batch[REWARD][:, :1]
    assert torch.equal(batch[REWARD], number + torch.arange(5))
    assert torch.equal(batch[OBSERVATION].float()[..., 0], (number + 1 + torch.arange(6)).half().float())
    assert {name: value.dtype for name, value in batch.items()} == {
        OBSERVATION: torch.float16,
        ACTION_MASK: torch.bool,
        REWARD: torch.float32,
        FILLED: torch.bool,
    }


def test_a_sample_is_as_long_as_its_longest_episode():
    replay = EpisodeReplay(8, seed=0)
    replay.add(episodes([1, 2], lengths=[2, 3]), MAX_STEPS)  # rows of 3 steps in a replay for 5
    batch = replay.sample(30, 0)
    assert batch[FILLED].shape == (30, 3)
    assert batch[OBSERVATION].shape == (30, 4, 1)
    assert sorted(set(batch[FILLED].sum(1).tolist())) == [2, 3]
    replay.add(episodes([3], lengths=[5]), MAX_STEPS)
    assert replay.sample(50, 0)[FILLED].shape == (50, 5)
    assert replay.sample(50, 0)[OBSERVATION].shape == (50, 6, 1)


def test_a_short_episode_leaves_nothing_of_the_long_one_before_it():
    replay = filled_replay(1, [1])
    replay.add(episodes([2], lengths=[2]), MAX_STEPS)
    replay.add(episodes([3, 4], lengths=[5, 1]), MAX_STEPS)
    batch = replay.sample(1, 0)
    assert batch[FILLED].tolist() == [[True]]
    assert batch[REWARD].tolist() == [[400]]
    assert batch[OBSERVATION].flatten().tolist() == [401, 402]
    assert (batch[ACTION_MASK] * 2 ** torch.arange(11)).sum(-1).flatten().tolist() == [400, 401]


def test_samples_depend_on_seed_and_draw_only():
    one, same, other = (filled_replay(40, list(range(40)), seed=seed) for seed in (7, 7, 8))
    later = one.sample(16, 5)
    one.sample(16, 6)
    assert equal(one.sample(16, 5), later)
    assert equal(same.sample(16, 5), later)
    assert not equal(same.sample(16, 6), later)
    assert not equal(other.sample(16, 5), later)


def test_masks_are_kept_as_bits():
    replay = EpisodeReplay(4, seed=0)
    rows = episodes([1, 2])
    replay.add(rows, MAX_STEPS)
    assert torch.equal(replay.sample(9, 0)[ACTION_MASK].unique(dim=0), rows[ACTION_MASK].unique(dim=0))
    steps = 4 * (MAX_STEPS + 1)
    assert replay.nbytes == steps * (2 + 2) + 4 * MAX_STEPS * (4 + 1)  # 11 bits in 2 bytes


def test_a_sample_belongs_to_the_caller():
    replay = filled_replay(2, [1, 2])
    before = replay.sample(4, 0)
    replay.sample(4, 0)[REWARD].fill_(-1)
    assert equal(replay.sample(4, 0), before)


@pytest.mark.parametrize("batches", [[[1, 2]], [[1, 2, 3], [4, 5, 6]], []])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(tmp_path, batches):
    replay = filled_replay(5, *batches, seed=3)
    replay.save(tmp_path / "replay.safetensors")
    loaded = EpisodeReplay(5, seed=3)
    loaded.load(tmp_path / "replay.safetensors")
    assert loaded.size == replay.size
    for step, numbers in enumerate([[], [7, 8], [9, 10, 11], [12]]):
        for one in (replay, loaded):
            if numbers:
                one.add(episodes(numbers), MAX_STEPS)
        if replay.size:
            assert equal(loaded.sample(12, step), replay.sample(12, step))
    assert loaded.size == replay.size == 5


def test_loading_replaces_what_was_there(tmp_path):
    filled_replay(4, [1, 2]).save(tmp_path / "replay.safetensors")
    used = filled_replay(4, [5, 6, 7, 8, 9])
    used.load(tmp_path / "replay.safetensors")
    assert stored(used) == {1, 2}
    used.add(episodes([3]), MAX_STEPS)
    assert stored(used) == {1, 2, 3}


@settings(max_examples=40, deadline=None)
@given(
    capacity=st.integers(1, 7),
    batches=st.lists(st.lists(st.integers(1, MAX_STEPS), min_size=1, max_size=9), min_size=1, max_size=6),
    draw=st.integers(0, 2**31),
)
def test_any_history_leaves_the_latest_episodes_as_they_were(capacity, batches, draw):
    """`batches` are lists of episode lengths."""
    replay, lengths = EpisodeReplay(capacity, seed=1), []
    for batch in batches:
        replay.add(episodes(list(range(len(lengths), len(lengths) + len(batch))), batch), MAX_STEPS)
        lengths += batch
    latest = range(max(0, len(lengths) - capacity), len(lengths))
    assert replay.size == len(latest)
    batch = replay.sample(10, draw)
    longest = 0
    for row in range(10):
        number = int(batch[REWARD][row, 0]) // 100
        assert number in latest
        expected = episodes([number], [lengths[number]])
        for name, value in expected.items():
            assert torch.equal(batch[name][row, : value.shape[1]], value[0])
        assert not batch[FILLED][row, lengths[number] :].any()
        longest = max(longest, lengths[number])
    assert batch[FILLED].shape[1] == longest
