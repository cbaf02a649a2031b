"""Base classes of the sections of a configuration."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from hvd_train.config import plugins, targets
from hvd_train.errors import UserError, nearest

TARGET = "target"
"""The key of a section whose member is the user's own; also the name of the member."""
ARGS = "args"
"""The key of a section with a target that holds keyword arguments of any name."""


class Section(BaseModel):
    """A part of the configuration. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    shorthand: ClassVar[str | None] = None
    """The field that is meant if the section is written as a plain value, such as `ema: 0.999`."""


class PluginSection(Section):
    """A section that chooses a member of a family of plugins and holds the options of the member.

    `target: package.module:callable` in place of the name makes any callable a member. Its options
    stand beside `target`, or in `args` if the section has a field of the same name.
    """

    package: ClassVar[str]
    selector: ClassVar[str] = "name"
    """The key that holds the name of the member."""
    default: ClassVar[str | None] = None
    """The name of the member if none is written."""
    passed: ClassVar[tuple[str, ...]] = ()
    """Names of the arguments that ddl passes to the callable of a target, before the options."""
    takes_target: ClassVar[bool] = True
    """True if the member can be the user's own."""
    called_with: ClassVar[int] = 0
    """Arguments of the function that a target is itself; 0 if the target makes the member."""
    product: ClassVar[str] = "an object"
    """What the callable of a target has to return, for messages."""

    @classmethod
    def members(cls) -> list[str]:
        """Return the names of all members."""
        return plugins.names(cls.package)

    @classmethod
    def member_fields(cls, name: str) -> dict[str, Any]:
        """Return the options of the member `name` as fields for `pydantic.create_model`."""
        fields = plugins.options(cls.package, name).model_fields
        return {key: (info.annotation, info) for key, info in fields.items()}

    @classmethod
    def fields_with(cls, name: str) -> dict[str, Any]:
        """Return the fields that the section has besides if `name` is its member: the options of that."""
        return cls.member_fields(name)

    @classmethod
    def count_passed(cls, positional: Sequence[str]) -> int:
        """Return how many arguments ddl passes to a target with the `positional` parameters."""
        return len(cls.passed)

    @classmethod
    def unknown(cls, name: str) -> str:
        """Return what is wrong with `name`, which is no member."""
        return f"no '{name}' here{nearest(name, cls.members())}"

    @property
    def member(self) -> str:
        """The name of the chosen member; `target` if it is the user's own."""
        return str(getattr(self, self.selector))

    @property
    def label(self) -> str:
        """The name of the chosen member, or the target, for messages and summaries."""
        return str(getattr(self, TARGET)) if self.member == TARGET else self.member

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for `create` of the chosen member."""
        if self.member == TARGET:
            return {**getattr(self, ARGS), **(self.model_extra or {})}
        return {key: getattr(self, key) for key in self.member_fields(self.member)}

    def source(self) -> ast.Module | None:
        """Return the parsed module of the chosen member.

        Return None if a target has no Python source that can be read.
        """
        if self.member == TARGET:
            return targets.source(self.label)
        return plugins.source(self.package, self.member)

    def create(self, *arguments: Any, expected: Any = object) -> Any:
        """Return what `create(*arguments, **options)` of the chosen member returns.

        Raise UserError if a target cannot be imported or called with the options, or returns no
        `expected`.
        """
        if self.member == TARGET and self.called_with:
            return self._function()
        if self.member != TARGET:
            return plugins.create(self.package, self.member, *arguments, **self.options)
        function = targets.resolve(self.label)
        count = self.count_passed(targets.positional(function))
        made = targets.call(self.label, function, arguments[:count], self.options)
        if not isinstance(made, expected) or inspect.isclass(made):
            kind = f"the class {made.__name__}" if inspect.isclass(made) else f"a value of type {type(made).__name__}"
            raise UserError(f"target '{self.label}' returned {kind}, expected {self.product}")
        return made

    def _function(self) -> Any:
        """Return the function that the target is, with its options bound, or the object of a class."""
        called = targets.resolve(self.label)
        if inspect.isclass(called):
            return targets.call(self.label, called, (), self.options)
        return functools.partial(called, **self.options) if self.options else called
