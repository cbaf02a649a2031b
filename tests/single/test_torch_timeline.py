"""The Chrome trace of Horovod's API; what it contains under real ranks is in tests/parallel/test_horovod_settings.py."""

from __future__ import annotations

import json
from pathlib import Path

from hvd_train.torch._negotiation import Key
from hvd_train.torch._timeline import Timeline


def test_the_file_is_whole_after_every_flush_and_closing_ends_it(tmp_path: Path) -> None:
    """The thread that drives may still write when another one closes it."""
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
