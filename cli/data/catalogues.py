"""Pairs of messages in two languages, from the gettext catalogues inside of packages."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from zipfile import ZipFile

Row = tuple[str, str, str]
"""A message in English, its translation, and the package."""

LITTLE, BIG = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"
"""The first bytes of a compiled catalogue (.mo), by the order of bytes in its numbers."""
_ENTRY = re.compile(r'(?:(msg\w+(?:\[\d+\])?)\s*)?("(?:[^"\\]|\\.)*")')
_CONTEXT, _PLURAL = "\x04", "\0"
_PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[-+ #0]*\d*(\.\d+)?[a-zA-Z%]|\{[^{}]*\}|<[^<>]*>|&\w+;")
_LETTER = re.compile(r"[^\W\d_]")


def pairs(packages: Mapping[str, ZipFile], language: str) -> Iterator[Row]:
    """Yield the different pairs of an English message and its translation, in the order of the packages.

    `language` is one such as `fr`. A package that has it with a country only counts with that of the same
    letters (`fr_FR`). A catalogue is read in its compiled form (.mo), which holds no translations that are
    marked fuzzy, or else as text (.po). A message with plural forms counts with its first one. White space
    becomes one space. Messages without a letter outside of placeholders and tags are left out.
    """
    seen: set[tuple[str, str]] = set()
    for package, archive in packages.items():
        for name in catalogues(archive.namelist(), language):
            read = compiled if name.endswith(".mo") else written
            for source, target in read(archive.read(name)):
                pair = " ".join(source.split()), " ".join(target.split())
                if pair not in seen and all(map(_has_words, pair)):
                    seen.add(pair)
                    yield *pair, package


def catalogues(names: list[str], language: str) -> list[str]:
    """Return the names of the catalogues of `language`, sorted: .mo files, and .po files that have none."""
    for folder in (language, f"{language}_{language.upper()}"):
        found = {name for name in names if f"/{folder}/LC_MESSAGES/" in name and name[-3:] in (".mo", ".po")}
        if found:
            return sorted(name for name in found if name.endswith(".mo") or f"{name[:-3]}.mo" not in found)
    return []


def compiled(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the messages of a .mo file and their translations; ValueError for other content.

    The format is in the manual of GNU gettext, "The Format of GNU MO Files".
    """
    if content[:4] not in (LITTLE, BIG):
        raise ValueError("not a compiled catalogue of gettext (.mo)")
    order = "<" if content[:4] == LITTLE else ">"
    try:
        number, sources, targets = struct.unpack_from(f"{order}3I", content, 8)
        for i in range(number):
            source = _text(content, order, sources + 8 * i)
            target = _text(content, order, targets + 8 * i)
            if source:  # the empty message has the translation of the header
                yield source.rpartition(_CONTEXT)[2], target
    except struct.error as error:
        raise ValueError(f"a compiled catalogue that is not whole: {error}") from error


def written(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the messages of a .po file and their translations, without those that are fuzzy or obsolete.

    The format is in the manual of GNU gettext, "The Format of PO Files".
    """
    for block in re.split(r"\n\s*\n", content.decode().replace("\r\n", "\n")):
        entry: dict[str, str] = {}
        key, fuzzy = "", False
        for line in block.splitlines():
            fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
            found = _ENTRY.fullmatch(line.strip())
            if found:
                key = found[1] or key
                entry[key] = entry.get(key, "") + json.loads(found[2], strict=False)
        target = entry.get("msgstr") or entry.get("msgstr[0]")
        if entry.get("msgid") and target and not fuzzy:
            yield entry["msgid"], target


def _text(content: bytes, order: str, at: int) -> str:
    """Return the text whose length and position stand at byte `at`, without further plural forms."""
    length, start = struct.unpack_from(f"{order}2I", content, at)
    return content[start : start + length].decode().partition(_PLURAL)[0]


def _has_words(text: str) -> bool:
    return _LETTER.search(_PLACEHOLDER.sub("", text)) is not None
