"""One token for all calls: fetched once, renewed once, and nobody's haste is another one's loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import pytest

from aioetcd import (
    AuthenticationError,
    AuthNotEnabledError,
    ClientClosedError,
    DeadlineExceededError,
    EtcdError,
    NoEndpointError,
    UnavailableError,
)
from aioetcd._transport.supervisor import Supervisor
from aioetcd._transport.token import Tokens
from aioetcd.config.user import User
from tests.waiting import until

APP, OTHER = User("app", "right"), User("app", "new")


class Authority:
    """Who gives tokens, when it is told to.

    Attributes:
        asked: By whom it was asked.
        tokens: Those that have a token of it.
    """

    def __init__(self, user: User | None, supervisor: Supervisor) -> None:
        self.asked: list[User] = []
        self._answers: list[asyncio.Future[str]] = []
        self.tokens: Tokens = Tokens(user, authenticate=self._ask, spawn=supervisor.spawn)

    async def _ask(self, user: User) -> str:
        self.asked.append(user)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        return await answer

    async def answer(self, with_: str | BaseException, *, to: int = -1) -> None:
        """Answer a question, the last one by default, as soon as it is asked."""
        await until(lambda: bool(self._answers))
        if isinstance(with_, str):
            self._answers[to].set_result(with_)
        else:
            self._answers[to].set_exception(with_)


Make = Callable[[User | None], Authority]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes tokens, whose renewals are tasks as a client's are."""
    supervisor = Supervisor(lambda why, cause: None)
    supervisor.start(asyncio.get_running_loop())
    yield lambda user: Authority(user, supervisor)
    supervisor.end("the test is over")
    await supervisor.aclose()


async def ends(waiters: list[asyncio.Task[None]]) -> list[BaseException | None]:
    """How they end."""
    with anyio.fail_after(5):
        return await asyncio.gather(*waiters, return_exceptions=True)


def wait(authority: Authority, count: int = 1) -> list[asyncio.Task[None]]:
    """Have so many wait for the token."""
    return [asyncio.create_task(authority.tokens.wait()) for _ in range(count)]


async def sign_in(authority: Authority, token: str) -> None:
    """Get a token."""
    (waiter,) = wait(authority)
    asked = len(authority.asked)
    await until(lambda: len(authority.asked) == asked + 1)
    await authority.answer(token)
    await waiter


def test_a_password_is_not_shown() -> None:
    """Neither in logs nor in tracebacks."""
    assert "right" not in repr(APP)
    assert "app" in repr(APP)


async def test_nobody_has_no_token(make: Make) -> None:
    """Without a user nothing is asked, and nothing is waited for."""
    authority = make(None)
    assert not authority.tokens.is_missing
    await authority.tokens.wait()
    assert not authority.tokens.refused(authority.tokens.generation)
    assert (authority.tokens.metadata, authority.asked) == ((), [])


async def test_fifty_wait_for_one(make: Make) -> None:
    """However many wait, one asks."""
    authority = make(APP)
    assert authority.tokens.is_missing
    waiters = wait(authority, 50)
    await authority.answer("t1")
    assert await ends(waiters) == [None] * 50
    assert authority.asked == [APP]
    assert authority.tokens.asked == 1
    assert authority.tokens.metadata == (("token", "t1"),)
    assert not authority.tokens.is_missing


async def test_fifty_are_refused_and_one_asks(make: Make) -> None:
    """However many were refused with the same token, it is renewed once."""
    authority = make(APP)
    await sign_in(authority, "t1")
    generation = authority.tokens.generation
    assert all(authority.tokens.refused(generation) for _ in range(50))
    waiters = wait(authority, 50)
    await until(lambda: len(authority.asked) == 2)
    await authority.answer("t2")
    assert await ends(waiters) == [None] * 50
    assert authority.tokens.asked == 2
    assert authority.tokens.generation == generation + 1
    assert authority.tokens.metadata == (("token", "t2"),)


