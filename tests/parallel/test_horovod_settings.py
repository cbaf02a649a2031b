"""Settings of the environment.

They are apart from other bodies because Horovod, initialized again after these, hangs or ends the
process.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from tests.bodies.horovod_api.base import WORLD, Hvd, same, works


@pytest.mark.parametrize("asked", ["environment", "script"])
def test_timeline_is_a_chrome_trace_that_names_the_tensors(
    asked: str, module: Hvd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(WORLD.bcast(str(tmp_path))) / "timeline.json"
    monkeypatch.setenv("HOROVOD_TIMELINE", str(file) if asked == "environment" else "DYNAMIC")
    monkeypatch.setenv("HOROVOD_FUSION_THRESHOLD", "0")
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "0.5")
    module.init()
    if asked == "script":
        module.start_timeline(str(file), mark_cycles=True)
        time.sleep(0.1)
    for _ in range(3):
        works(module)
        module.allgather(torch.ones(2), name="layer.weight")
    handles = [module.allreduce_async(torch.full((5,), float(i)), op=module.Sum, name=f"t{i}") for i in range(50)]
    for i, handle in enumerate(handles):
        same(module.synchronize(handle), torch.full((5,), float(i * module.size())))
    if asked == "script":
        module.stop_timeline()
    WORLD.Barrier()
    module.shutdown()
    if WORLD.rank == 0:
        events = [event for event in json.loads(file.read_text()) if event]
        named = {event["args"].get("name") for event in events if event["ph"] == "M"}
        assert {"allreduce.works", "allgather.layer.weight"} <= named
        assert {"NEGOTIATE_ALLREDUCE", "ALLREDUCE", "ALLGATHER"} <= {event.get("name") for event in events}
        began = [event["args"].get("start_time_since_epoch_in_micros") for event in events if event["ph"] == "M"]
        assert any(abs(time.time() - micros / 1e6) < 600 for micros in began if micros)
        assert all(event["ts"] >= 0 for event in events if event["ph"] in "BEX")
