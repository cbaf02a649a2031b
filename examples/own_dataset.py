"""A data set whose samples are dicts, and a model that takes their values by name, for `own_dataset.yaml`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

POINTS, SENSORS = 64, 4


class Readings(Dataset[dict[str, Tensor]]):
    """Waves that one of four sensors has measured. The class is the frequency; each sensor has an offset."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.targets = [i % 3 for i in range(samples)]
        """Classes by position. ddl reads this list to divide the samples, and no sample for it."""

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + index)
        sensor = torch.randint(SENSORS, (), generator=generator)
        phase = 6.28 * torch.rand((), generator=generator)
        wave = torch.sin(torch.linspace(0, 6.28 * (1 + self.targets[index]), POINTS) + phase)
        noise = 0.3 * torch.randn(POINTS, generator=generator)
        return {"wave": wave + noise + sensor, "sensor": sensor, "label": torch.tensor(self.targets[index])}


class Classifier(nn.Module):
    """Subtracts the offset that it has learned for the sensor, and classifies the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Embedding(SENSORS, 1)
        self.layers = nn.Sequential(nn.Linear(POINTS, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, wave: Tensor, sensor: Tensor) -> Tensor:
        out: Tensor = self.layers(wave - self.offset(sensor))
        return out


def readings(samples: int) -> tuple[Readings, Readings]:
    """Return training and test samples."""
    return Readings(samples, seed=0), Readings(samples // 4, seed=samples)
