"""What follows the training of an agent: evaluations, films, exports, answers; and bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from cli.trained.evaluate import pictures, text
from cli.trained.evaluate.episodes import with_interval
from cli.trained.export import report, save
from hvd_train.agents.player import Player, seed_of
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import create as single
from hvd_train.compute.acting import Acting
from hvd_train.data.environments.base import Environment
from hvd_train.data.environments.copies import Copies
from hvd_train.errors import UserError
from hvd_train.models.normalised import Normalised
from hvd_train.rank.build import Built
from hvd_train.rank.logs import Output
from hvd_train.rank.task import TaskContext
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained import film, observations
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.restore import rebuild, restore
from hvd_train.trained.serving.records import Bodies
from hvd_train.trained.tasks import attack, explain, export, play
from tests.bodies import trained
from tests.engines import threads
from tests.integration.ddl import ddl_here

OBSERVATIONS = 256
HERE = "tests.single.test_play"
TIMES = {"seconds", "env_steps_per_second", "ranks", "threads"}


@pytest.fixture(autouse=True)
def few_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations, "OBSERVATIONS", OBSERVATIONS)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.cartpole(tmp_path_factory.mktemp("cartpole"))


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.pendulum(tmp_path_factory.mktemp("pendulum"))


def context(run: Path, folder: Path, comm: Communicator | None = None, *data: str) -> TaskContext:
    """Return what a task is given that writes in `folder`."""
    folder.mkdir(exist_ok=True)
    found = find_run(run, data)
    return TaskContext(found.config, comm or single(), found.checkpoint, folder, Output())


def played(run: Path, folder: Path, ranks: int = 1, **options: Any) -> dict[str, Any]:
    """Return what rank 0 of the task returns."""
    return threads.run(ranks, lambda comm: play.create(**options).run(context(run, folder, comm)))[0]


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in TIMES}


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(("name", "episodes"), [("cartpole", 37), ("pendulum", 3)])
def test_any_number_of_ranks_plays_the_same_episodes(
    name: str, episodes: int, stochastic: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(name)
    one, *others = (played(run, tmp_path, n, episodes=episodes, stochastic=stochastic) for n in (1, 2, 4))
    assert all(timeless(other) == timeless(one) for other in others)
    returns = [episode["return"] for episode in one["played"]]
    assert one["metrics"]["return"] == pytest.approx(np.mean(returns))
    assert one["env_steps"] == sum(episode["length"] for episode in one["played"])
    assert len({episode["seed"] for episode in one["played"]}) == len(returns) == episodes


def test_stochastic_actions_are_others_than_the_best_ones(cartpole: Path, tmp_path: Path) -> None:
    best, explored = (played(cartpole, tmp_path, episodes=8, stochastic=which)["played"] for which in (False, True))
    assert [episode["seed"] for episode in best] == [episode["seed"] for episode in explored]
    assert [episode["length"] for episode in best] != [episode["length"] for episode in explored]


class Counted:
    """Makes the environments of another maker, and counts them and their steps."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self.made = self.steps = 0

    def __call__(self, number: int, *, pictures: bool = False) -> Environment:
        self.made += 1
        environment = self._make(number, pictures=pictures)
        step = environment.step

        def counted(actions: Any) -> Any:
            self.steps += 1
            return step(actions)

        environment.step = counted
        return environment


@pytest.fixture
def built(pendulum: Path, tmp_path: Path) -> Built:
    return rebuild(context(pendulum, tmp_path))


def player_of(built: Built, **options: Any) -> Player:
    assert built.agent is not None
    return Player(built.agent, Acting(built.model, built.precision), **options)


@pytest.mark.parametrize("explores", [False, True])
def test_an_episode_does_not_depend_on_those_beside_it(explores: bool, built: Built) -> None:
    split, found = replace(built.data.test, number=5), {}
    for size in (1, 2, 5):
        results: list[torch.Tensor] = []
        player = player_of(built, explores=explores)
        player.evaluate(split, torch.arange(5), lambda result, batch, to=results: to.append(result), size)
        player.close()
        found[size] = torch.cat(results)
    assert torch.equal(found[1][:, :2], found[5][:, :2])
    assert torch.equal(found[2][:, :2], found[5][:, :2])
    assert len(set(found[1][:, 0].tolist())) == 5


