"""A PostgreSQL database that cannot store every text."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine

from yamarket_chat.outbox import Outbox, OutboxDatabaseError


async def test_create_refuses_a_database_that_is_not_utf8(postgres: Any) -> None:
    if isinstance(postgres, str):
        pytest.skip(postgres)
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE cyrillic ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C'"
            " TEMPLATE template0"
        )
    try:
        async with Outbox(postgres.set(database="cyrillic")) as outbox:
            with pytest.raises(OutboxDatabaseError, match=r"WIN1251.*ENCODING 'UTF8'"):
                await outbox.create()
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql("DROP DATABASE cyrillic WITH (FORCE)")
        admin.dispose()
