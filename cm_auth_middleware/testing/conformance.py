"""Check your own session store against every rule of the `SessionStore` protocol."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import anyio

from cm_auth_middleware.stores import (
    CountsRecords,
    FindsByPrefix,
    HasBlockingTwin,
    HasEpochs,
    PutsSeveral,
    SessionStore,
    TellsLapsedLeases,
    method_of,
)

T = TypeVar("T")
Check = Callable[[SessionStore], Awaitable[None]]

_CROWD = 20
_LONG = 60.0  # seconds, more than any check takes
_KEYS = (
    *("'", '"', "`", "';--", "%", "_", "*", "?", "[a]", "\\", "a", "A", "a*", "a%", "a_"),
    *("..", "../a", "/", "a/b", " ", "a ", "\n", "\0", "a\0b", "a\0c", "{a}", "{}:a", "k" * 200),
)
_VALUES = (b"", b"\0", b"0", b"\xff" * 17, bytes(range(256)), b"NULL", secrets.token_bytes(10**6))


class StoreConformance:
    """Tests of a `SessionStore`: subclass it in a test module, and pytest runs them.

        class TestMyStore(StoreConformance):
            def make_store(self):
                return MyStore("…")

        class TestMyStoreForThreads(TestMyStore):
            blocking = True

            def make_store(self):
                return super().make_store().blocking()

    Each check makes a store and closes it. The storage may be shared and need not be empty,
    because the checks use random keys. Optional methods are checked if the store has them.

    Attributes:
        blocking: True if the methods block and never suspend. The checks then run them without
            an event loop, and fail if one suspends.
        backend: anyio's name of the event loop, ``"asyncio"`` or ``"trio"``.
        short: a short time to live in seconds; some checks wait until it is over.
    """

    blocking = False
    backend = "asyncio"
    short = 0.25

    def make_store(self) -> SessionStore:
        """Return the store to check; fixtures may set attributes of `self` that this needs."""
        raise NotImplementedError("override make_store: it has to return the store to check")

    def wait(self, seconds: float) -> None:
        """Let time pass. Override this if your store uses a clock that you can move."""
        time.sleep(seconds)

    # Values

    def test_it_has_the_methods_of_the_protocol(self) -> None:
        assert isinstance(self.make_store(), SessionStore), "a method of SessionStore is missing"

    def test_what_was_never_put_is_not_there(self) -> None:
        async def check(store: SessionStore) -> None:
            assert await store.get(_key()) is None, "get of an unknown key must return None"
            assert await store.delete(_key()) is None, "delete of an unknown key must return None"
            assert not await store.replace(_key(), b"", b"new", _LONG), "replaced an unknown key"

        self._run(check)

    def test_what_is_put_is_there_and_a_second_put_overwrites(self) -> None:
        async def check(store: SessionStore) -> None:
            key, other = _key(), _key()
            await store.put(other, b"other", _LONG)
            for value in (b"first", b"second, and longer", b"3"):
                await store.put(key, value, _LONG)
                assert await store.get(key) == value, "get must return the value of the last put"
            assert await store.get(other) == b"other", "put must change one key only"

        self._run(check)

    def test_every_key_is_a_key_of_its_own(self) -> None:
        async def check(store: SessionStore) -> None:
            for number, key in enumerate(_KEYS):
                await store.put(key, b"%d" % number, _LONG)
            for number, key in enumerate(_KEYS):
                assert await store.get(key) == b"%d" % number, f"{key!r} is mixed up with another"
            for number, key in enumerate(_KEYS):
                assert await store.replace(key, b"%d" % number, b"new", _LONG), f"replace {key!r}"
                assert await store.delete(key) == b"new", f"delete {key!r}"
                assert await store.acquire(key, "owner", _LONG), f"acquire {key!r}"
                await store.release(key, "owner")

        self._run(check)

    def test_any_bytes_are_kept_as_they_are(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            for value in _VALUES:
                await store.put(key, value, _LONG)
                kept = await store.get(key)
                assert kept == value, f"{len(value)} bytes came back changed"
                assert isinstance(kept, bytes), "a value must be bytes"
                assert await store.replace(key, value, value + b"!", _LONG), (
                    "replace did not find its old value"
                )
                assert await store.delete(key) == value + b"!", "delete must return the value"

        self._run(check)

    # Time

    def test_what_is_put_runs_out(self) -> None:
        async def check(store: SessionStore) -> None:
            short, long, again = _key(), _key(), _key()
            start = time.monotonic()
            await store.put(long, b"short-lived", self.short)
            await store.put(long, b"v", _LONG)
            await store.put(again, b"long-lived", _LONG)
            await store.put(again, b"v", self.short)
            await store.put(short, b"v", self.short)
            value = await store.get(short)
            if time.monotonic() - start < self.short:  # a slow machine may be too late to see it
                assert value == b"v", "a record must be there until its time to live is over"
            self._outlive()
            assert await store.get(short) is None, "get returned an expired record"
            assert not await store.replace(short, b"v", b"new", _LONG), (
                "replace revived an expired record"
            )
            assert await store.get(short) is None, "replace revived an expired record"
            assert await store.delete(short) is None, "delete returned an expired record"
            assert await store.get(long) == b"v", "the ttl of the last put must count"
            assert await store.get(again) is None, "the ttl of the last put must count"

        self._run(check)

    def test_replace_sets_the_time_anew(self) -> None:
        async def check(store: SessionStore) -> None:
            longer, shorter = _key(), _key()
            await store.put(longer, b"old", self.short)
            replaced = await store.replace(longer, b"old", b"new", _LONG)
            await store.put(shorter, b"old", _LONG)
            assert await store.replace(shorter, b"old", b"new", self.short)
            self._outlive()
            if replaced:  # else the machine was so slow that the record expired first
                assert await store.get(longer) == b"new", "replace must set the ttl"
            assert await store.get(shorter) is None, "replace must set the ttl"

        self._run(check)

    def test_purge_removes_what_is_over_and_nothing_else(self) -> None:
        async def check(store: SessionStore) -> None:
            short, long = _key(), _key()
            await store.put(short, b"v", self.short)
            await store.put(long, b"v", _LONG)
            assert await store.acquire(long, "owner", _LONG)
            self._outlive()
            assert await store.purge() >= 0, "purge must return a number"
            assert await store.get(short) is None
            assert await store.get(long) == b"v", "purge removed a record that has not expired"
            assert not await store.acquire(long, "other", _LONG), (
                "purge removed a lease that has not expired"
            )
            assert await store.purge() == 0, "a second purge must find nothing"

        self._run(check)

    # Replace and delete

    def test_replace_needs_the_value_that_is_there(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            await store.put(key, b"one", _LONG)
            for wrong in (b"", b"on", b"one ", b"ONE", b"two"):
                assert not await store.replace(key, wrong, b"no", _LONG), (
                    f"accepted {wrong!r} as old"
                )
                assert await store.get(key) == b"one", (
                    "a replace that returns False must change nothing"
                )
            assert await store.replace(key, b"one", b"two", _LONG)
            assert await store.get(key) == b"two", "a replace that returns True must replace"
            assert not await store.replace(key, b"one", b"three", _LONG), "the old value was gone"
            assert await store.replace(key, b"two", b"two", _LONG), "old and new may be equal"

        self._run(check)

    def test_replace_does_not_bring_back_what_was_deleted(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            await store.put(key, b"v", _LONG)
            assert await store.delete(key) == b"v"
            assert not await store.replace(key, b"v", b"new", _LONG)
            assert await store.get(key) is None, "replace brought a deleted record back"

        self._run(check)

    def test_delete_returns_the_value_once(self) -> None:
        async def check(store: SessionStore) -> None:
            key, other = _key(), _key()
            await store.put(key, b"v", _LONG)
            await store.put(other, b"other", _LONG)
            assert await store.delete(key) == b"v", "delete must return the value"
            assert await store.delete(key) is None, "a second delete must return None"
            assert await store.get(key) is None, "get returned a deleted record"
            assert await store.get(other) == b"other", "delete must remove one key only"

        self._run(check)

    def test_of_many_replaces_at_once_one_wins(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            await store.put(key, b"old", _LONG)
            won = await self._together(
                [partial(store.replace, key, b"old", b"%d" % n, _LONG) for n in range(_CROWD)]
            )
            assert won.count(True) == 1, f"{won.count(True)} of {_CROWD} replaces returned True"
            assert await store.get(key) == b"%d" % won.index(True), "the wrong value won"

        self._run(check)

    def test_no_increment_is_lost(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()

            async def increment() -> None:
                for _ in range(5):
                    while True:
                        value = await store.get(key)
                        assert value is not None
                        if await store.replace(key, value, b"%d" % (int(value) + 1), _LONG):
                            break

            await store.put(key, b"0", _LONG)
            await self._together([increment] * 5)
            assert await store.get(key) == b"25", "replace lost an increment"

        self._run(check)

    def test_of_many_deletes_at_once_one_gets_the_value(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            await store.put(key, b"v", _LONG)
            got = await self._together([partial(store.delete, key)] * _CROWD)
            assert got.count(b"v") == 1, f"{got.count(b'v')} of {_CROWD} deletes got the value"
            assert got.count(None) == _CROWD - 1

        self._run(check)

    # Leases

    def test_a_lease_has_one_owner_who_may_extend_it(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            assert await store.acquire(key, "one", _LONG), "acquire refused a free lease"
            assert not await store.acquire(key, "two", _LONG), "a lease got a second owner"
            assert await store.acquire(key, "one", _LONG), "the owner must be able to extend"
            await store.release(key, "two")
            assert not await store.acquire(key, "two", _LONG), "another released it"
            await store.release(key, "one")
            await store.release(key, "one")
            await store.release(_key(), "one")
            assert await store.acquire(key, "two", _LONG), "acquire refused a released lease"

        self._run(check)

    def test_a_lease_runs_out_unless_it_is_extended(self) -> None:
        async def check(store: SessionStore) -> None:
            short, extended = _key(), _key()
            await store.acquire(extended, "one", self.short)
            assert await store.acquire(extended, "one", _LONG), "the owner must be able to extend"
            await store.acquire(short, "one", self.short)
            self._outlive()
            assert await store.acquire(short, "two", _LONG), "acquire refused an expired lease"
            assert not await store.acquire(short, "one", _LONG), "two owners have it"
            await store.release(short, "one")
            assert not await store.acquire(short, "one", _LONG), "a former owner released it"
            assert not await store.acquire(extended, "two", _LONG), "an extended lease ended early"

        self._run(check)

    def test_a_lease_that_its_owner_let_run_out_is_told_from_a_free_one(self) -> None:
        async def check(store: SessionStore) -> None:
            if not isinstance(store, TellsLapsedLeases) or method_of(store, "claim") is None:
                _skip("the store has no claim()")
            key, other, free = _key(), _key(), _key()
            assert await store.claim(key, "one", self.short), "claim refused a free lease"
            assert await store.claim(other, "one", self.short)
            assert await store.claim(other, "one", _LONG), "the owner must be able to extend"
            assert await store.claim(key, "two", _LONG) is False, "a lease got a second owner"
            taken = await store.claim(key, "two", _LONG, even_lapsed=True)
            assert taken is False, "it had not run out"
            self._outlive()
            assert await store.claim(key, "two", _LONG) is None, "nobody gave it back"
            assert await store.claim(other, "two", _LONG) is False, "an extended one ended early"
            assert await store.claim(key, "one", self.short), "its owner may take it again"
            self._outlive()
            assert await store.claim(key, "two", _LONG, even_lapsed=True), "it had run out"
            assert await store.claim(key, "one", _LONG) is False, "two owners have it"
            await store.release(key, "one")
            assert await store.claim(key, "one", _LONG) is False, "a former owner released it"
            await store.release(key, "two")
            assert await store.claim(key, "one", _LONG), "claim refused a released lease"
            # A release before this method was there takes the same leases by `acquire`.
            assert await store.acquire(key, "two", _LONG) is False, "a lease got a second owner"
            await store.acquire(free, "two", self.short)
            assert await store.claim(free, "one", _LONG) is False, "a lease got a second owner"
            self._outlive()
            assert await store.claim(free, "one", _LONG), "claim refused an expired lease"

        self._run(check)

    def test_of_many_who_want_a_lease_one_gets_it(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            got = await self._together(
                [partial(store.acquire, key, f"owner {n}", _LONG) for n in range(_CROWD)]
            )
            assert got.count(True) == 1, f"{got.count(True)} of {_CROWD} got the lease"

        self._run(check)

    def test_leases_and_records_of_one_key_are_apart(self) -> None:
        async def check(store: SessionStore) -> None:
            key = _key()
            assert await store.acquire(key, "one", _LONG)
            assert await store.get(key) is None, "get returned a lease"
            await store.put(key, b"v", _LONG)
            assert not await store.acquire(key, "two", _LONG), "put took the lease away"
            await store.release(key, "one")
            assert await store.get(key) == b"v", "release removed the record"
            assert await store.acquire(key, "one", _LONG)
            assert await store.delete(key) == b"v"
            assert not await store.acquire(key, "two", _LONG), "delete took the lease away"

        self._run(check)

    # Life

    def test_ping_and_close_and_use_again(self) -> None:
        async def check(store: SessionStore) -> None:
            await store.ping()
            await store.put(_key(), b"v", _LONG)
            await store.close()
            await store.close()
            await store.ping()
            key = _key()
            await store.put(key, b"v", _LONG)
            assert await store.get(key) == b"v", "a closed store must be usable again"

        self._run(check)

    # Optional methods

    def test_find_returns_what_begins_with_the_prefix(self) -> None:
        async def check(store: SessionStore) -> None:
            if not isinstance(store, FindsByPrefix):
                _skip("the store has no find()")
            user = secrets.token_bytes(15) + b"\xff\xff"  # 17 bytes
            keys = [_key() for _ in range(6)]
            await store.put(keys[0], user + b" and more", _LONG)
            await store.put(keys[1], b"this changes", _LONG)
            await store.put(keys[1], user, _LONG)
            await store.put(keys[2], user[:-1] + b"\xfe", _LONG)
            await store.put(keys[3], b"x" + user, _LONG)
            await store.put(keys[4], user, _LONG)
            await store.put(keys[4], b"this changed", _LONG)
            await store.put(keys[5], user + b" deleted", _LONG)
            await store.delete(keys[5])
            await store.acquire(_key(), user.hex(), _LONG)
            mine = [(keys[0], user + b" and more"), (keys[1], user)]
            assert sorted(await store.find(user)) == sorted(mine), "a prefix of 17 bytes"
            assert await store.find(user + b" a") == mine[:1], "a longer prefix"
            all_three = [*mine, (keys[2], user[:-1] + b"\xfe")]
            assert sorted(await store.find(user[:10])) == sorted(all_three), "a shorter prefix"
            assert await store.find(secrets.token_bytes(17)) == [], "an unknown prefix"
            assert set(all_three) <= set(await store.find(b"")), "an empty prefix must find all"
            await store.put(keys[0], user, self.short)
            self._outlive()
            assert await store.find(user) == mine[1:], "find must leave out expired records"

        self._run(check)

    def test_count_counts_live_records(self) -> None:
        async def check(store: SessionStore) -> None:
            if not isinstance(store, CountsRecords):
                _skip("the store has no count()")
            await self._purged(store)
            before = await store.count()
            keys = [_key() for _ in range(5)]
            for key in keys:
                await store.put(key, b"v", _LONG)
                await store.put(key, b"w", _LONG)
                await store.acquire(key, "owner", _LONG)
            assert await store.count() - before == 5, (
                "each key must count once, and leases must not"
            )
            prefix = secrets.token_bytes(8)
            for key in keys[:2]:
                await store.put(key, prefix + b"v", _LONG)
            assert await store.count(prefix) == 2, "count ignored the prefix"
            await store.delete(keys[0])
            await store.put(keys[1], b"v", self.short)
            self._outlive()
            assert await store.count() - before == 3, (
                "count must leave out expired and deleted records"
            )

        self._run(check)

    def test_put_all_sets_each_value_for_its_own_time(self) -> None:
        async def check(store: SessionStore) -> None:
            if not isinstance(store, PutsSeveral) or method_of(store, "put_all") is None:
                _skip("the store has no put_all() that goes with its put()")
            user = b"u" + secrets.token_bytes(16)
            old, empty, short = _key(), _key(), _key()
            await store.put(old, b"old", self.short)
            records = [(old, user + b" new", _LONG), (empty, b"", _LONG), (short, user, self.short)]
            await store.put_all(records)
            for key, value, ttl in records[:2]:
                assert await store.get(key) == value, f"put_all left out a value for {ttl} seconds"
            self._outlive()
            assert await store.get(old) == user + b" new", "put_all kept an earlier time to live"
            assert await store.get(empty) == b"", "put_all gave a value the time of another one"
            assert await store.get(short) is None, "put_all gave a value the time of another one"
            await store.put_all([(empty, b"one", _LONG)])
            assert await store.get(empty) == b"one", "put_all of one value"
            if isinstance(store, FindsByPrefix):
                assert await store.find(user) == [(old, user + b" new")], "find must see put_all"

        self._run(check)

    def test_a_blocking_twin_sees_the_same_records_and_never_suspends(self) -> None:
        async def check(store: SessionStore) -> None:
            if not isinstance(store, HasBlockingTwin):
                _skip("the store has no blocking()")
            twin = store.blocking()
            assert isinstance(twin, SessionStore), "a twin must be a store"
            key, lease = _key(), _key()
            await store.put(key, b"v", _LONG)
            assert _drive(twin.get(key)) == b"v", "the twin must see the record"
            assert _drive(twin.replace(key, b"v", b"w", _LONG)), "the twin must replace the record"
            assert await store.get(key) == b"w", "the store must see the twin's record"
            assert _drive(twin.acquire(lease, "twin", _LONG))
            assert not await store.acquire(lease, "store", _LONG), (
                "store and twin must share leases"
            )
            _drive(twin.close())

        self._run(check)

    def test_epochs_last_while_no_server_takes_over(self) -> None:
        async def check(store: SessionStore) -> None:
            if not isinstance(store, HasEpochs):
                _skip("the store has no epochs()")
            key = _key()
            epochs = await store.epochs()
            assert await store.epochs(key) <= epochs, "a key's server is one of all servers"
            await store.put(key, b"v", _LONG)
            assert await store.epochs() == epochs, "an epoch ended though nothing happened"

        self._run(check)

    # How they are run

    def _run(self, check: Check) -> None:
        """Run a check on a new store: in an event loop, or without one if the store blocks."""

        async def run() -> None:
            store = self.make_store()
            try:
                await check(store)
            finally:
                await store.close()

        if self.blocking:
            _drive(run())
        else:
            anyio.run(run, backend=self.backend)

    def _outlive(self) -> None:
        """Wait until the short time to live is over, with a margin for coarse clocks."""
        self.wait(self.short + 0.1)

    async def _purged(self, store: SessionStore) -> None:
        """Remove the short-lived records that earlier checks left in shared storage."""
        self._outlive()
        await store.purge()

    async def _together(self, functions: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Run all functions at once, in tasks or threads; return their results in order."""
        results: dict[int, T] = {}

        async def run(number: int) -> None:
            results[number] = await functions[number]()

        if self.blocking:
            threads = [
                threading.Thread(target=lambda n=n: _drive(run(n))) for n in range(len(functions))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            async with anyio.create_task_group() as group:
                for number in range(len(functions)):
                    group.start_soon(run, number)
        assert len(results) == len(functions), "a call failed in a thread; its error is above"
        return [results[number] for number in range(len(functions))]


def _key() -> str:
    return secrets.token_hex(32)


def _drive(coroutine: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Run a coroutine to its end; it must not suspend."""
    steps = coroutine.__await__()
    try:
        next(steps)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("a method of a blocking store suspended")


def _skip(reason: str) -> NoReturn:
    import pytest  # here, because users of the simulator alone may not have it

    pytest.skip(reason)
