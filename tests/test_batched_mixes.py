"""Any mix of callers, refusals, cancellations and faults: each batched call tells the truth."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import count, pairwise
from time import monotonic
from typing import Any, ClassVar, Literal

import anyio
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from aioetcd import (
    Client,
    DeadlineExceededError,
    EtcdError,
    KeyNotFoundError,
    LeaseNotFoundError,
    NoEndpointError,
    RequestTooLargeError,
    UnavailableError,
)
from aioetcd._constructor import create
from aioetcd._proto import rpc_pb2
from aioetcd._transport.calls import Calls, Relayed
from aioetcd._transport.methods import TXN
from aioetcd.kv import KV
from aioetcd.kv._batched import Batched
from aioetcd.testing import EtcdServer, FaultProxy
from aioetcd.testing.checkers import Oracle, assert_clean, check_oracle
from aioetcd.testing.history import Recorder
from tests.test_batched import until_idle
from tests.waiting import Lateness, lateness

EXAMPLES = int(os.environ.get("AIOETCD_TEST_EXAMPLES", "60"))
PREFIXES = count()
SMALL_REQUEST = 2000
"""Bytes that the server takes at the most, so that a txn may have too many."""

Kind = Literal["get", "put", "delete", "bad lease", "bad key", "too large"]
Fault = Literal["none", "late", "cut", "cut in an answer", "hole", "long hole", "refused"]

REFUSED: dict[Kind, type[EtcdError]] = {
    "bad lease": LeaseNotFoundError,
    "bad key": KeyNotFoundError,
    "too large": RequestTooLargeError,
}
"""What is said of a call that is wrong, whatever it travels with."""

ENDS = ("ok", "LeaseNotFoundError", "RequestTooLargeError", "TooManyOpsError")
"""How txns must have ended, each once and more, or nothing was shown."""

BROKEN = (DeadlineExceededError, NoEndpointError, UnavailableError)
"""What a fault of the network may be told as."""


@dataclass(frozen=True)
class Planned:
    """A call.

    Attributes:
        kind: What it does.
        key: To which key.
        begins: In which turn of the loop it is made.
        gives_up: So many turns later it is cancelled; None for never.
        timeout: Its deadline in seconds; None for none.
    """

    kind: Kind
    key: int
    begins: int
    gives_up: int | None
    timeout: float | None


@dataclass(frozen=True)
class Round:
    """Calls that are made at about the same time, and what happens to the network meanwhile."""

    calls: list[Planned]
    fault: Fault
    strikes: int


CALLS = st.builds(
    Planned,
    kind=st.sampled_from(
        [*["put"] * 8, *["get"] * 5, *["delete"] * 3, *["bad lease"] * 2, "bad key", "too large"]
    ),
    key=st.integers(0, 5),
    begins=st.integers(0, 12),
    gives_up=st.sampled_from([*[None] * 6, 0, 1, 2, 3, 5, 8, 13]),
    timeout=st.sampled_from([5.0, 5.0, 5.0, None, 0.3, 0.02]),
)
ROUNDS = st.builds(
    Round,
    calls=st.lists(CALLS, min_size=1, max_size=40),
    fault=st.sampled_from(Fault.__args__),  # type: ignore[attr-defined]
    strikes=st.integers(0, 12),
)
FULL = [
    Planned("bad lease" if n == 7 else "too large" if n == 33 else "put", n, 0, None, 5.0)
    for n in range(40)
]
"""More than go into a txn, and some that are refused."""


@dataclass
class Made:
    """A call that was made, and what became of it; without an answer and an error, it gave up."""

    plan: Planned
    value: bytes
    known: int
    """The greatest revision that anybody had been told of when it began."""
    is_broken: bool
    """Whether the network was broken before it ended."""
    seconds: float = 0.0
    answer: Any = None
    error: EtcdError | None = None


@dataclass
class Mix:
    """A client's batched calls, and the model that they are held against."""

    kv: KV
    sent: set[bytes]
    proxy: FaultProxy
    prefix: bytes
    late: Lateness
    is_broken: bool = False
    known: int = 0
    made: list[Made] = field(default_factory=list)

    def key(self, number: int) -> bytes:
        """Name a key."""
        return self.prefix + b"%d" % number

    async def happen(self, each: Round) -> None:
        """Make the calls of a round, and its fault."""
        self.is_broken = self.is_broken or each.fault not in ("none", "late")
        async with asyncio.TaskGroup() as tasks:
            for planned in each.calls:
                tasks.create_task(self._make(planned))
            tasks.create_task(self._strike(each))

    async def _make(self, planned: Planned) -> None:
        await _turns(planned.begins)
        made = Made(planned, b"%d." % len(self.made) + bytes(150), self.known, self.is_broken)
        self.made.append(made)
        call = asyncio.create_task(self._call(made))
        if planned.gives_up is not None:
            await _turns(planned.gives_up)
            call.cancel()
        await asyncio.wait({call})
        if call.cancelled():
            assert planned.gives_up is not None, "somebody was cancelled whom nobody cancelled"
        else:
            call.result()

    async def _call(self, made: Made) -> None:
        kv, planned, began = self.kv, made.plan, monotonic()
        key, timeout = self.key(planned.key), planned.timeout
        try:
            match planned.kind:
                case "get":
                    made.answer = await kv.get(key, timeout=timeout)
                case "put":
                    made.answer = await kv.put(key, made.value, prev_kv=True, timeout=timeout)
                case "delete":
                    made.answer = await kv.delete(key, prev_kv=True, timeout=timeout)
                case "bad lease":
                    made.answer = await kv.put(key, made.value, lease=4711, timeout=timeout)
                case "bad key":
                    key = self.prefix + b"never"
                    made.answer = await kv.put(key, ignore_value=True, timeout=timeout)
                case "too large":
                    made.answer = await kv.put(
                        key, made.value + bytes(SMALL_REQUEST), timeout=timeout
                    )
        except EtcdError as error:
            made.error = error
        else:
            self.known = max(self.known, made.answer.header.revision)
        made.seconds = monotonic() - began

    async def _strike(self, each: Round) -> None:
        proxy = self.proxy
        await _turns(each.strikes)
        match each.fault:
            case "none":
                return
            case "late":
                proxy.delay(0.01)
            case "cut":
                proxy.cut()
                return
            case "cut in an answer":
                proxy.cut_after(each.strikes * 40)
            case "hole" | "long hole":
                proxy.blackhole(client_to_server=False)
            case "refused":
                proxy.refuse()
                proxy.cut()
        # So long it lasts: what hangs for 0.25 s keeps nobody waiting.
        await asyncio.sleep(0.4 if each.fault == "long hole" else 0.05)
        await proxy.heal()

    def check(self, oracle: Oracle) -> None:
        """Hold each outcome against what the store did."""
        written = Counter(
            each.kv.value for each in oracle.between(0, oracle.last_revision) if each.kv.value
        )
        assert set(written.values()) <= {1}, "a write was made twice"
        deletions: Counter[bytes] = Counter()  # what is told, and what may be
        for made in self.made:
            how = "ok" if made.answer is not None else type(made.error).__name__
            event(f"{made.plan.kind}: {how}")
            self._check_outcome(made)
            if made.answer is not None:
                self._check_answer(made, oracle)
            elif made.error is not None and not made.error.maybe_applied:
                assert made.value not in written
            elif made.error is not None and made.plan.kind == "put":
                assert made.value in self.sent, "it may be applied, and nobody has sent it"
            if made.plan.kind == "delete" and (
                made.answer.deleted
                if made.answer is not None
                else made.error is None or made.error.maybe_applied
            ):
                deletions[self.key(made.plan.key)] += 1
        values = {made.value for made in self.made if made.plan.kind == "put"}
        values |= {b"last" + self.key(number) for number in range(6)}
        assert written.keys() <= values, "what was refused was written"
        for key in map(self.key, range(6)):
            gone = sum(
                each.kv.key == key and not each.kv.value
                for each in oracle.between(0, oracle.last_revision)
            )
            assert gone <= deletions[key]
            self._check_order(key)

    def _check_outcome(self, made: Made) -> None:
        """It was told what it would have been told alone, and in time."""
        plan, error = made.plan, made.error
        if plan.timeout is not None:
            assert made.seconds < plan.timeout + 0.1 + self.late.seconds
        if error is None:
            assert made.answer is None or plan.kind not in REFUSED
            return
        if plan.kind in REFUSED and isinstance(error, REFUSED[plan.kind]):
            assert not error.maybe_applied
            return
        assert isinstance(error, BROKEN), "it is told what is wrong with another one"
        assert not (plan.kind == "get" and error.maybe_applied)
        if isinstance(error, NoEndpointError) or "not sent" in str(error):
            assert not error.maybe_applied
        if not made.is_broken:
            assert isinstance(error, TimeoutError)
            assert plan.timeout is not None
            assert made.seconds > plan.timeout - 0.011  # give or take gRPC's timer

    def _check_answer(self, made: Made, oracle: Oracle) -> None:
        """It is what the store had, or did, at its revision, and that is not from before it."""
        key, answer = self.key(made.plan.key), made.answer
        revision = answer.header.revision
        here, before = oracle.get(key, revision), oracle.get(key, revision - 1)
        match made.plan.kind:
            case "get":
                assert revision >= made.known
                found = [(kv.value, kv.mod_revision, kv.version) for kv in answer.kvs]
                assert found == ([(here.value, here.mod_revision, here.version)] if here else [])
                assert answer.count == len(found)
            case "put":
                assert revision > made.known
                assert here is not None
                assert (here.value, here.mod_revision) == (made.value, revision)
                assert (answer.prev_kv and answer.prev_kv.value) == (before and before.value)
            case "delete":
                assert here is None
                assert revision >= made.known + answer.deleted
                assert answer.deleted == len(answer.prev_kvs)
                if answer.deleted:
                    assert before is not None
                    assert answer.prev_kvs[0].value == before.value

    def _check_order(self, key: bytes) -> None:
        """A key's writes were made in the order of the calls."""
        told = [
            made.answer.header.revision
            for made in self.made
            if made.answer is not None
            and self.key(made.plan.key) == key
            and (made.plan.kind == "put" or (made.plan.kind == "delete" and made.answer.deleted))
        ]
        assert all(one < other for one, other in pairwise(told))


