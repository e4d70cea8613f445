"""Names of interchangeable parts."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", bound=type)


class Registry:
    """A mapping from names to classes, filled by a decorator.

    Args:
        kind: what the classes are, for messages.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that makes the class known as `name`.

        Raises:
            ValueError: if the name is taken.
        """

        def decorate(cls: T) -> T:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is already registered as {self._classes[name].__name__}.")
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> tuple[str, ...]:
        """All registered names, in the order of registration."""
        return tuple(self._classes)

    def __getitem__(self, name: str) -> type:
        if name not in self._classes:
            raise ValueError(f"unknown {self.kind} {name!r}; there are {', '.join(map(repr, self._classes))}.")
        return self._classes[name]
