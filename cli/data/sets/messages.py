"""Messages of eight programs in English, with their translations into French, German and Spanish."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from cli.data.catalogues import pairs
from cli.data.fetching import FetchedSet, Wheel

LANGUAGES = ("fr", "de", "es")
WHEELS = (
    Wheel("indico", "3.2.9", 30_004_029, "194d2e31ccaabd2b9af7809e67d60d942faee35a6b4de36f0c2c280a32ed84c3"),
    Wheel("spyder", "6.1.8", 14_481_595, "4da836742a7138c93392a8a0bd1a5ff40002cf92d217ef0e7bed11b522322f90"),
    Wheel("django", "5.2.19", 8_319_631, "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    Wheel("django-oscar", "4.2.1", 8_984_805, "adbb95ea0130859c204cc6fb221052d6d437ecbaa90800e8418a809f72645e9c"),
    Wheel("wagtail", "8.0.1", 9_841_588, "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c"),
    Wheel("sphinx", "9.0.4", 3_917_713, "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb"),
    Wheel("django-cms", "5.1.3", 3_562_685, "acf31919aab389d2bea253efa97a901bf55e96046a252f23a7a742e495848a5e"),
    Wheel("djangorestframework", "3.18.3", 903_986, "8544bb674846731b1e3c9b309236ee1dc412905a0aa725be2ec193ca950a7d12"),
)


def create() -> FetchedSet:
    return FetchedSet(
        WHEELS,
        licence="MIT (indico, spyder) and BSD (the other packages)",
        rows="en-fr.tsv: 13,050 pairs, en-de.tsv: 11,759, en-es.tsv: 11,878; columns source, target, package",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    named = {wheel.name: archive for wheel, archive in zip(WHEELS, archives, strict=True)}
    for language in LANGUAGES:
        with (folder / f"en-{language}.tsv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter="\t", lineterminator="\n")
            rows.writerow(("source", "target", "package"))
            rows.writerows(pairs(named, language))