class Below(Relayed):
    """Notes the values that are handed down, and what became of txns."""

    txns: ClassVar[Counter[str]] = Counter()

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self.sent: set[bytes] = set()

    async def unary(self, method: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Note what it writes."""
        puts = [op.request_put for op in request.success] if method is TXN else [request]
        self.sent |= {put.value for put in puts if isinstance(put, rpc_pb2.PutRequest)}
        if method.name != "Txn":
            return await super().unary(method, request, *args, **kwargs)
        try:
            answer = await super().unary(method, request, *args, **kwargs)
        except BaseException as error:
            self.txns[type(error).__name__] += 1
            raise
        self.txns["ok"] += 1
        return answer


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.fault("K1, K2, K3: sixty mixes, of some rounds each")
@pytest.mark.timeout(60 * EXAMPLES)
def test_k3_any_mix() -> None:
    """Whatever is mixed: each call has its own outcome, and the model has the same."""
    server = EtcdServer(args=[f"--max-request-bytes={SMALL_REQUEST}", "--max-txn-ops=20"])
    with asyncio.Runner() as runner:
        runner.run(server.start())

        @settings(max_examples=EXAMPLES, print_blob=True)
        @given(rounds=st.lists(ROUNDS, min_size=1, max_size=4))
        @example(rounds=[Round(FULL, "none", 0)])
        def mixes(rounds: list[Round]) -> None:
            runner.run(_mix(server, rounds))

        try:
            mixes()
        finally:
            runner.run(server.aclose())
    for what in ENDS:
        assert Below.txns[what], f"no txn ended so: {what}; nothing was shown"


async def _mix(server: EtcdServer, rounds: list[Round]) -> None:
    prefix = b"/mix%d/" % next(PREFIXES)
    is_old = server.version_info < (3, 5, 7)
    async with Client(server.endpoint) as direct, FaultProxy(server.endpoint) as proxy:
        start = (await direct.kv.get("x")).header.revision + 1
        async with lateness() as late, Client(proxy.endpoint) as client:
            below = Below(client._calls)
            mix = Mix(create(KV, Batched(below)), below.sent, proxy, prefix, late)
            with anyio.fail_after(30):
                for each in rounds:
                    # A txn that only reads, and whose connection breaks just so, ends an older
                    # server (etcd #14110, #14891).
                    if is_old and (each.fault != "none" or mix.is_broken):
                        calls = [call for call in each.calls if call.kind != "get"]
                        each = Round(calls, each.fault, each.strikes)
                    await mix.happen(each)
                await until_idle(mix.kv)
                # And all goes on as if nothing had been, once the client knows that the proxy has
                # cut what was in a hole: a write that is sent before that may end in doubt.
                await mix.kv.get(mix.key(0), timeout=5)
                for key in map(mix.key, range(6)):
                    put = await mix.kv.put(key, b"last" + key, timeout=5)
                    got = await mix.kv.get(key, timeout=5)
                    # What was given up when it was cut off may still arrive.
                    assert got.value == b"last" + key or got.kvs[0].mod_revision > (
                        put.header.revision
                    )
        recorder = Recorder()
        last = (await direct.kv.put(prefix + b"last", b"")).header.revision
        async with direct.watch("", prefix=True, start_revision=start) as watch:
            async for batch in watch.batches():
                recorder.stored(batch.events)
                if batch.revision >= last:
                    break
        oracle = Oracle(recorder.records)  # type: ignore[arg-type]
        assert_clean(check_oracle(oracle))
        mix.check(oracle)
