"""What values have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, dataclass_transform


def short(data: bytes) -> str:
    """Show bytes, of long ones the beginning and the length."""
    return repr(data) if len(data) <= 48 else f"{data[:40]!r}...({len(data)} bytes)"


@dataclass_transform(frozen_default=True, eq_default=True)
class Value:
    """A frozen value: what its class annotates are its fields, in order, each with a slot.

    For type checkers it is a frozen dataclass. Those of the standard library generate and compile
    code for each class at each import.
    """

    __slots__ = ()

    __match_args__: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[tuple[str, ...]]
    _puts: ClassVar[tuple[Callable[[Value, Any], None], ...]]  # the slots' own, past __setattr__

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs or len(args) != len(self._names):
            args = self._in_order(args, kwargs)
        for put, value in zip(self._puts, args, strict=True):
            put(self, value)

    def __init_subclass__(cls) -> None:
        """Note the fields; patterns may name them by position."""
        inherited = () if cls.__base__ is Value else cls._names
        cls._names = inherited + tuple(cls.__annotations__)
        cls.__match_args__ = cls._names  # type: ignore[misc]
        cls._puts = tuple([getattr(cls, name).__set__ for name in cls._names])

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Give what was passed by position and by name, if it is each field once."""
        late = self._names[len(args) :]
        if len(args) > len(self._names) or kwargs.keys() != set(late):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self._names)}")
        return args + tuple([kwargs[name] for name in late])

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse."""
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> None:
        """Refuse."""
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __eq__(self, other: object) -> bool:
        """Equal where the types and all fields are."""
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        """Hash all fields."""
        return hash(self._values())

    def __copy__(self) -> Self:
        """Give itself: it cannot be changed."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Give itself: what is in it is not to be changed either."""
        return self

    def __replace__(self, **changes: Any) -> Self:
        """Give a value with other fields, for `copy.replace`."""
        return type(self)(**dict(zip(self._names, self._values(), strict=True)) | changes)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """Give what makes it again, for pickles."""
        return type(self), self._values()

    def __repr__(self) -> str:
        """Show all fields."""
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)
        return f"{type(self).__name__}({fields})"

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self._names])