@pytest.mark.parametrize("which", [0, 1, -1])
async def test_a_waiter_that_is_cancelled_harms_nobody(make: Make, which: int) -> None:
    """Also the one that came first, for whom the token was asked for."""
    authority = make(APP)
    waiters = wait(authority, 5)
    await until(lambda: bool(authority.asked))
    given_up = waiters.pop(which)
    given_up.cancel()
    assert isinstance((await ends([given_up]))[0], asyncio.CancelledError)
    await authority.answer("t1")
    assert await ends(waiters) == [None] * 4
    assert len(authority.asked) == 1


async def test_the_token_comes_though_all_have_given_up(make: Make) -> None:
    """The next one has it, and does not ask again."""
    authority = make(APP)
    waiters = wait(authority, 3)
    await until(lambda: bool(authority.asked))
    for waiter in waiters:
        waiter.cancel()
    await ends(waiters)
    await authority.answer("t1")
    await until(lambda: not authority.tokens.is_missing)
    await authority.tokens.wait()
    assert len(authority.asked) == 1


async def test_a_late_refusal_renews_nothing(make: Make) -> None:
    """What was sent with the token before is refused late: the one now may be good."""
    authority = make(APP)
    await sign_in(authority, "t1")
    old = authority.tokens.generation
    assert authority.tokens.refused(old)
    await sign_in(authority, "t2")
    assert authority.tokens.refused(old)  # another one helps: it is there
    assert not authority.tokens.is_missing
    await authority.tokens.wait()
    assert authority.tokens.metadata == (("token", "t2"),)
    assert len(authority.asked) == 2


async def test_a_refusal_while_it_is_renewed(make: Make) -> None:
    """Who is refused while the renewal goes on waits for that one."""
    authority = make(APP)
    await sign_in(authority, "t1")
    old = authority.tokens.generation
    assert authority.tokens.refused(old)
    waiters = wait(authority)
    await until(lambda: len(authority.asked) == 2)
    assert authority.tokens.refused(old)
    waiters += wait(authority)
    await authority.answer("t2")
    assert await ends(waiters) == [None, None]
    assert len(authority.asked) == 2


async def test_a_wrong_password_fails_all_and_is_asked_again(make: Make) -> None:
    """Each who waits has an error of its own, and the next one to ask tries again."""
    authority = make(APP)
    waiters = wait(authority, 3)
    cause = ValueError("what gRPC said")
    refusal = AuthenticationError(
        "authentication failed", code="INVALID_ARGUMENT", details="no", endpoint="e"
    )
    refusal.__cause__ = cause
    await authority.answer(refusal)
    errors = await ends(waiters)
    assert [type(error) for error in errors] == [AuthenticationError] * 3
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert isinstance(error, AuthenticationError)
        assert str(error) == str(refusal)
        assert (error.code, error.details, error.endpoint) == ("INVALID_ARGUMENT", "no", "e")
        assert error.__cause__ is cause
    assert len(authority.asked) == 1
    assert authority.tokens.is_missing
    await sign_in(authority, "t1")
    assert len(authority.asked) == 2
    assert authority.tokens.metadata == (("token", "t1"),)


async def test_a_failure_that_nobody_waits_for(make: Make) -> None:
    """It is no error of asyncio's, and the next one asks again."""
    authority = make(APP)
    waiters = wait(authority)
    await until(lambda: bool(authority.asked))
    waiters[0].cancel()
    await ends(waiters)
    await authority.answer(UnavailableError("it stops"))
    await until(lambda: authority.tokens._renewal is None)
    await sign_in(authority, "t1")
    assert len(authority.asked) == 2


