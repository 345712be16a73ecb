"""Move an outbox from a SQLite file to PostgreSQL: all messages, with numbers, keys and states.

python to_postgresql.py outbox.db postgresql+psycopg://user:password@host/database

Stop the programs that use the file before. One that still runs gets errors from then on, so it puts
nothing into the old file. If the move is interrupted, run the command again.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sqlalchemy import (
    Connection,
    MetaData,
    NullPool,
    Table,
    create_engine,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy import text as sql

from yamarket_chat.outbox import Outbox
from yamarket_chat.outbox.locks import is_free
from yamarket_chat.outbox.schema import leases, messages, metadata, schema, workers

MOVED = f"{messages.name}_moved"


def take_away(old: Connection, path: Path) -> None:
    """Rename the table of messages, so that no program sends or puts any more."""
    if inspect(old).has_table(MOVED):
        return  # this was interrupted
    for about, lock in old.execute(select(workers.c.about, workers.c.lock)):
        file = path.with_name(lock)
        if file.exists() and not is_free(str(file)):
            sys.exit(f"a worker delivers from {path} ({about}): stop it first")
    old.exec_driver_sql(f"ALTER TABLE {messages.name} RENAME TO {MOVED}")


def copy(old: Connection, new: Connection, table: Table) -> int:
    source = table.to_metadata(MetaData(), name=MOVED) if table is messages else table
    # A file may have 5 MB.
    pieces = old.execution_options(yield_per=20 if "content" in table.c else 1000)
    done = 0
    for piece in pieces.execute(select(source)).mappings().partitions():
        rows = [dict(row) for row in piece]
        if table is leases:
            rows = [row | {"worker": None, "wanted": None} for row in rows]
        new.execute(insert(table), rows)
        done += len(rows)
    return done


def main(path: Path, url: str) -> None:
    if not path.is_file():
        sys.exit(f"there is no file {path}")
    for address in (f"sqlite:///{path}", url):  # both get the tables of this version
        asyncio.run(Outbox(address).create())
    file = create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with file.connect() as old:
        old.exec_driver_sql("BEGIN IMMEDIATE")
        take_away(old, path)
        old.exec_driver_sql("COMMIT")
        with create_engine(url, poolclass=NullPool).begin() as new:
            if new.scalar(select(func.count()).select_from(messages)):
                sys.exit("the outbox in PostgreSQL has messages: nothing was copied")
            for table in metadata.sorted_tables:
                if table not in (schema, workers):
                    print(f"{table.name}: {copy(old, new, table):,} rows")
            # A number is never used again, not even that of a message which is pruned.
            sequence = sql("SELECT seq FROM sqlite_sequence WHERE name = :name")
            last = old.scalar(sequence, {"name": MOVED})
            if last is not None:
                identity = func.pg_get_serial_sequence(messages.name, "number")
                new.execute(select(func.setval(identity, last)))
    print("done: start the workers with the new address")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