def test_only_what_plays_is_stepped_and_copies_are_used_again(cartpole: Path, tmp_path: Path) -> None:
    built = rebuild(context(cartpole, tmp_path))
    count = Counted(built.data.train.make)
    split = replace(built.data.test, environments=replace(built.data.train, make=count))
    player = player_of(built)
    first = player.play(split, [0, 1, 2, 3])
    assert len(set(first[:, 1].tolist())) > 1, "episodes of one length cannot show it"
    assert count.steps == first[:, 1].sum()
    again = player.play(split, [0, 1, 2, 3])
    assert torch.equal(again[:, :2], first[:, :2])
    assert count.made == 4
    player.play(split, [1, 2, 3])
    player.close()
    assert count.made == 7


@pytest.mark.parametrize("ending", [".gif", ".mp4"])
def test_a_film_has_a_picture_of_each_step_and_of_the_start(ending: str, cartpole: Path, tmp_path: Path) -> None:
    result = played(cartpole, tmp_path, 2, episodes=2, render=f"episode{ending}")
    length, path = result["played"][0]["length"], tmp_path / f"episode{ending}"
    assert result["frames"] == length + 1
    if ending == ".mp4":
        assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == length + 1
        return
    with Image.open(path) as image:
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
            assert image.size == (600, 400)
    assert len(durations) > length / 2
    assert sum(durations) == 20 * (length + 1), "CartPole has 50 pictures in a second"


def test_a_film_ends_with_the_end_of_the_episode(cartpole: Path, tmp_path: Path) -> None:
    built = rebuild(context(cartpole, tmp_path))
    split = built.data.test
    copies = Copies(split.environments, [0], pictures=True)
    moves = list(player_of(built).moves(split, copies))
    last = copies.made[0].render()
    copies.close()
    environment = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    environment.reset(seed=seed_of(split, 0))
    for _, actions in moves:
        *_, over, _, _ = environment.step(int(actions[0]))
    assert over
    assert np.array_equal(last, environment.render())


