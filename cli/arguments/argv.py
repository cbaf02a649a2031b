"""Split a command line into options of the command and words of the script that it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cli.launch.entrypoint import YAML
from hvd_train.errors import UserError

MODULE = ("-m", "--module")


@dataclass(frozen=True)
class Word:
    """One word.

    If it is an option that takes a value, that `option` and its `value`; `end` is the index after
    both.
    """

    text: str
    option: str | None
    value: str | None
    end: int


def for_parser(words: Sequence[str], valued: Collection[str]) -> list[str]:
    """Insert `--` before the words of a script, so that the parser takes none of them as an option.

    All words after a target that is not a YAML file, or after `-m MODULE`, belong to the script. If
    the first of them is `--`, it is dropped. `valued` are the options that take a value.
    """
    cut = next((word for word in _read(words, valued) if word.option in MODULE or _ends_options(word.text)), None)
    if cut is None:
        return list(words)
    is_module = cut.option in MODULE
    if is_module and cut.value is None:
        return list(words)
    end = cut.end if is_module else cut.end - 1
    own, rest = list(words[:end]), list(words[end:])
    if rest[:1] == ["--"]:
        del rest[0]
    if not is_module:
        if not rest or rest[0].endswith(YAML):
            return list(words)
        if rest[1:2] == ["--"]:
            del rest[1]
    return [*own, "--", *rest]


def check_values(
    words: Sequence[str], valued: Mapping[str, str], repeatable: Collection[str], known: Collection[str]
) -> None:
    """Raise UserError for an option that is given twice, and for an option without a value.

    `valued` maps each option that takes a value to its name in messages. Options in `repeatable`
    may be given twice. An empty value, or another `known` option in its place, is not a value,
    except for options with words for other programs, `--X-args`, which may have any value.
    """
    seen: set[str] = set()
    for word in _read(words, valued):
        if word.text == "--":
            return
        if word.option is None:
            continue
        name = valued[word.option]
        if not name.endswith("-args"):
            _check_value(name, word, is_apart=words[word.end - 1] == word.value, known=known)
        if name in seen:
            raise UserError(f"{name} is given twice; give it once")
        seen |= {name} - set(repeatable)


def _check_value(name: str, word: Word, *, is_apart: bool, known: Collection[str]) -> None:
    if word.value == "":
        raise UserError(f"{name}: expected a value, got ''")
    if is_apart and (word.value == "--" or word.value in known):
        raise UserError(f"{name}: expected a value before {word.value}")


def _read(words: Sequence[str], valued: Collection[str]) -> Iterator[Word]:
    end = 0
    while end < len(words):
        text = words[end]
        end += 1
        option, value = _option(text, valued)
        if option is not None and value is None and end < len(words):
            value = words[end]
            end += 1
        yield Word(text, option, value, end)


def _option(text: str, valued: Collection[str]) -> tuple[str | None, str | None]:
    """Return the valued option in `text`, and its value if it is in `text`: `--np=2`, `-qn2`."""
    if text.startswith("--"):
        name, equals, value = text.partition("=")
        return (name, value if equals else None) if name in valued else (None, None)
    letters = text[1:] if text.startswith("-") else ""
    at = next((i for i, letter in enumerate(letters) if f"-{letter}" in valued), None)
    return (None, None) if at is None else (f"-{letters[at]}", letters[at + 1 :] or None)


def _ends_options(text: str) -> bool:
    return text in {"-", "--"} or not text.startswith("-")
