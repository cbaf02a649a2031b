"""Environments of Gymnasium: what agents perceive and do, how episodes end, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_train.agents import noise
from hvd_train.data.base import Dataset
from hvd_train.data.environments import gym
from hvd_train.data.environments.base import Environments
from hvd_train.data.environments.copies import Copies, Steps
from hvd_train.data.sources import gymnasium as source
from hvd_train.data.sources import pettingzoo
from hvd_train.errors import UserError

WALK = "tests.bodies.environments:Walk"
MEET = "tests.bodies.environments:Meet"
RGB = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def walk(**options: Any) -> Dataset:
    """Return walks of at most nine steps without slips, unless `options` say otherwise."""
    arguments = {"slip": 0.0, **options.pop("arguments", {})}
    return source.create(**{"env": WALK, "envs": 2, "steps": 4, "max_steps": 99, "arguments": arguments, **options})


ENCODED: dict[str, tuple[spaces.Space[Any], Any, Any]] = {
    "one of n": (spaces.Discrete(3, start=5), 6, [0, 1, 0]),
    "a scalar": (spaces.Box(-1, 1, ()), np.float32(0.5), [0.5]),
    "numbers": (spaces.Box(-9, 9, (2, 2), np.float64), np.eye(2), np.eye(2)),
    "integers": (spaces.Box(0, 9, (2,), np.uint8), np.array([3, 9], np.uint8), [3, 9]),
    "bytes": (spaces.Box(0, 255, (2,), np.uint8), np.array([51, 255], np.uint8), [0.2, 1]),
    "a grey picture": (spaces.Box(0, 255, (2, 2), np.uint8), np.full((2, 2), 51, np.uint8), np.full((1, 2, 2), 0.2)),
    "a picture": (spaces.Box(0, 255, (2, 4, 3), np.uint8), RGB, RGB.transpose(2, 0, 1) / 255),
    "channels first": (spaces.Box(0, 255, (2, 2, 6), np.uint8), RGB.reshape(2, 2, 6), RGB.reshape(2, 2, 6) / 255),
    "stacked pictures": (
        spaces.Box(0, 255, (2, 2, 4, 3), np.uint8),
        np.stack([RGB, RGB + 1]),
        np.concatenate([RGB.transpose(2, 0, 1), RGB.transpose(2, 0, 1) + 1]) / 255,
    ),
    "several of n": (spaces.MultiDiscrete([2, 3], start=[1, 0]), np.array([1, 2]), [1, 0, 0, 0, 1]),
    "bits": (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
    "by name": (
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 255, (1,), np.uint8)}),
        {"b": np.array([255], np.uint8), "a": 1},
        [0, 1, 1],
    ),
    "nested": (
        spaces.Tuple((spaces.Discrete(2), spaces.Tuple((spaces.Box(-1, 1, (1, 2)),)))),
        (0, (np.array([[0.25, -1]]),)),
        [1, 0, 0.25, -1],
    ),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_observations_are_encoded_as_float32(kind: str) -> None:
    space, observed, expected = ENCODED[kind]
    encoded = gym.encoder(space)(observed)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, expected, rtol=1e-6)
    assert gym.observed_shape(space, "it") == encoded.shape


DECODED: dict[str, tuple[spaces.Space[Any], str, Any, Any]] = {
    "one of n": (spaces.Discrete(3, start=5), "one of 3 choices", 2, 7),
    "several of n": (spaces.MultiDiscrete([2, 3], start=[1, 0]), "one of 6 choices", 5, [2, 2]),
    "a table of choices": (spaces.MultiDiscrete([[2, 2], [2, 2]]), "one of 16 choices", 6, [[0, 1], [1, 0]]),
    "bits": (spaces.MultiBinary(3), "one of 8 choices", 6, [1, 1, 0]),
    "numbers of any shape": (spaces.Box(-1, 1, (1, 2)), "2 numbers", np.array([0.5, 7], np.float32), [[0.5, 1]]),
    "bytes": (spaces.Box(0, 255, (3,), np.uint8), "3 numbers", np.array([-3, 99.6, 300], np.float32), [0, 100, 255]),
}


@pytest.mark.parametrize("kind", DECODED)
def test_actions_are_of_their_space_whatever_the_policy_gives(kind: str) -> None:
    space, described, chosen, expected = DECODED[kind]
    action = gym.decoder(space)(np.asarray(chosen))
    np.testing.assert_array_equal(action, expected)
    assert space.contains(action), (action, space)
    assert str(gym.actions_of(space, "it")) == described


REFUSED: dict[str, Callable[[], Any]] = {
    r"data\.env: Gymnasium has no 'CartPol-v1'; did you mean 'CartPole-v1'\?$": lambda: source.create(env="CartPol-v1"),
    r"data\.env: Gymnasium has no 'CartPole-v9'; did you mean 'CartPole": lambda: source.create(env="CartPole-v9"),
    r"data\.env: 'No/Such-v5' is not installed: Namespace No not found": lambda: source.create(env="No/Such-v5"),
    "data: 'no_such:Env-v1' with no options: ModuleNotFoundError": lambda: source.create(env="no_such:Env-v1"),
    r"target '.*:Wal': no 'Wal' in module .* did you mean 'Walk'": lambda: source.create(env=WALK[:-1]),
    r"data\.env: '.*' returned Meet, expected a gymnasium\.Env": lambda: source.create(env=MEET),
    r"data: 'CartPole-v1' with {'poles': 2}: TypeError": lambda: source.create(
        env="CartPole-v1", arguments={"poles": 2}
    ),
    r"data\.wrappers\.0: no wrapper 'TimeLimi' .* did you mean 'TimeLimit'": lambda: walk(wrappers=["TimeLimi"]),
    r"data\.wrappers\.0: 'TimeLimit' with {'steps': 3}: .*steps": lambda: walk(
        wrappers=[{"name": "TimeLimit", "steps": 3}]
    ),
    r"data\.wrappers\.0: 'name' is missing": lambda: walk(wrappers=[{"steps": 3}]),
    "takes actions of Box.* expected Discrete": lambda: gym.actions_of(spaces.Box(-np.inf, 1, (1,)), "it"),
    "10100 combinations of actions; expected at most 10000": lambda: gym.actions_of(
        spaces.MultiDiscrete([100, 101]), "it"
    ),
    "has observations of Sequence.*; expected arrays of a fixed size": lambda: gym.observed_shape(
        spaces.Sequence(spaces.Discrete(2)), "it"
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_one_sentence(sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        REFUSED[sentence]()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("package", "create"), [("gymnasium", source.create), ("pettingzoo", pettingzoo.create)])
def test_a_missing_library_names_the_extra(
    package: str, create: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed; .*\.\[agents\]"):
        create(env="it")


def test_wrappers_are_applied_in_their_order_and_change_what_is_perceived() -> None:
    made = walk(
        max_steps=None,
        wrappers=[{"name": "FrameStackObservation", "stack_size": 3}, {"name": "TimeLimit", "max_episode_steps": 2}],
    )
    assert made.spec.input_shape == (3, 2)
    assert made.train.most_steps == 2
    assert not made.warnings
    copies = Copies(made.train, [0])
    copies.start(lambda copy: 0)
    assert not step(copies, 0).ended
    assert step(copies, 1).ended


def test_warnings_of_gymnasium_are_the_data_s_and_are_said_once(recwarn: pytest.WarningsRecorder) -> None:
    made = source.create(env="CartPole-v0", envs=2)
    assert [text for text in made.warnings if "out of date" in text] == list(made.warnings)
    assert made.warnings[0].startswith("data: The environment CartPole-v0")
    Copies(made.train, range(2)).close()
    assert not [warning for warning in recwarn if "out of date" in str(warning.message)]


def step(copies: Copies, *actions: int) -> Steps:
    return copies.step(np.array(actions), lambda copy: 0)


def test_terminated_truncated_and_capped_episodes_are_told_apart() -> None:
    """Two steps to the right terminate the walk; six to and fro are truncated at three, or capped at two."""
    ends = {}
    for name, limit, cap, actions in (
        ("terminated", 9, 99, (1, 1)),
        ("truncated", 3, 99, (1, 0, 1)),
        ("capped", 9, 2, (1, 0)),
        ("both", 2, 99, (1, 1)),
    ):
        copies = Copies(walk(arguments={"limit": limit}, max_steps=cap).train, [0])
        copies.start(lambda copy: 0)
        followed = [step(copies, action) for action in actions]
        assert not any(one.ended for one in followed[:-1]), name
        ends[name] = (bool(followed[-1].terminated), bool(followed[-1].ended), copies.finished[0].length)
        last = {"terminated": 1.0, "both": 1.0, "truncated": 0.75, "capped": 0.5}[name]
        assert followed[-1].following[0, 0] == last, "what followed is of the old episode"
        assert copies.observations[0, 0] == 0.5, "a new episode begins"
    assert ends == {
        "terminated": (True, True, 2),
        "truncated": (False, True, 3),
        "capped": (False, True, 2),
        "both": (True, True, 2),
    }


def test_an_environment_without_a_time_limit_is_capped_and_says_so() -> None:
    made = walk(max_steps=None)
    assert made.train.most_steps == 10_000
    assert made.warnings == (
        f"data: '{WALK}' states no time limit: its episodes are cut off after 10000 steps (data.max_steps)",
    )
    assert not walk(max_steps=7).warnings


@pytest.mark.parametrize("variants", [[{"fails": "unseeded"}], [{}, {"fails": "unseeded"}], [{"fails": "leaks"}]])
def test_an_environment_that_does_not_repeat_its_episodes_gives_a_warning(variants: list[dict[str, Any]]) -> None:
    (text,) = walk(variants=variants, arguments={"slip": 0.5}).warnings
    assert "gives different episodes for the same seed and actions" in text
    assert not walk(arguments={"slip": 0.5}).warnings


FAILURES = {
    "raises": "raised OSError: the simulator is gone",
    "nan": "returned an observation that is not finite",
    "reward": "returned the reward nan, which is not finite",
    "shape": "raised ValueError: cannot reshape array of size 1 into shape (2,)",
}


@pytest.mark.parametrize("fails", FAILURES)
def test_a_failure_names_copy_step_and_seed(fails: str) -> None:
    made = walk(variants=[{}, {"fails": fails, "at": 3, "limit": 99}], variants_by="worker", max_steps=2)
    failing = Copies(Environments(**{**vars(made.train), "most_steps": 99}), range(4))
    failing.start(lambda copy: 70 + copy)
    step(failing, 1, 1, 1, 1)
    step(failing, 0, 0, 0, 0)
    with pytest.raises(UserError) as error:
        step(failing, 1, 1, 1, 1)
    at = "copy 2 of the environment 'tests.bodies.environments:Walk', in step 3 of the episode with seed 72,"
    assert str(error.value) == f"data: {at} {FAILURES[fails]}"


def test_an_environment_that_fails_in_its_first_steps_is_refused_at_the_start() -> None:
    with pytest.raises(UserError, match=r"copy 1 of .*, in step 1 of the episode with seed 1, raised OSError"):
        walk(variants=[{}, {"fails": "raises", "at": 1}])


def test_an_observation_of_another_shape_is_refused() -> None:
    class Odd(gym.GymEnvironment):
        def reset(self, seed: int) -> Any:
            return super().reset(seed)[None, :1]

    made = Environments(
        "odd", lambda number, *, pictures=False: Odd(made_walk()), (2,), gym.actions_of(spaces.Discrete(2), "odd"), 1, 1
    )
    with pytest.raises(
        UserError,
        match=r"at the start of the episode with seed 5, returned an observation of shape \(1, 1\), expected \(2,\)",
    ):
        Copies(made, [0]).start(lambda copy: 5)


def made_walk() -> gymnasium.Env[Any, Any]:
    from tests.bodies.environments import Walk

    return Walk()


def test_variants_go_by_copy_or_by_worker_and_evaluations_play_all() -> None:
    def goals(made: Environments, numbers: range) -> list[float]:
        copies = Copies(made, numbers)
        copies.start(lambda copy: 0)
        step(copies, *[1] * len(numbers))
        return step(copies, *[1] * len(numbers)).rewards.tolist()

    variants = [{"goal": 1.0}, {"goal": 2.0}]
    by_copy, by_worker = walk(variants=variants), walk(variants=variants, variants_by="worker")
    assert goals(by_copy.train, range(4)) == [1, 2, 1, 2]
    assert goals(by_worker.train, range(4)) == [1, 1, 2, 2]
    for made in (by_copy, by_worker):
        assert goals(made.test.environments, range(4)) == [1, 2, 1, 2]


REPLAYED: dict[str, Environments] = {
    "walk": walk(arguments={"slip": 0.4}).train,
    "meet, and part": pettingzoo.create(env=MEET, envs=2, arguments={"leaves": True}).train,
    "meet": pettingzoo.create(env=MEET, envs=2, identify=True, state=True, arguments={"max_cycles": 5}).train,
}


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(REPLAYED)),
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), max_size=12),
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_episodes_that_are_resumed_go_on_as_they_would_have(
    name: str, before: list[list[int]], after: list[list[int]], seed: int
) -> None:
    made = REPLAYED[name]
    numbers, rows = range(2, 4), 2 * made.agents

    def play(copies: Copies, moves: list[list[int]]) -> list[Steps]:
        return [copies.step(np.array(move[:rows]), lambda copy: seed + copy) for move in moves]

    through = Copies(made, numbers)
    through.start(lambda copy: seed * copy)
    play(through, before)
    resumed = Copies(made, numbers)
    resumed.load({key: value.clone() for key, value in through.state().items()})
    np.testing.assert_array_equal(resumed.observations, through.observations)
    through.finished.clear()
    for expected, found in zip(play(through, after), play(resumed, after), strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
    assert resumed.finished == through.finished


def test_an_unrepeatable_episode_that_ends_in_its_replay_begins_anew() -> None:
    made = walk(arguments={"slip": 0.5}).train
    copies = Copies(made, [0])
    actions = torch.tensor([1] * 8)  # no walk is that long
    copies.load({"seeds": torch.tensor([3]), "lengths": torch.tensor([8]), "actions": actions})
    assert copies.observations[0].tolist() == [0.5, 0.0]


@pytest.mark.parametrize("kind", ["uniform", "normal", "gumbel"])
def test_noise_belongs_to_a_row_and_an_epoch(kind: Any) -> None:
    whole = noise.draw(noise.Noise(kind, 3), 7, 2, range(4), 5)
    parts = [noise.draw(noise.Noise(kind, 3), 7, 2, range(first, first + 2), 5) for first in (0, 2)]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    assert not torch.equal(whole, noise.draw(noise.Noise(kind, 3), 7, 3, range(4), 5))
    assert not torch.equal(whole[:, 0], whole[:, 1])


def test_a_batch_holds_the_same_samples_on_any_number_of_ranks() -> None:
    """Sample (step, row) of rank r has row r * 2 + row of one process."""
    one = noise.order(7, 2, range(4), 6, passes=2)
    two = [noise.order(7, 2, range(first, first + 2), 6, passes=2) for first in (0, 2)]
    for batch in range(6):
        alone = {(int(k) // 4, int(k) % 4) for k in one[batch * 8 : batch * 8 + 8]}
        together = {
            (int(k) // 2, int(k) % 2 + 2 * rank)
            for rank, order in enumerate(two)
            for k in order[batch * 4 : batch * 4 + 4]
        }
        assert alone == together
