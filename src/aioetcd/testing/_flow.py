"""One direction of a relayed connection: what was read, until the kernel has taken it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections import deque
from time import monotonic
from typing import Protocol

from aioetcd.testing._link import CutBudget, Direction, Link, Slot
from aioetcd.testing._sockets import unsent, was_reset

READ_SIZE = 65_536
"""Bytes taken from a socket at once."""

_READS_AT_ONCE = 8
_LOOK_INTERVAL = 0.1
_LOOKS_IN_VAIN = 5  # several, for one may come late, and before the peer had its turn
_SETTLE_INTERVAL = 0.001


class _End(enum.Enum):
    """How a peer ended its direction; it travels behind the bytes, and a fault treats it alike."""

    FIN = "fin"
    RESET = "reset"


class Ends(Protocol):
    """What a direction needs of its connection."""

    holes: set[Direction]
    """The directions in which it lost bytes."""

    def reset(self) -> None:
        """Send RST both ways; whatever is still queued is lost."""

    def lost(self, direction: Direction) -> None:
        """Know that the peer that sends in this direction has reset the connection."""

    def fin_passed(self, direction: Direction) -> None:
        """Know that the end of this direction was passed on."""


class Flow:
    """Reads from one socket and writes to the other, as the faults of the link have it.

    It writes to the socket itself, never blocks and never awaits: what the kernel has not taken is
    in the queue here, where a fault reaches it, and stopping needs one call. (A transport of the
    event loop would go on sending what it was given, whatever happens to the link.)

    A reset travels like bytes: behind those that came before it, delayed like them. It does not
    wait for a peer that takes none of them for half a second: TCP would not deliver them either.

    Made by a relay when both sockets are connected, and stopped by it before they are closed.
    """

    def __init__(
        self,
        link: Link,
        direction: Direction,
        source: socket.socket,
        sink: socket.socket,
        relay: Ends,
    ) -> None:
        self.direction = direction
        self._link = link
        self._source = source
        self._sink = sink
        self._relay = relay
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, memoryview | _End]] = deque()
        self._queued = 0
        self._last_due = 0.0
        self._reading = False
        self._read_all = False
        self._full = False  # the kernel takes no more for the sink: its peer does not read
        self._stopped = False
        self._source_reset_due: float | None = None
        self._reset_queued = False
        self._slot: Slot | None = None
        self._claimed: CutBudget | None = None
        self._pump_timer: asyncio.Handle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._settle_timer: asyncio.TimerHandle | None = None
        self._written = 0
        self._left_at_last_look = -1
        self._looks_in_vain = 0

    def resume(self) -> None:
        """Go by the faults that are in force now; also the start."""
        self._pump()

    def stop(self) -> None:
        """Read and write no more, and forget what is queued; a cut that waits for us comes now."""
        if self._stopped:
            return
        self._stopped = True
        for timer in (self._pump_timer, self._look_timer, self._settle_timer):
            if timer is not None:
                timer.cancel()
        self._read(False)
        self._await_room(False)
        self._queue.clear()
        if self._claimed is not None:
            self._link.spend(self._claimed)

    def source_was_reset(self) -> None:
        """Know that the source was reset, which the next read need not tell."""
        if self._stopped:
            return
        if self._source_reset_due is None:
            self._source_reset_due = max(self._last_due, self._link.due())
        if self._read_all and not self._reset_queued:
            self._reset_queued = True
            self._queue.append((self._source_reset_due, _End.RESET))
        self._read(False)  # uvloop tells of a broken socket once, and of what it still has never
        self._pump()

    # --- reading ----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Read, or stop to; and look after a peer that is not heard otherwise."""
        if self._stopped:
            return
        self._read(
            not (self._read_all or self._link.hanging or self._queued >= self._link.buffer_limit)
        )
        deaf = not self._reading or self._full
        if deaf and not self._link.hanging and self._look_timer is None:
            self._look_timer = self._loop.call_later(_LOOK_INTERVAL, self._look)

    def _read(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._source, self._on_readable)
        else:
            self._loop.remove_reader(self._source)

    def _on_readable(self) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                data = self._source.recv(READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                self._end(_End.RESET)
                return
            if not data:
                # After a write has told of a reset, reading ends as if in order.
                broken = self._source_reset_due is not None
                self._end(_End.RESET if broken else _End.FIN)
                return
            self._queued += len(data)
            self._put(memoryview(data))
            if not self._reading:
                return
        self._read(False)  # see `source_was_reset`
        self._watch()

    def _end(self, how: _End) -> None:
        self._read_all = True
        if how is _End.RESET:
            self._relay.lost(self.direction)  # puts it into the queue
        else:
            self._put(how)

    def _put(self, what: memoryview | _End) -> None:
        self._last_due = max(self._last_due, self._link.due())
        self._queue.append((self._last_due, what))
        self._pump()

    def _look(self) -> None:
        """Look whether the source was reset while nothing is read from it."""
        self._look_timer = None
        if self._link.hanging:
            return
        if self._source_reset_due is None and was_reset(self._source):
            self._relay.lost(self.direction)
        if self._stopped:
            return
        if self._reset_waits():
            left = self._written - unsent(self._sink)
            in_vain = left == self._left_at_last_look
            self._left_at_last_look = left
            self._looks_in_vain = self._looks_in_vain + 1 if in_vain else 0
            if self._looks_in_vain >= _LOOKS_IN_VAIN:
                self._relay.reset()
                return
        self._watch()

    def _reset_waits(self) -> bool:
        """Whether the sink's peer has to take bytes before it hears of a reset that is due."""
        return (
            self._source_reset_due is not None
            and self._source_reset_due <= monotonic()
            and self.direction not in self._link.swallowed
            and (self._full or (bool(self._queue) and self._queue[0][1] is _End.RESET))
        )

    # --- writing ----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Write what may be written now, and arrange to be called when more may be."""
        if self._pump_timer is not None:
            self._pump_timer.cancel()
            self._pump_timer = None
        while self._queue and not (self._stopped or self._link.hanging):
            due, what = self._queue[0]
            if (early := due - monotonic()) > 0:
                self._pump_later(early)
                break
            if self.direction in self._link.swallowed:
                self._swallow(what)
            elif isinstance(what, _End):
                if what is _End.RESET and unsent(self._sink):  # it would throw that away
                    self._pump_later(_SETTLE_INTERVAL)
                    break
                self._queue.popleft()
                self._pass_on(what)
            elif not self._write(due, what):
                break
        self._watch()

    def _pump_later(self, delay: float) -> None:
        self._pump_timer = self._loop.call_later(delay, self._pump)

    def _pass_on(self, end: _End) -> None:
        if end is _End.RESET:
            self._relay.reset()
            return
        with contextlib.suppress(OSError):  # it was reset: its own direction tells of it
            self._sink.shutdown(socket.SHUT_WR)
        self._relay.fin_passed(self.direction)

    def _swallow(self, what: memoryview | _End) -> None:
        self._queue.popleft()
        self._relay.holes.add(self.direction)
        if not isinstance(what, _End):
            self._queued -= len(what)
            self._link.bytes_swallowed += len(what)
            self._link.changed()

    def _write(self, due: float, data: memoryview) -> bool:
        """Write once, if the link lets us; give whether more may be written at once."""
        link = self._link
        budget = link.budget if self.direction is Direction.FROM_SERVER else None
        if budget is not None and not budget.left:
            self._claim(budget)
            return False
        if self._full:
            return False
        size = len(data) if link.chunk is None else min(len(data), link.chunk)
        if budget is not None:
            size = min(size, budget.left)
        if link.pace is not None:
            if self._slot is None or self._slot.pace is not link.pace:
                self._slot = link.pace.slot(self.direction, size)
            if (early := self._slot.opens_at - monotonic()) > 0:
                self._pump_later(early)
                return False
            size = min(size, self._slot.left)
        try:
            sent = self._sink.send(data[:size])
        except BlockingIOError:
            self._await_room(True)
            return False
        except OSError:
            self._relay.lost(self.direction.opposite)
            return False
        self._wrote(sent, due, data)
        if budget is not None:
            budget.left -= sent
            if not budget.left:
                self._claim(budget)
                return False
        if link.chunk is not None:
            self._pump_later(0)  # in another turn, or the peer would read many chunks at once
            return False
        return True

    def _wrote(self, sent: int, due: float, data: memoryview) -> None:
        if sent == len(data):
            self._queue.popleft()
        else:
            self._queue[0] = (due, data[sent:])
        self._queued -= sent
        self._written += sent
        if self._slot is not None:
            self._slot.left -= sent
            if not self._slot.left:
                self._slot = None
        self._link.count(self.direction, sent)

    def _await_room(self, wanted: bool) -> None:
        if wanted == self._full:
            return
        self._full = wanted
        if wanted:
            self._loop.add_writer(self._sink, self._on_room)
        else:
            self._loop.remove_writer(self._sink)

    def _on_room(self) -> None:
        self._await_room(False)
        self._pump()

    # --- the last byte before a cut -----------------------------------------------------------

    def _claim(self, budget: CutBudget) -> None:
        if not budget.claimed:
            budget.claimed = True
            self._claimed = budget
            self._settle()

    def _settle(self) -> None:
        """Wait until the kernel has sent everything: a reset throws away what it still holds."""
        budget = self._claimed
        if budget is None or budget is not self._link.budget:
            self._claimed = None
        elif unsent(self._sink):
            self._settle_timer = self._loop.call_later(_SETTLE_INTERVAL, self._settle)
        elif budget.pause:
            self._spend_at(budget, monotonic() + budget.pause)
        else:
            self._link.spend(budget)

    def _spend_at(self, budget: CutBudget, due: float) -> None:
        if (early := due - monotonic()) > 0:  # uvloop's timers may be, by a millisecond
            self._settle_timer = self._loop.call_later(early, self._spend_at, budget, due)
        else:
            self._link.spend(budget)
