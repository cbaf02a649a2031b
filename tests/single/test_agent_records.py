"""What is recorded of agents: rates of environment steps, lines of the terminal, goals, and surveys."""

from __future__ import annotations

import io
from typing import Any

import pytest

from benchmarks.agents import reached
from hvd_train.comm.communicator import Communicator
from hvd_train.config.schema import Config
from hvd_train.data.survey import __main__ as survey
from hvd_train.data.survey.environments import EPISODES
from hvd_train.monitor.base import Record
from hvd_train.monitor.sinks import terminal
from hvd_train.training.progress import Progress
from tests.bodies import training as body
from tests.engines import threads

STEPS_OF_EPOCH, OF_EPOCH = 4, 2 * 2 * 8


def configuration(data: dict[str, Any] = {}, **train: Any) -> Config:
    """Two environments on each rank make 8 steps an epoch; two passes over them are 4 steps of 8 samples."""
    return body.configuration(
        model={"target": None, "name": "actor_critic", "hidden": [8]},
        data={
            "target": None,
            "partition": None,
            "name": "gymnasium",
            "env": "CartPole-v1",
            "envs": 2,
            "steps": 8,
            "batch_size": 8,
            "episodes": 2,
            **data,
        },
        agent={"name": "ppo", "passes": 2},
        train={"epochs": None, "env_steps": 3 * OF_EPOCH, "eval_env_steps": 2 * OF_EPOCH, "log_every": 2, **train},
    )


@pytest.mark.parametrize(("strategy", "samples"), [("allreduce", 64), ("async_gossip", 32)])
def test_records_count_the_environment_steps_of_all_ranks(strategy: str, samples: int) -> None:
    """The rates of environment steps and of samples are as 32 to what an epoch counts.

    A rank that steps alone counts its own samples, and takes its environment steps times the ranks.
    """

    def run(comm: Communicator) -> tuple[body.Log, float, float]:
        seen = body.Log()
        config = configuration()
        config = config.model_copy(update={"sync": body.configuration(sync={"strategy": strategy}).sync})
        job = body.trainer(comm, config, sinks=[seen] if comm.rank == 0 else [])
        job.run()
        return seen, job.accounting.env_steps_per_second / job.accounting.steps_per_second, job.epochs

    (seen, of_step, epochs), _ = threads.run(2, run)
    assert [r["env_steps"] for r in seen.trained] == [32, 32, 64, 64, 96, 96]
    rates = [r["env_steps_per_second"] / r["samples_per_second"] for r in seen.trained]
    assert rates == pytest.approx([OF_EPOCH / samples] * 6)
    assert [(r["step"], r["env_steps"]) for r in seen.evaluated] == [(8, 64), (12, 96)]
    assert of_step == pytest.approx(OF_EPOCH / STEPS_OF_EPOCH)
    assert epochs == 3


def test_the_time_of_the_first_rollout_counts() -> None:
    """Two environments that take 10 ms a step make 8 steps; the epoch's four steps are faster."""
    data = {"env": "benchmarks.agents_slow:SlowPole", "arguments": {"milliseconds": 10}, "max_steps": 100}

    def run(comm: Communicator) -> body.Log:
        seen = body.Log()
        body.trainer(comm, configuration(data, epochs=1, env_steps=None, log_every=1), sinks=[seen]).run()
        return seen

    (seen,) = threads.run(1, run)
    (evaluated,) = seen.evaluated
    assert evaluated["seconds"] >= seen.trained[0]["collect_seconds"] >= 2 * 8 * 0.01


def test_steps_of_environments_count_as_they_are_learnt_from() -> None:
    progress = Progress(env_steps=96, new_env_steps=32, steps_of_epoch=4, step_in_epoch=1)
    assert progress.env_steps_learnt == 64 + 8
    progress.next_epoch()
    assert progress.env_steps_learnt == 96, "the next epoch has no samples yet"


def test_samples_have_no_rate_of_environment_steps() -> None:
    def run(comm: Communicator) -> list[Record]:
        seen = body.Log()
        body.trainer(comm, body.configuration(train={"steps": 2, "epochs": None, "log_every": 1}), sinks=[seen]).run()
        return seen.trained

    (trained,) = threads.run(1, run)
    assert {"lr", "samples_per_second"} <= set(trained[0])
    assert not {"env_steps", "env_steps_per_second"} & set(trained[0])


def test_lines_of_agents_fit_the_terminal_and_begin_with_what_matters() -> None:
    stream, long = io.StringIO(), -1.2345e-05
    sink = terminal.create(stream, None)
    sink.open({"title": "", "total_steps": 10, "first_step": 0})
    at = {"step": 123456, "epoch": 12345, "env_steps": 12_345_678}
    names = ("loss", "loss_policy", "entropy", "kl", "clip_share", "episode_length", "explained_variance", "policy_lag")
    sink.train({**at, **dict.fromkeys(names, long), "episode_return": 18.25, "env_steps_per_second": 10240.4})
    spread = dict.fromkeys(("return_median", "return_iqm", "return_min", "return_max", "episode_length"), long)
    sink.evaluation({**at, "return": 475.0, **spread, "success_rate": None, "staleness": 1.0})
    _, trained, evaluated = stream.getvalue().splitlines()
    assert trained.startswith(
        "train step 123456, 12,345,678 env steps: episode_return 18.25, 10,240 env steps/s, loss -1."
    )
    assert evaluated.startswith(
        "test  step 123456, 12,345,678 env steps: return 475, return_iqm -1.234e-05, episode_length"
    )
    assert "return_max" not in evaluated
    assert 100 < len(trained) <= 120
    assert len(evaluated) <= 120


def test_a_goal_of_an_agent_is_its_return_unless_it_names_another() -> None:
    found = configuration(converge={"value": 5}, early_stop={"metric": "episode_length"}).train
    assert found.converge is not None
    assert found.early_stop is not None
    assert (found.converge.metric, found.early_stop.metric) == ("return", "episode_length")
    plain = body.configuration(train={"converge": {"value": 5}}).train.converge
    assert plain is not None
    assert plain.metric == "accuracy"


@pytest.mark.parametrize(
    ("env", "actions", "longest", "returns"),
    [("CartPole-v1", "one of 2 choices", 500, (9, 60)), ("Pendulum-v1", "a number", 200, (-2000, -600))],
)
def test_a_survey_of_environments(env: str, actions: str, longest: int, returns: tuple[float, float]) -> None:
    config = configuration()
    config.data.env = env  # type: ignore[attr-defined]
    found = survey.survey(config, 2, [0])["environment"]
    assert (found["name"], found["actions"], found["most_steps"]) == (env, actions, longest)
    assert found["observation"] == ([4] if env == "CartPole-v1" else [3])
    played = found["random"]
    assert played["episodes"] == EPISODES
    assert returns[0] <= played["return_min"] <= played["return"] <= played["return_max"] < 100
    assert played["return"] < returns[1]
    assert survey.survey(config, 2, [0])["environment"] == found, "equal seeds play equal episodes"


def test_a_return_is_reached_in_two_evaluations_in_a_row() -> None:
    returns = [(1000, 480.0), (2000, 470.0), (3000, 475.0), (4000, 100.0), (4000, 490.0), (5000, 500.0)]
    evaluations = [{"env_steps": steps, "return": value} for steps, value in returns]
    assert reached(evaluations, 475) == 4000, "of two evaluations after equal steps the last one counts"
    assert reached(evaluations[:4], 475) is None
    assert reached(evaluations, 490) == 5000
