"""As whom a client calls."""

from __future__ import annotations

from typing import Any

from aioetcd.types.value import Value


class User(Value):
    """Who calls.

    Attributes:
        name: The user's.
        password: The user's; it is not shown.
    """

    __slots__ = ("name", "password")

    name: str
    password: str

    @classmethod
    def checked(cls, username: str | None, password: str | None) -> User | None:
        """Give the user that these two name; None where neither is given.

        Raises:
            TypeError: One of them is missing, or no str.
            ValueError: One of them is empty.
        """
        if username is None and password is None:
            return None
        given: dict[str, Any] = {"username": username, "password": password}
        for name, text in given.items():
            if not isinstance(text, str):
                kind = "None" if text is None else type(text).__name__
                raise TypeError(
                    f"{name} must be a str, not {kind}: username and password go together"
                )
            if not text:
                raise ValueError(f"{name} must not be empty")
        return cls(given["username"], given["password"])

    def __repr__(self) -> str:
        """Show the name alone."""
        return f"<User {self.name}>"