async def test_without_authentication_there_is_no_token(make: Make) -> None:
    """A cluster whose authentication is off is asked once, and then called without a token."""
    authority = make(APP)
    waiters = wait(authority, 3)
    await authority.answer(AuthNotEnabledError("authentication is not enabled"))
    assert await ends(waiters) == [None] * 3
    assert not authority.tokens.metadata
    assert not authority.tokens.is_missing
    assert len(authority.asked) == 1
    # It is on by now: who is refused for having none gets one.
    assert authority.tokens.refused(authority.tokens.generation)
    await sign_in(authority, "t1")
    assert authority.tokens.metadata == (("token", "t1"),)


@pytest.mark.parametrize("end", ["t1", AuthenticationError("wrong"), AuthNotEnabledError("off")])
async def test_the_user_changes_while_it_is_renewed(make: Make, end: str | EtcdError) -> None:
    """Whatever the one before is told, all wait for the token of the one now."""
    authority = make(APP)
    waiters = wait(authority, 3)
    await until(lambda: len(authority.asked) == 1)
    generation = authority.tokens.generation
    authority.tokens.change(OTHER)
    assert authority.tokens.generation == generation + 1
    waiters += wait(authority, 2)
    await until(lambda: len(authority.asked) == 2)
    await authority.answer(end, to=0)
    await authority.answer("t2", to=1)
    assert await ends(waiters) == [None] * 5
    assert authority.asked == [APP, OTHER]
    assert authority.tokens.metadata == (("token", "t2"),)


async def test_the_user_changes_to_nobody(make: Make) -> None:
    """Then no token is sent, and nobody waits for one."""
    authority = make(APP)
    await sign_in(authority, "t1")
    authority.tokens.change(None)
    assert not authority.tokens.metadata
    assert not authority.tokens.is_missing
    await authority.tokens.wait()
    assert len(authority.asked) == 1


async def test_another_user_before_the_old_ones_token_is_refused(make: Make) -> None:
    """A refusal of the user before does not take the token of the one now."""
    authority = make(APP)
    await sign_in(authority, "t1")
    old = authority.tokens.generation
    authority.tokens.change(OTHER)
    await sign_in(authority, "t2")
    assert authority.tokens.refused(old)
    assert not authority.tokens.is_missing


@pytest.mark.parametrize(
    "late", [DeadlineExceededError("late"), NoEndpointError("nobody", reasons={})]
)
async def test_a_renewal_that_is_late_fails_nobody(make: Make, late: EtcdError) -> None:
    """It was asked for with the client's deadline; who waits has one of its own."""
    authority = make(APP)
    waiters = wait(authority, 3)
    await authority.answer(late)
    await until(lambda: len(authority.asked) == 2)
    await authority.answer("t1")
    assert await ends(waiters) == [None] * 3
    assert len(authority.asked) == 2


async def test_no_renewal_begins_after_the_end() -> None:
    """All who come then are told, and not only the first."""
    supervisor = Supervisor(lambda why, cause: None)
    authority = Authority(APP, supervisor)
    for _ in range(2):
        with anyio.fail_after(5), pytest.raises(ClientClosedError):
            await authority.tokens.wait()


@pytest.mark.parametrize("started", [False, True])
async def test_a_renewal_that_is_cancelled_gives_no_token(started: bool) -> None:
    """Whoever cancels all tasks ends the client: who waits is told, and has not signed in."""
    tasks: list[asyncio.Task[None]] = []
    asked = asyncio.Event()

    async def authenticate(user: User) -> str:
        asked.set()
        await asyncio.Event().wait()
        return "t1"

    def spawn(job: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(job(), name=name))
        return tasks[-1]

    tokens = Tokens(APP, authenticate=authenticate, spawn=spawn)
    waiter = asyncio.create_task(tokens.wait())
    await asyncio.sleep(0)  # the waiter's first step
    assert len(tasks) == 1
    if started:
        await asked.wait()
    tasks[0].cancel()
    with anyio.fail_after(5), pytest.raises(ClientClosedError):
        await waiter
    assert tokens.is_missing
