"""Environment steps per second of PPO in stable-baselines3 on CartPole, for `benchmarks.agents`.

Usage: `PYTHON benchmarks/agents_sb3.py ENV_STEPS`, by a Python that has stable-baselines3. The
network and the hyper-parameters are those of `benchmarks.agents.PPO`.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    from stable_baselines3 import PPO  # type: ignore[import-not-found]
    from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

    env_steps = int(sys.argv[1])
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=0),
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=lambda left: 0.001 * left,
        clip_range=lambda left: 0.2 * left,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        device="cpu",
        seed=0,
    )
    begin = time.perf_counter()
    model.learn(env_steps)
    print(json.dumps({"env_steps_per_second": model.num_timesteps / (time.perf_counter() - begin)}))


if __name__ == "__main__":
    main()
