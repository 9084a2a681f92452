"""PostgreSQL: the protocol on a real server, and what happens when it is in trouble."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cm_auth_middleware import SessionStore
from cm_auth_middleware.stores import PostgresStore, open_store
from cm_auth_middleware.testing import StoreConformance
from tests.helpers.postgres import PostgresServer, postgres_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared() -> Iterator[PostgresServer]:
    """A server for tests that leave it as it is."""
    with postgres_server() as server:
        yield server


# The protocol


class TestPostgresStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _given(self, shared: PostgresServer) -> None:
        self.url = shared.url

    def make_store(self) -> SessionStore:
        store = open_store(self.url)
        assert isinstance(store, PostgresStore)
        return store.blocking() if self.blocking else store


class TestPostgresStoreForThreads(TestPostgresStore):
    blocking = True


class TestPostgresStoreOnTrio(TestPostgresStore):
    backend = "trio"
