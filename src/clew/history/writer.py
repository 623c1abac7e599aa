"""The way of rows into the database, and what becomes of those that it does not take: spooled, replayed, or counted as lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

from sqlalchemy import Connection

from clew import clock
from clew.diagnostics import ClewError, report
from clew.history.database import Database
from clew.history.faults import in_short, is_collision, is_of_row
from clew.history.spooling import ROWS, packed, spool_of, unpacked
from clew.history.writing import Change, write
from clew.pipeline.breaker import Breaker
from clew.pipeline.lane import Tally
from clew.pipeline.ledger import Account, Ledger
from clew.pipeline.spool import SpooledBatch, SpoolFullError
from clew.settings import Settings

logger = logging.getLogger("clew.history")

Fate = Literal["written", "kept", "lost"]
"""What became of a row: it is in the database, it waits on disk, or it was counted as lost."""

_PATIENCE_S: Final = 5.0
_ATTEMPTS: Final = 4
_REPLAYED_AT_ONCE: Final = 10_000
_REPLAYING_S: Final = 2.0
_SIBLING_S: Final = 0.25
# How often a process looks for what others have left on disk
_LOOKING_S: Final = 30.0


class Writer:
    """Writes rows, from one thread at a time, and keeps the account of them.

    Args:
        settings: which database, which spool.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.history_url(), patience_s=_PATIENCE_S)
        self.spool = spool_of(settings)
        self._start_anew()

    def _start_anew(self) -> None:
        self.ledger = Ledger((ROWS,))
        self._accepted, self._overflow = Tally(), Tally()
        self.accept, self.overflow = self._accepted.add, self._overflow.add
        """Count a row that came in, and one that there was no room for; by any thread, which holds no lock for it."""
        self.breaker = Breaker()
        self._is_ready = False
        self._looked_at = float("-inf")

    def reset_after_fork(self) -> None:
        """Begin a child's life: nothing counted, nothing spooled."""
        if self.spool is not None:
            self.spool.reset_after_fork()
        self._start_anew()

    def account(self) -> Account:
        """Return what became of the rows so far."""
        account = self.ledger.account(ROWS)
        dropped = dict(account.dropped)
        if overflow := self._overflow.total():
            dropped["queue_full"] = overflow
        return replace(account, emitted=self._accepted.total(), dropped=dropped)

    def lose(self, reason: str, rows: int, problem: object = None) -> None:
        """Count rows as lost, and say so once."""
        self.ledger.drop(ROWS, reason, rows)
        tell("history", f"rows are lost: {reason}" + (f" ({problem})" if problem is not None else ""))

    def waits(self) -> bool:
        """Tell whether rows of this process wait on disk."""
        return self.ledger.account(ROWS).spooled > 0

    def is_well(self) -> bool:
        """Tell whether the database took what it was given last."""
        return self.breaker.pause_s == 0.0

    def try_again(self) -> None:
        """Have the database tried at once, though it did not answer lately."""
        self.breaker.open_until = 0.0
        self._looked_at = float("-inf")

    def next_attempt_s(self) -> float:
        """Return in how many seconds there is something to be looked at."""
        now = clock.monotonic_s()
        if self.waits():
            # A sibling may be at it, which takes its time
            return max(0.0, self.breaker.open_until - now, self._looked_at + _SIBLING_S - now)
        return max(0.0, self._looked_at + _LOOKING_S - now)

    def put(self, changes: Sequence[Change]) -> list[Fate]:
        """Write rows, or else keep them; return what became of each, which the caller counts as :meth:`settle` does."""
        # What this process has on disk is older: the rows stay in order
        if self.breaker.allows() and not self.waits():
            try:
                refused = self.do(lambda connection: write(connection, changes), changes)
            except Exception as error:
                self._complain(error)
            else:
                lost = {id(change) for change in refused}
                return ["lost" if id(change) in lost else "written" for change in changes]
        return ["kept"] * len(changes)

    def settle(self, changes: Sequence[Change], fates: Sequence[Fate]) -> None:
        """Count what became of rows, and write to disk those that are to be kept."""
        self.ledger.count(ROWS, "delivered", fates.count("written"))
        self.ledger.drop(ROWS, "refused", fates.count("lost"))
        self.keep([change for change, fate in zip(changes, fates, strict=True) if fate == "kept"])

    def keep(self, changes: Sequence[Change]) -> None:
        """Write rows to disk; what can't be is counted as lost."""
        for batch, rows in packed(changes):
            if batch is None:
                self.lose("refused", len(rows), "a value can't be written")
            elif self.spool is None:
                self.lose("no_spool", len(rows))
            else:
                try:
                    self.spool.append(batch)
                except OSError as error:
                    self.lose("spool_full" if isinstance(error, SpoolFullError) else "spool_error", len(rows), error)
                else:
                    self.ledger.count(ROWS, "spooled", len(rows))

    def release(self) -> None:
        """Let other processes have what is on disk."""
        if self.spool is not None:
            self.spool.close()

    def replay(self, until: float = float("inf")) -> None:
        """Write what waits on disk, of this process and of others, as far as the database takes it.

        Args:
            until: when to stop, in seconds of the monotonic clock.
        """
        now = clock.monotonic_s()
        if self.spool is None or not self.breaker.allows() or not (self.waits() or now >= self._looked_at + _LOOKING_S):
            return
        self._looked_at = now
        # What this process wrote and a sibling has taken is gone from disk, and still to be settled
        if self.waits() or not self.spool.is_empty(ROWS):
            self.spool.replay(ROWS, _Replay(self), max_batches=_REPLAYED_AT_ONCE, until=min(until, now + _REPLAYING_S))

    def replay_one(self, batch: SpooledBatch, *, own: bool) -> bool:
        """Write rows that waited; false where the database is away."""
        try:
            changes = unpacked(batch)
        except ValueError as error:
            self.forget("spool_corrupt", batch.items, own=own, problem=error)
            return True
        try:
            refused = len(self.do(lambda connection: write(connection, changes), changes))
        except Exception as error:
            self._complain(error)
            return False
        self.ledger.count(ROWS, "spooled", -batch.items if own else 0)
        self.ledger.count(ROWS, "delivered" if own else "replayed", batch.items - refused)
        if own:
            self.ledger.drop(ROWS, "refused", refused)
        else:
            self.ledger.count(ROWS, "abandoned", refused)
        return True

    def forget(self, reason: str, rows: int, *, own: bool, problem: object = None) -> None:
        """Count rows that could not be read from disk."""
        if own:
            self.ledger.count(ROWS, "spooled", -rows)
            self.lose(reason, rows, problem)
        else:
            self.ledger.count(ROWS, "abandoned", rows)
            tell("history", f"rows of another process are lost: {reason}")

    def take_over(self, rows: int) -> None:
        """Count rows that another process took from disk to the database."""
        self.ledger.count(ROWS, "spooled", -rows)
        self.ledger.count(ROWS, "delivered", rows)

    def do_chore(self, name: str, do: Callable[[Connection], object], *, writes: bool = True) -> None:
        """Do something in a transaction of its own, where the database is well."""
        if not self.breaker.allows():
            return
        try:
            self._transact(do, writes=writes)
        except Exception as error:
            if is_of_row(error):
                tell(f"history: {name}", error)
            else:
                self._complain(error)

    def do(self, action: Callable[[Connection], None], changes: Sequence[Change]) -> list[Change]:
        """Write rows; where one of them is at fault, all others.

        Returns:
            The rows that the database refused, which have been reported.
        """
        try:
            self._transact(action)
        except Exception as error:
            if not is_of_row(error):
                raise
            if len(changes) == 1:
                tell(f"history: {changes[0].table}", f"a row was refused: {in_short(error)}")
                return list(changes)
        else:
            return []
        middle = len(changes) // 2
        halves = changes[:middle], changes[middle:]
        return [
            refused
            for half in halves
            for refused in self.do(lambda connection, half=half: write(connection, half), half)  # type: ignore[misc]
        ]

    def _transact(self, action: Callable[[Connection], object], *, writes: bool = True) -> None:
        if self._is_ready and self.database.was_replaced():
            self._is_ready = False
        if not self._is_ready:
            self.database.ensure(auto_upgrade=self.settings.database_auto_upgrade)
            self.database.was_replaced()
            self._is_ready = True
        for attempt in range(_ATTEMPTS):
            try:
                with self.database.write() if writes else self.database.read() as connection:
                    action(connection)
                break
            except Exception as error:
                if attempt == _ATTEMPTS - 1 or not is_collision(error):
                    raise
        if self.breaker.mend():
            logger.warning("the history in %s is written to again", self.database)

    def _complain(self, error: Exception) -> None:
        # Tables that are gone or changed are looked at anew
        self._is_ready = False
        if self.breaker.trip():
            kept = f"rows wait in {self.spool.folder}" if self.spool is not None else "rows are lost"
            logger.warning("the history can't be written to, %s: %s", kept, in_short(error))

    def say_what_was_lost(self) -> None:
        """Log what is not in the database at the end of the process."""
        account = self.account()
        if account.dropped:
            reasons = ", ".join(f"{rows} {reason}" for reason, rows in sorted(account.dropped.items()))
            logger.warning("rows of the history lost since the start: %s of %d", reasons, account.emitted)
        if account.pending:
            logger.warning("rows of the history that wait on disk: %d of %d", account.pending, account.emitted)


class _Replay:
    """What a writer does with what its spool reads."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def deliver(self, batch: SpooledBatch, *, own: bool) -> bool:
        return self._writer.replay_one(batch, own=own)

    def lost(self, reason: str, items: int, *, own: bool) -> None:
        self._writer.forget(reason, items, own=own)

    def taken_over(self, items: int) -> None:
        self._writer.take_over(items)


def tell(where: str, problem: BaseException | str) -> None:
    """Report a problem from a thread that nobody would catch it from in strict mode."""
    try:
        report(where, in_short(problem) if isinstance(problem, BaseException) else problem)
    except ClewError as error:
        logger.error("%s", error)  # noqa: TRY400 - where it was raised says nothing
