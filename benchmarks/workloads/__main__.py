"""Measure the workloads of `examples`, and write `benchmarks/workloads.md`.

Run `python -m benchmarks.workloads` on an idle machine, for hours. Each finished row is appended to
`rows.jsonl` in the folder `--output`, and is not run again. benchmarks/README.md describes it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.workloads import pages, pictures
from benchmarks.workloads.cases import PARTS, ROOT, SPARSE_ROWS, WORKLOADS, Case, plan, ratings_file
from benchmarks.workloads.measured import Row, measure


def main() -> None:
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / ("quick.jsonl" if options.quick else "rows.jsonl")
    rows = read(file)
    if "sparse" in options.parts:
        for number in SPARSE_ROWS:
            write_ratings(options.output / ratings_file(number), number)
    cases = plan(options.parts, options.names, options.seeds, options.np, options.output.resolve(), quick=options.quick)
    run(cases, rows, file, options.output)
    text = pages.page(rows, command=_command(options))
    options.page.write_text(text, encoding="utf-8") if options.page else print(text)
    if options.pictures:
        pictures.draw(rows, options.output, options.pictures)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workloads", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)}; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--np", type=_numbers, default=[1, 2], help="numbers of ranks, such as 1,2")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="four steps each, to see that everything runs")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "workloads", help="folder of rows and run folders"
    )
    parser.add_argument("--page", type=Path, help="file for the tables, such as benchmarks/workloads.md; else printed")
    parser.add_argument("--pictures", type=Path, help="folder for pictures and tables of answers, such as docs/images")
    options = parser.parse_args()
    options.names = options.names or list(WORKLOADS)
    for given, known in ((options.names, WORKLOADS), (options.parts, PARTS)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _command(options: argparse.Namespace) -> str:
    names = (
        [f'"{name}"' if " " in name else name for name in options.names] if len(options.names) < len(WORKLOADS) else []
    )
    length = ["--quick"] if options.quick else []
    return " ".join(["python -m benchmarks.workloads", *names, f"--seeds {options.seeds}", *length])


def read(file: Path) -> dict[str, Row]:
    """Return the finished rows by key; the last one counts."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def run(cases: Sequence[Case], rows: dict[str, Row], file: Path, output: Path) -> None:
    """Run the cases without a row, or with one that failed, and append their rows to `file`."""
    left = [case for case in cases if not finished(rows.get(case.key))]
    for number, case in enumerate(left, 1):
        remaining = sum(expected(other, rows) for other in left[number - 1 :]) / 60
        print(f"[{number}/{len(left)}] {case.key}; about {remaining:.0f} min left", end=" ", flush=True)
        folder = output / "runs" / case.workload.replace(" ", "-") if case.kept else output / "now"
        row = measure(case, folder)
        row["day"] = time.strftime("%Y-%m-%d")
        rows[case.key] = row
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{row['seconds']:.1f} s, {row.get('error') or row['metrics']}", flush=True)
    shutil.rmtree(output / "now", ignore_errors=True)


def finished(row: Row | None) -> bool:
    """Tell whether there is a row that need not be run again. A refusal (exit code 2) of a layout is a result."""
    return row is not None and ("error" not in row or (row["part"] == "layouts" and row["code"] == 2))


def expected(case: Case, rows: Mapping[str, Row]) -> float:
    """Return about how many seconds `case` takes: as other seeds of it, or as its workload."""
    alike = [row["seconds"] for row in rows.values() if (row["part"], row["workload"], row["variant"]) == _kind(case)]
    return median(alike) if alike else case.seconds


def _kind(case: Case) -> tuple[str, str, str]:
    return case.part, case.workload, case.variant


def write_ratings(file: Path, rows: int, seed: int = 0) -> None:
    """Write random ratings of `rows` users and as many items, each of which occurs."""
    if file.exists():
        return
    generator = np.random.default_rng(seed)
    times = max(2, 20_000 // rows)
    user = np.concatenate([generator.permutation(rows) for _ in range(times)])
    item = np.concatenate([generator.permutation(rows) for _ in range(times)])
    rating = generator.integers(1, 6, len(user))
    with file.open("w", encoding="utf-8") as stream:
        stream.write("user,item,rating,time\n")
        stream.writelines(f"{u},{i},{r},{n}\n" for n, (u, i, r) in enumerate(zip(user, item, rating, strict=True)))


if __name__ == "__main__":
    main()
