"""Small trained runs of every kind of data, made in this process, for tests of what follows training."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import create as single
from hvd_train.config.document import Document
from hvd_train.config.launch import Launch
from hvd_train.config.resolve import resolve
from hvd_train.rank.assemble import Surroundings, assemble
from hvd_train.rank.build import build
from hvd_train.rank.run_folder import describe
from hvd_train.state.checkpoint_folder import CHECKPOINTS

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


def train(folder: Path, values: dict[str, Any], comm: Communicator | None = None) -> Path:
    """Train the configuration `values` and return the run folder, `folder`/run."""
    run = folder / "run"
    run.mkdir()
    config = resolve(Document(values, "test"))
    world = comm or single()
    built = build(config, world)
    trainer = assemble(config, world, built, Surroundings(checkpoints=run / CHECKPOINTS))
    describe(run, config, Launch(world_size=world.size, engine="single", output=str(run)), built.data)
    trainer.run()
    return run


def digits(folder: Path, **sections: Any) -> Path:
    """Train an mlp on pictures of digits: 10 classes, inputs (1, 8, 8)."""
    return train(
        folder,
        {
            "model": {"name": "mlp", "hidden": [32]},
            "data": {"name": "digits", "batch_size": 64},
            "optimizer": {"name": "AdamW", "lr": 0.01},
            "train": {"steps": 60, "eval_every": 60},
            **sections,
        },
    )


def table(folder: Path, **sections: Any) -> Path:
    """Train on `folder`/table.csv: two numbers and one category give one of two named classes."""
    draw = np.random.default_rng(0)
    x, size = draw.normal(size=(300, 2)), draw.choice(["small", "large"], 300)
    label = np.where(x[:, 0] + x[:, 1] + (size == "large") > 0.5, "yes", "no")
    rows = [f"{a:.4f},{b:.4f},{s},{y}" for (a, b), s, y in zip(x, size, label, strict=True)]
    path = folder / "table.csv"
    path.write_text("\n".join(["width,height,size,bought", *rows]) + "\n")
    data = {"name": "csv", "path": str(path), "target": "bought", "categorical": "onehot", "batch_size": 32}
    return train(folder, {**_quick(), "model": "mlp", "data": data, **sections})


def regression(folder: Path, **sections: Any) -> Path:
    """Train on `folder`/prices.csv: two numbers give one number, `price`."""
    x = np.random.default_rng(1).normal(size=(300, 2))
    rows = [f"{a:.4f},{b:.4f},{3 * a - 2 * b + 1:.4f}" for a, b in x]
    path = folder / "prices.csv"
    path.write_text("\n".join(["rooms,age,price", *rows]) + "\n")
    data = {"name": "csv", "path": str(path), "target": "price", "task": "regression", "batch_size": 32}
    return train(folder, {**_quick(), "model": "mlp", "data": data, **sections})


def text(folder: Path, **sections: Any) -> Path:
    """Train a language model on the bytes of `folder`/text.txt."""
    path = folder / "text.txt"
    path.write_text(TEXT)
    model = {"name": "transformer", "layers": 1, "width": 32, "heads": 2}
    data = {"name": "text", "paths": [str(path)], "length": 32, "batch_size": 8}
    return train(folder, {**_quick(), "model": model, "data": data, **sections})


SUBJECTS = {"animal": ["cat", "dog", "horse", "whale"], "food": ["bread", "rice", "soup", "cake"]}


def labelled_texts(folder: Path, rows: int = 120, **sections: Any) -> Path:
    """Train on `folder`/texts.csv: sentences of unequal length about an animal or a food."""
    draw = np.random.default_rng(4)
    lines = ["text,label"]
    for _ in range(rows):
        label = str(draw.choice([*SUBJECTS]))
        words = draw.choice(["the", "a", "my", "old", "new", "big", "is", "here"], int(draw.integers(1, 12)))
        lines.append(f'"{" ".join([*words, str(draw.choice(SUBJECTS[label]))])}",{label}')
    path = folder / "texts.csv"
    path.write_text("\n".join(lines) + "\n")
    data = {
        "name": "text_classification",
        "path": str(path),
        "tokenizer": {"name": "bpe", "vocabulary": 300},
        "batch_size": 16,
        "bucket": 4,
    }
    model = {"name": "embedding_bag", "width": 16, "hidden": [8]}
    return train(folder, {**_quick(), "model": model, "data": data, **sections})


def images(folder: Path, **sections: Any) -> Path:
    """Train a cnn on JPEG files in `folder`/pictures/{dark,light}: two classes, 16 x 16 pixels."""
    from PIL import Image

    draw = np.random.default_rng(2)
    for name, level in (("dark", 60), ("light", 190)):
        place = folder / "pictures" / name
        place.mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(draw.normal(level, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number:02}.jpg")
    data = {"name": "images", "path": str(folder / "pictures"), "size": 16, "batch_size": 8, "workers": 0}
    return train(folder, {**_quick(), "model": {"name": "cnn", "channels": [8]}, "data": data, **sections})


def audio(folder: Path, **sections: Any) -> Path:
    """Train on WAV files in `folder`/sounds/{high,low}: two classes, half a second each."""
    time = np.arange(4000) / 8000
    draw = np.random.default_rng(3)
    for name, pitch in (("high", 880.0), ("low", 220.0)):
        place = folder / "sounds" / name
        place.mkdir(parents=True)
        for number in range(12):
            samples = 0.5 * np.sin(2 * np.pi * pitch * time) + draw.normal(0, 0.05, 4000)
            with wave.open(str(place / f"{number:02}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    data = {"name": "audio", "path": str(folder / "sounds"), "rate": 8000, "seconds": 0.5, "batch_size": 8}
    return train(folder, {**_quick(), "model": "mlp", "data": {**data, "workers": 0}, **sections})


def cartpole(folder: Path, **sections: Any) -> Path:
    """Train an agent that chooses one of two actions for four numbers, which it normalises."""
    return _agent(folder, "CartPole-v1", **sections)


def pendulum(folder: Path, **sections: Any) -> Path:
    """Train an agent whose action is a number for three numbers, which it normalises."""
    return _agent(folder, "Pendulum-v1", **sections)


def _agent(folder: Path, env: str, **sections: Any) -> Path:
    return train(
        folder,
        {
            "model": {"name": "actor_critic", "hidden": [16]},
            "data": {"name": "gymnasium", "env": env, "envs": 4, "steps": 16, "batch_size": 64, "episodes": 2},
            "agent": {"name": "ppo", "passes": 2, "normalise_observations": True},
            "optimizer": {"name": "Adam", "lr": 0.003},
            "train": {"env_steps": 640},
            **sections,
        },
    )


KINDS = {"digits": digits, "table": table, "regression": regression, "text": text, "images": images, "audio": audio}


def _quick() -> dict[str, Any]:
    return {"optimizer": {"name": "AdamW", "lr": 0.01}, "train": {"steps": 30, "eval_every": 30}}