class Blind(gymnasium.Env[Any, Any]):
    """An environment whose pictures are None."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(4, np.float32), 1.0, self.steps == 3, False, {}

    def render(self) -> Any:
        return None


def unseen() -> Blind:
    """Return an environment that has no option for pictures."""
    return Blind()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (f"{HERE}:Blind", "renders no pictures (render_mode rgb_array); leave --render out"),
        (f"{HERE}:unseen", "cannot be made with pictures (data: "),
    ],
)
def test_an_environment_without_pictures_is_refused(env: str, said: str, cartpole: Path, tmp_path: Path) -> None:
    task = play.create(episodes=1, render="episode.gif")
    with pytest.raises(UserError, match=r"^--render: ") as refusal:
        task.run(context(cartpole, tmp_path, None, f"env={env}"))
    assert said in str(refusal.value)
    assert play.create(episodes=2).run(context(cartpole, tmp_path, None, f"env={env}"))["metrics"]["return"] == 3.0


def frames(number: int) -> Iterator[film.Frame]:
    for level in range(number):
        yield np.full((6, 5, 3), level, np.uint8)


def test_too_many_pictures_for_a_gif_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "MOST_PIXELS", 6 * 5 * 4)
    assert film.write(frames(4), tmp_path / "four.gif", 10) == 4
    with pytest.raises(UserError, match=r"more than 4 pictures, the most for a GIF of this size; take \.mp4"):
        film.write(frames(5), tmp_path / "five.gif", 10)


def test_what_ffmpeg_says_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"FFmpeg cannot write one\.mp4: .*No such file or directory"):
        film.write(frames(2), tmp_path / "missing" / "one.mp4", 10)


def test_the_report_shows_returns_and_their_interval(cartpole: Path, tmp_path: Path) -> None:
    result = {"checkpoint": "runs/x/y", **with_interval(played(cartpole, tmp_path, episodes=12))}
    shown = text.text(result, 100)
    bounds = [result["metrics"][f"return_iqm_{side}"] for side in ("low", "high")]
    assert bounds[0] < result["metrics"]["return_iqm"] < bounds[1]
    low, high = map(text.number, bounds)
    assert "12 episodes by best actions" in shown
    assert f"[{low}, {high}]" in shown
    assert json.loads(text.json(result))["played"] == result["played"]
    assert pictures.save(result, tmp_path) == ["returns.png"]
    with Image.open(tmp_path / "returns.png") as image:
        assert image.size == (900, 400)


def exported(run: Path, folder: Path, comm: Communicator | None = None, **options: Any) -> dict[str, Any]:
    return export.create(seconds=1e-9, **options).run(context(run, folder, comm))


@pytest.mark.parametrize("name", ["cartpole", "pendulum"])
def test_onnx_acts_as_the_policy_on_what_the_environment_shows(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(name)
    result = exported(run, tmp_path / "out", to="onnx")
    assert (
        "different by at most" in result["verdict"] if name == "pendulum" else "equal in accuracy" in result["verdict"]
    )
    row, agent = result["rows"][1], rebuild(context(run, tmp_path / "again"))
    assert row["difference"] < 1e-5
    assert row["agreement"] == (1.0 if name == "cartpole" else None)
    assert result["samples"] == OBSERVATIONS

    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    split = agent.data.test
    copies = Copies(split.environments, [7])
    moves = [(seen.copy(), taken) for seen, taken in player_of(agent).moves(split, copies)]
    copies.close()
    (found,) = session.run(None, {"input": np.concatenate([seen for seen, _ in moves])})
    actions = torch.cat([taken for _, taken in moves])
    if name == "cartpole":
        assert torch.equal(torch.from_numpy(found).argmax(-1), actions)
    else:
        assert np.allclose(found, actions.clamp(-2, 2), atol=1e-5)
    assert isinstance(agent.model, Normalised)
    assert float(agent.model.count) > 0, "a normaliser that changes nothing cannot show that it is exported"

    save(tmp_path / "out", find_run(run), result, None)
    assert ("equal actions" in report(result)) == (name == "cartpole")
    described = json.loads((tmp_path / "out" / "card.json").read_text())["agent"]
    assert described["name"] == "ppo"
    assert described["observation"] == ([4] if name == "cartpole" else [3])
    assert described["actions"]["choices"] == (2 if name == "cartpole" else 0)
    (line,) = (line for line in (tmp_path / "out" / "card.md").read_text().splitlines() if line.startswith("- agent: "))
    assert "name ppo" in line
    assert f"observation {described['observation']}" in line


def test_the_exported_numbers_are_within_their_bounds(pendulum: Path, tmp_path: Path) -> None:
    model = restore(context(pendulum, tmp_path)).built.model
    with torch.no_grad():
        model.model.model.policy[-1].bias.fill_(50.0)  # type: ignore[union-attr, index]
    assert torch.equal(model(torch.zeros(1, 3)), torch.full((1, 1), 2.0))


def test_a_quantised_policy_is_judged_by_its_actions(cartpole: Path, tmp_path: Path) -> None:
    original, plain, small = exported(cartpole, tmp_path / "out", to="onnx", quantize="int8-dynamic")["rows"]
    assert plain["difference"] < small["difference"] < 0.2
    assert 0.9 < small["agreement"] <= original["metrics"]["accuracy"] == 1.0


def test_ranks_judge_the_same_observations(cartpole: Path, tmp_path: Path) -> None:
    def run(comm: Communicator) -> dict[str, Any]:
        return exported(cartpole, tmp_path / f"{comm.size}", comm, to="safetensors")

    (one,), (two, _) = threads.run(1, run), threads.run(2, run)
    assert (one["samples"], two["samples"]) == (OBSERVATIONS, OBSERVATIONS)
    assert [row["metrics"] for row in one["rows"]] == [pytest.approx(row["metrics"]) for row in two["rows"]]


def test_observations_of_training_are_not_the_held_out_ones(cartpole: Path, tmp_path: Path) -> None:
    data = restore(context(cartpole, tmp_path)).built.data
    train, test = ({tuple(row) for row in split.x.tolist()} for split in (data.train, data.test))
    assert len(test) > OBSERVATIONS / 2
    assert not train & test


def test_a_choice_is_predicted_with_scores_and_a_number_as_a_list(
    cartpole: Path, pendulum: Path, tmp_path: Path
) -> None:
    predictor = Predictor(load_model(find_run(cartpole)))
    records = [[0.01, 0.2, -0.1, 0.3], [0.5, -1.0, 0.1, -0.4], [0.0, 0.0, 0.05, 0.0]]
    answers, agent = predictor.predict(records), rebuild(context(cartpole, tmp_path))
    assert agent.agent is not None
    outputs = agent.model(torch.tensor(records))
    assert [answer["action"] for answer in answers] == agent.agent.best(outputs).tolist()
    assert torch.allclose(torch.tensor([answer["scores"] for answer in answers]), outputs[:, :2])
    body = json.dumps({"instances": records}).encode()
    assert Bodies(predictor.input.form()).records("application/json", body) == records

    (answer,) = Predictor(load_model(find_run(pendulum))).predict([[0.1, 0.9, -2.0]])
    agent = rebuild(context(pendulum, tmp_path))
    assert agent.agent is not None
    assert answer["action"] == pytest.approx(
        agent.agent.best(agent.model(torch.tensor([[0.1, 0.9, -2.0]])))[0].tolist()
    )
    with pytest.raises(UserError, match=r"^record 0 .*expected \(4,\) as in training"):
        predictor.predict([[0.1, 0.2]])


def test_a_choice_is_explained_and_attacked(cartpole: Path, tmp_path: Path) -> None:
    found = explain.create(samples=2).run(context(cartpole, tmp_path))
    assert max(sample["completeness_error"] for sample in found["samples"]) <= 0.01
    asked = attack.create(epsilons=[0.0, 10.0], samples=16, queries=20)
    accuracy = asked.run(context(cartpole, tmp_path))["attacks"]["accuracy"]
    assert accuracy["fgsm"] == [1.0, pytest.approx(0, abs=0.1)]


def test_numbers_are_not_attacked(pendulum: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the actions of the agent are numbers, and attacks make choices wrong"):
        attack.create().run(context(pendulum, tmp_path))


REFUSALS: dict[str, tuple[list[str], str]] = {
    "metrics": (["--metrics", "f1"], "--metrics: it is for samples, and the run has an agent"),
    "split": (["--split", "train"], "--split: it is for samples, and the run has an agent"),
    "ending": (["--render", "film.avi"], "--render: film.avi has an unknown ending"),
    "no folder": (["--render", "none/film.gif"], "--render: no folder"),
    "exists": (["--render", "here.gif"], "here.gif exists; give another name"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_options_that_do_not_fit_an_agent_are_refused(case: str, cartpole: Path, tmp_path: Path) -> None:
    (tmp_path / "here.gif").touch()
    before = sorted(cartpole.iterdir())
    given, said = REFUSALS[case]
    done = ddl_here("evaluate", cartpole, *given, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert sorted(cartpole.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["here.gif"]


@pytest.mark.parametrize("given", [["--episodes", "5"], ["--stochastic"], ["--render", "film.gif"]])
def test_options_of_agents_are_refused_without_one(given: list[str], tmp_path: Path) -> None:
    run = trained.digits(tmp_path, train={"steps": 1})
    done = ddl_here("evaluate", run, *given, cwd=tmp_path)
    assert (done.returncode, f"{given[0]}: it is for agents" in done.stderr) == (2, True), done.stderr
    with pytest.raises(UserError, match="the run has no agent"):
        play.create().run(context(run, tmp_path))


def test_another_environment_is_refused(cartpole: Path, tmp_path: Path) -> None:
    for env, said in (
        ("Acrobot-v1", "expected (4,)"),
        (f"{HERE}:three", "one of 3 choices in gymnasium, expected one of 2"),
    ):
        with pytest.raises(UserError) as refusal:
            play.create(episodes=1).run(context(cartpole, tmp_path, None, f"env={env}"))
        assert said in str(refusal.value)


def three() -> Blind:
    """Return an environment with one more choice."""
    made = Blind()
    made.action_space = gymnasium.spaces.Discrete(3)
    return made
