"""What a job of SLURM runs, for a YAML file."""

from __future__ import annotations

from collections.abc import Sequence

from cli.arguments.configuration import load, read
from cli.launch.entrypoint import YamlFile
from cli.runs.sweep import combinations
from cli.slurm.batch import FOLDER
from cli.slurm.submit import Submission


def yaml_work(entry: YamlFile, run_options: Sequence[str], sweep: Sequence[str] = ()) -> Submission:
    """Return the work of a YAML file under `ddl run` with `run_options`.

    UserError if one of the runs of the sweep has a mistake.
    """
    combined = combinations(sweep)
    config, document = read(entry.path, entry.overrides)
    for overrides in combined:
        load(entry.path, [*entry.overrides, *overrides])
    place = f"{document.place(('slurm', 'profile'))}: slurm.profile"
    run = (*run_options, "--output", FOLDER, "--resume", "latest", str(entry.path.absolute()), *entry.overrides)
    return Submission(entry.name, run, config.slurm, place, combined)
