"""The files that show a search."""

from __future__ import annotations

from pathlib import Path

from cli.tune.show import configurations, table
from cli.tune.show.best import best_yaml
from cli.tune.show.page import page
from cli.tune.show.pictures.draw import draw
from cli.tune.show.search import Search
from hvd_train.text import strict_json


def save(search: Search, folder: Path, most: int) -> list[str]:
    """Write tables, pictures, best.yaml and report.html to `folder`.

    Return a sentence for each file that is left out. An earlier version of such a file is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ahead = configurations.best(search.configurations, search.objectives)
    best = best_yaml(search, ahead[0]) if ahead else None
    pictures = draw(search)
    texts = {
        "trials.csv": table.csv_text(search),
        "trials.json": strict_json.dumps(table.as_json(search), indent=1) + "\n",
        "report.html": page(search, most, best, pictures),
        "best.yaml": best,
    }
    contents = {name: None if text is None else text.encode() for name, text in texts.items()}
    contents |= {f"{picture.name}.png": picture.png for picture in pictures}
    for name, content in contents.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)
    return [
        *_without_best(bool(ahead), best),
        *(f"{picture.name}.png: {picture.note}" for picture in pictures if picture.note),
    ]


def _without_best(complete: bool, best: str | None) -> list[str]:
    if best is not None:
        return []
    why = "the file and the trial's config.json are gone." if complete else "no trial is complete."
    return [f"best.yaml is left out: {why}"]
