"""Classes that users name in annotations and get from a client, but do not make themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class NoPublicConstructor(type):
    """Makes calling a class an error; `create` is how we make an instance."""

    # A type checker is to see the constructor, so that it checks the arguments of `create`.
    if not TYPE_CHECKING:

        def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
            raise TypeError(
                f"{cls.__name__} has no public constructor: help(aioetcd.{cls.__name__}) says what "
                "gives one"
            )


class PublicConstructor(NoPublicConstructor):
    """For a class that users do make, though not what it is made from."""

    if not TYPE_CHECKING:
        __call__ = type.__call__


if TYPE_CHECKING:

    def create(cls: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make an instance of a class that has no public constructor."""
else:
    create = type.__call__
