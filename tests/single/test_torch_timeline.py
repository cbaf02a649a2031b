"""The Chrome trace of hvd_train.torch; tests/parallel/test_horovod_settings.py runs it on ranks."""

from __future__ import annotations

import json
from pathlib import Path

from hvd_train.torch.requests import Key
from hvd_train.torch.timeline import Timeline


def test_the_file_is_whole_after_every_flush_and_closing_ends_it(tmp_path: Path) -> None:
    """The driving thread may still write when another thread closes the file."""
    path = tmp_path / "timeline.json"
    timeline = Timeline(str(path), mark_cycles=True)
    lengths = []
    for number in range(3):
        timeline.cycle()
        timeline.operation(Key(0, "allreduce", f"t{number}", 0), 0.0, 1.0, 2.0)
        timeline.flush()
        lengths.append(len(json.loads(path.read_text())))
    timeline.close()
    timeline.operation(Key(0, "allreduce", "late", 0), 0.0, 1.0, 2.0)
    timeline.flush()
    timeline.close()
    assert lengths == sorted(set(lengths))
    assert len(json.loads(path.read_text())) == lengths[-1]
