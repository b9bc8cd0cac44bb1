"""What must survive: an SQLite file in WAL mode with full synchronisation.

`Store` knows tables, not meaning: the package `features` decides what is written, inside one `transaction()` for each
batch of input. Everything here is synchronous; a commit is the one place where the program waits for the disk.
"""

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..goip.line import Proof
from ..goip.server import LineMemory
from ..system import holders
from .reserve import Ballast, open_private

MIGRATIONS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
    CREATE TABLE line (
        name TEXT PRIMARY KEY, host TEXT NOT NULL, port INTEGER NOT NULL, count INTEGER NOT NULL,
        reboots INTEGER NOT NULL, online INTEGER NOT NULL, fields TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- events of the boxes that were taken, so that their repeats are acknowledged and not published again
    CREATE TABLE repeat (key BLOB NOT NULL, line TEXT NOT NULL, at REAL NOT NULL) STRICT;
    CREATE INDEX repeat_at ON repeat (at);
    -- facts and results the broker has not acknowledged; AUTOINCREMENT, so that a number never comes again
    CREATE TABLE outbox (
        n INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, schema TEXT NOT NULL, expiry_s INTEGER NOT NULL,
        body BLOB NOT NULL, correlation BLOB, at REAL NOT NULL
    ) STRICT;
    CREATE TABLE command (
        n INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, id TEXT NOT NULL, payload TEXT NOT NULL,
        minted INTEGER NOT NULL, target TEXT NOT NULL, path TEXT NOT NULL, response_topic TEXT, correlation BLOB,
        warnings TEXT NOT NULL, at REAL NOT NULL, result BLOB
    ) STRICT;
    CREATE UNIQUE INDEX command_key ON command (topic, id) WHERE NOT minted;
    CREATE INDEX command_minted ON command (topic, payload) WHERE minted;
    CREATE INDEX command_at ON command (at);
    CREATE INDEX command_open ON command (n) WHERE result IS NULL;
    CREATE TABLE job (
        job TEXT PRIMARY KEY, cmd TEXT NOT NULL, line TEXT NOT NULL, total INTEGER NOT NULL, started REAL NOT NULL,
        ended REAL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE sms (
        n INTEGER PRIMARY KEY AUTOINCREMENT, msg TEXT NOT NULL UNIQUE, cmd TEXT NOT NULL, job TEXT,
        line TEXT NOT NULL, number TEXT NOT NULL, text TEXT NOT NULL, priority INTEGER NOT NULL,
        guarantee TEXT NOT NULL, src TEXT, created REAL NOT NULL, expires REAL,
        state TEXT NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, sendid INTEGER, telid INTEGER, sms_no INTEGER,
        changed REAL NOT NULL
    ) STRICT;
    CREATE INDEX sms_queue ON sms (line, priority DESC, n) WHERE state = 'queued';
    CREATE INDEX sms_expires ON sms (expires) WHERE state = 'queued' AND expires IS NOT NULL;
    CREATE INDEX sms_open ON sms (state, changed) WHERE state IN ('sending', 'unknown');
    CREATE INDEX sms_no ON sms (line, sms_no, changed) WHERE sms_no IS NOT NULL;
    CREATE INDEX sms_job ON sms (job, state) WHERE job IS NOT NULL;
    CREATE INDEX sms_changed ON sms (changed);
    -- delivery reports that came before their OK
    CREATE TABLE report (
        n INTEGER PRIMARY KEY, line TEXT NOT NULL, sms_no INTEGER, state INTEGER NOT NULL, number TEXT NOT NULL,
        at REAL NOT NULL
    ) STRICT;
    CREATE TABLE traffic (
        line TEXT NOT NULL, day TEXT NOT NULL, sent INTEGER NOT NULL, delivered INTEGER NOT NULL,
        failed INTEGER NOT NULL, unknown INTEGER NOT NULL, received INTEGER NOT NULL, PRIMARY KEY (line, day)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- what was seen of a line's firmware
    CREATE TABLE proof (
        line TEXT PRIMARY KEY, safe INTEGER NOT NULL, identity TEXT NOT NULL, dense INTEGER NOT NULL, at REAL NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- the line's reboots when the SMS was submitted: its sms_no may have begun again since
    ALTER TABLE sms ADD COLUMN reboots INTEGER;
    """,
    """
    -- an earlier submission of it may have gone out: nobody knows
    ALTER TABLE sms ADD COLUMN doubted INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- SQLite uses a partial index only where its condition stands word for word in the statement; those below do
    DROP INDEX sms_queue;
    DROP INDEX sms_open;
    DROP INDEX sms_no;
    DROP INDEX sms_job;
    DROP INDEX sms_changed;
    -- the last seven digits, by which delivery reports are matched (`bridge.features.ledger.last_digits`)
    ALTER TABLE sms ADD COLUMN digits TEXT
        AS (substr(replace(replace(replace(number, '+', ''), '*', ''), '#', ''), -7)) VIRTUAL;
    UPDATE sms SET job = NULL WHERE job IS NOT NULL AND job NOT IN (SELECT job FROM job);
    CREATE INDEX sms_queue ON sms (line, priority DESC, n, expires) WHERE state = 'queued';
    CREATE INDEX sms_sending ON sms (n) WHERE state = 'sending';
    CREATE INDEX sms_unknown ON sms (line, changed) WHERE state = 'unknown';
    CREATE INDEX sms_given_back ON sms (line, changed) WHERE state = 'queued' AND sendid IS NOT NULL;
    CREATE INDEX sms_doubtful ON sms (changed, n) WHERE state = 'unknown' AND guarantee = 'at_least_once';
    CREATE INDEX sms_submitted ON sms (line, sendid, telid) WHERE sendid IS NOT NULL;
    CREATE INDEX sms_again ON sms (line, changed) WHERE attempt > 1;
    CREATE INDEX sms_no ON sms (line, sms_no, digits, changed) WHERE sms_no IS NOT NULL;
    CREATE INDEX sms_to ON sms (line, digits, changed) WHERE sendid IS NOT NULL;
    CREATE INDEX sms_job ON sms (job) WHERE job IS NOT NULL;
    CREATE INDEX sms_single ON sms (changed) WHERE job IS NULL AND state NOT IN ('queued', 'sending');
    CREATE INDEX job_ended ON job (ended) WHERE ended IS NOT NULL;
    CREATE INDEX report_match ON report (line, sms_no);
    CREATE INDEX report_at ON report (at);
    -- how many SMS of a line wait or are under way, and how many of a job are in each state; nobody counts them anew
    CREATE TABLE line_tally (
        line TEXT NOT NULL, state TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (line, state)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE job_tally (
        job TEXT NOT NULL, state TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (job, state)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO line_tally
        SELECT line, 'queued', count(*) FROM sms WHERE state = 'queued' GROUP BY line
        UNION ALL SELECT line, 'sending', count(*) FROM sms WHERE state = 'sending' GROUP BY line;
    INSERT INTO job_tally SELECT job, state, count(*) FROM sms WHERE job IS NOT NULL GROUP BY job, state;
    UPDATE job SET ended = NULL WHERE ended IS NOT NULL AND job IN (
        SELECT job FROM job_tally WHERE state IN ('queued', 'sending')
    );
    CREATE TRIGGER sms_added AFTER INSERT ON sms BEGIN
        INSERT INTO line_tally SELECT NEW.line, NEW.state, 1 WHERE NEW.state IN ('queued', 'sending')
            ON CONFLICT DO UPDATE SET count = count + 1;
        INSERT INTO job_tally SELECT NEW.job, NEW.state, 1 WHERE NEW.job IS NOT NULL
            ON CONFLICT DO UPDATE SET count = count + 1;
    END;
    CREATE TRIGGER sms_moved AFTER UPDATE OF state ON sms WHEN NEW.state <> OLD.state BEGIN
        UPDATE line_tally SET count = count - 1 WHERE line = OLD.line AND state = OLD.state;
        INSERT INTO line_tally SELECT NEW.line, NEW.state, 1 WHERE NEW.state IN ('queued', 'sending')
            ON CONFLICT DO UPDATE SET count = count + 1;
    END;
    CREATE TRIGGER sms_moved_in_job AFTER UPDATE OF state ON sms WHEN NEW.state <> OLD.state AND NEW.job IS NOT NULL
    BEGIN
        UPDATE job_tally SET count = count - 1 WHERE job = OLD.job AND state = OLD.state;
        INSERT INTO job_tally VALUES (NEW.job, NEW.state, 1) ON CONFLICT DO UPDATE SET count = count + 1;
    END;
    INSERT INTO meta SELECT 'outbox_count', count(*) FROM outbox;
    """,
    """
    -- the number of the fact that this is a copy of, for Home Assistant; 0 for all others
    ALTER TABLE outbox ADD COLUMN copy_of INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX outbox_copies ON outbox (at) WHERE copy_of > 0;
    """,
)
"""Each brings the schema one `user_version` further. Never edited once released, only appended to."""


WAL_BYTES = 4 << 20
"What is left of the write-ahead log after something large, such as a migration."
EVER = ""
"The day under which counters of forgotten days are added up."


class StoreError(Exception):
    """The store can't be written or read now: disk full, read-only, I/O error, locked. What was tried is undone."""


class StoreUnusable(Exception):  # noqa: N818 - not an error to catch and go on
    """The file is not a store, is damaged, or was made by a newer version. `args[0]` says which and what to do."""


_ADVICE = {
    sqlite3.SQLITE_BUSY: "uses it: stop that one, or give this one a store of its own",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore a backup, or move it away to begin anew",
    sqlite3.SQLITE_NOTADB: "it is no store of this program, or damaged: name another file, or restore a backup",
    sqlite3.SQLITE_FULL: "free space on its disk",
}
"What to do about a store that can't be opened, by SQLite's result code."
_WRITABLE = "check that it and its folder can be written"
FOREIGN = "it is the database of another program: name another file"


OutboxEntry = tuple[str, str, int, bytes, bytes | None, float]
"Topic, schema, expiry, body, correlation data, unix time."
OutboxCopy = tuple[str, str, int, bytes, bytes | None, float, int]
"The same, and the number of the fact that it is a copy of."


class OutboxRow(NamedTuple):
    """A fact or result on its way to the broker."""

    n: int
    topic: str
    schema: str
    expiry_s: int
    body: bytes
    correlation: bytes | None
    at: float
    copy_of: int = 0
    "The number of the fact that this is a copy of, for Home Assistant; 0 for all others."


class SmsRow(NamedTuple):
    """One recipient's SMS."""

    n: int
    msg: str
    cmd: str
    job: str | None
    line: str
    number: str
    text: str
    priority: int
    guarantee: str
    src: str | None
    created: float
    expires: float | None
    state: str
    attempt: int
    sendid: int | None
    telid: int | None
    sms_no: int | None
    changed: float
    reboots: int | None
    doubted: int
    digits: str
    "The last seven digits of the number; made by the store."


class CommandRow(NamedTuple):
    """A command that was accepted."""

    n: int
    topic: str
    id: str
    payload: str
    minted: bool
    target: str
    path: str
    response_topic: str | None
    correlation: bytes | None
    warnings: str
    at: float
    result: bytes | None


class Store:
    """The durable tables. Raises `StoreUnusable` when the file can't serve as a store, `StoreError` later on."""

    def __init__(self, path: Path, *, ballast: bool = False) -> None:
        """With `ballast`, hold space for when the disk is full."""
        self.path = path
        self._ballast: Ballast | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # it has numbers and texts; SQLite's others follow
            if ballast:
                self._ballast = Ballast(path.with_name(f"{path.name}-ballast"))
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5, cached_statements=256)
            with contextlib.ExitStack() as undo:
                undo.callback(self._db.close)
                self._open()
                if self._ballast is not None:
                    self._ballast.take()
                self._witness = path.with_name(f"{path.name}-epoch")
                self._compare_epochs()
                undo.pop_all()
        except OSError as error:
            advice = _ADVICE[sqlite3.SQLITE_FULL] if error.errno == errno.ENOSPC else _WRITABLE
            raise StoreUnusable(f"{error.filename or path}: {error.strerror}; {advice}") from None
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            advice = _ADVICE.get(code, _WRITABLE)
            if code == sqlite3.SQLITE_BUSY:
                advice = f"{holders.of_lock(path) or 'another bridge'} {advice}"
            raise StoreUnusable(f"{path}: {error}; {advice}") from None

    def _open(self) -> None:
        db = self._db
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # two bridges on one store would send twice
        if is_foreign(db):
            raise StoreUnusable(f"{self.path}: {FOREIGN}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            words = " ".join(damage.split())
            raise StoreUnusable(f"{self.path}: {words}; {_ADVICE[sqlite3.SQLITE_CORRUPT]}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise StoreUnusable(f"{self.path}: made by a newer version of this program (schema {version}); upgrade")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and on disk when it ends. Raises `StoreError`."""
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._rollback()
            if self._ballast is not None and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                self._ballast.give_up()
            raise StoreError(str(error)) from None
        except BaseException:
            self._rollback()
            raise
        if self._ballast is not None and self._ballast.spent:
            self._ballast.take()

    @property
    def low(self) -> bool:
        """The disk was full: what is left is for the gateways' SMS and for outcomes, not for new commands."""
        return self._ballast is not None and self._ballast.spent

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # -- the epoch: whether this file is the newest one

    def _compare_epochs(self) -> None:
        """The epoch counts up while the store is in use, in it and in a file beside it: a backup stays behind."""
        epoch, witness = self.get("epoch"), _number_in(self._witness)
        self.restored = epoch is not None and (witness is None or witness > epoch)
        "The file was put back, or came from elsewhere: what happened since it was saved is not in it."
        self._epoch: int = max(epoch or 0, witness or 0)
        if epoch is None and witness is None:
            self.witness_epoch()  # there before the first epoch is, so that a crash in between is no restoration

    def advance_epoch(self) -> None:
        """Part of a transaction."""
        self._epoch += 1
        self.put("epoch", self._epoch)

    def witness_epoch(self) -> None:
        """After that transaction. A file that can't be written makes a restored store look like the newest one.

        It is overwritten in place: emptied first, it would stay empty on a full disk, and the store look restored.
        """
        with contextlib.suppress(OSError):
            file = open_private(self._witness, os.O_WRONLY | os.O_CREAT)
            try:
                os.write(file, b"%020d\n" % self._epoch)
                if self._epoch == 0:
                    os.fsync(file)
            finally:
                os.close(file)

    # -- meta

    def get(self, key: str) -> Any:
        """A value kept by name; None when there is none."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, value: int | float | str) -> None:
        """Keep a value by name."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- lines

    def save_line(self, name: str, memory: LineMemory) -> None:
        """Remember a line as it is."""
        host, port = memory.address
        fields = json.dumps(memory.fields)
        self._db.execute(
            "INSERT OR REPLACE INTO line VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, host, port, memory.count, memory.reboots, memory.online, fields),
        )

    def move_line(self, name: str, memory: LineMemory) -> None:
        """Remember where a line is, and leave what it said last."""
        host, port = memory.address
        self._db.execute(
            "INSERT INTO line VALUES (?1, ?2, ?3, ?4, ?5, 1, '{}') ON CONFLICT (name) DO UPDATE SET "
            "host = ?2, port = ?3, count = ?4, reboots = ?5",
            (name, host, port, memory.count, memory.reboots),
        )

    def set_online(self, name: str, *, online: bool) -> None:
        """Remember whether a line that was heard before is there."""
        self._db.execute("UPDATE line SET online = ? WHERE name = ?", (online, name))

    def save_proof(self, name: str, proof: Proof, at: float) -> None:
        """Remember what was seen of a line's firmware."""
        row = (name, proof.safe, proof.identity, proof.dense, at)
        self._db.execute("INSERT OR REPLACE INTO proof VALUES (?, ?, ?, ?, ?)", row)

    def proofs(self) -> Iterator[tuple[str, Proof]]:
        """What is known of the firmware, by line."""
        for name, safe, identity, dense in self._db.execute("SELECT line, safe, identity, dense FROM proof"):
            yield name, Proof(safe=bool(safe), identity=identity, dense=bool(dense))

    def delete_lines(self, names: Iterable[str]) -> None:
        """Forget where these lines were, and what they were."""
        keys = [(name,) for name in names]
        self._db.executemany("DELETE FROM line WHERE name = ?", keys)
        self._db.executemany("DELETE FROM proof WHERE line = ?", keys)

    def lines(self) -> Iterator[tuple[str, LineMemory]]:
        """Every line ever heard."""
        for name, host, port, count, reboots, online, fields in self._db.execute("SELECT * FROM line"):
            yield (
                name,
                LineMemory(
                    address=(host, port), count=count, reboots=reboots, online=bool(online), fields=json.loads(fields)
                ),
            )

    # -- repeats

    def add_repeats(self, rows: Iterable[tuple[bytes, str, float]]) -> None:
        """Remember events by (key, line, unix time)."""
        self._db.executemany("INSERT INTO repeat VALUES (?, ?, ?)", rows)

    def repeats(self, since: float) -> Iterator[tuple[bytes, str, float]]:
        """Events remembered since then, oldest first."""
        yield from self._db.execute("SELECT key, line, at FROM repeat WHERE at >= ? ORDER BY at", (since,))

    def old_repeats(self, before: float, limit: int) -> list[int]:
        """Numbers of events remembered since before then."""
        return self._numbers("SELECT rowid FROM repeat WHERE at < ? ORDER BY at LIMIT ?", before, limit)

    def delete_repeat(self, n: int) -> None:
        """Forget an event."""
        self._db.execute("DELETE FROM repeat WHERE rowid = ?", (n,))

    # -- outbox

    def add_outbox(self, rows: list[OutboxEntry] | list[OutboxCopy]) -> int:
        """Append (topic, schema, expiry, body, correlation, unix time), or the same with the number of the fact that
        each is a copy of; returns the number of the first.
        """
        columns = ("topic", "schema", "expiry_s", "body", "correlation", "at", "copy_of")[: len(rows[0])]
        marks = ", ".join("?" * len(columns))
        # Outside a transaction of others the numbers of one executemany are consecutive: there is one writer.
        self._db.executemany(f"INSERT INTO outbox ({', '.join(columns)}) VALUES ({marks})", rows)
        last: int = self._db.execute("SELECT last_insert_rowid()").fetchone()[0]
        self._count_outbox(len(rows))
        return last - len(rows) + 1

    def outbox(self, after: int, limit: int) -> list[OutboxRow]:
        """The next messages in order."""
        cursor = self._db.execute("SELECT * FROM outbox WHERE n > ? ORDER BY n LIMIT ?", (after, limit))
        return [OutboxRow(*row) for row in cursor]

    def outbox_size(self) -> tuple[int, float | None]:
        """How many wait, and since when the oldest does that is no copy."""
        query = "SELECT at FROM outbox WHERE n > 0 AND copy_of = 0 ORDER BY n LIMIT 1"
        first = self._db.execute(query).fetchone()
        return int(self.get("outbox_count") or 0), first[0] if first else None

    def outbox_copies(self) -> list[tuple[int, str, int, float]]:
        """(n, schema, expiry, unix time) of every copy for Home Assistant, the oldest first."""
        query = "SELECT n, schema, expiry_s, at FROM outbox WHERE copy_of > 0 AND at > 0 ORDER BY at"
        return self._db.execute(query).fetchall()

    def delete_outbox(self, numbers: Iterable[int]) -> None:
        """Drop messages the broker has acknowledged."""
        self._count_outbox(-self._db.executemany("DELETE FROM outbox WHERE n = ?", ((n,) for n in numbers)).rowcount)

    def _count_outbox(self, more: int) -> None:
        """Counted by change: it may hold millions when the broker was away for long."""
        self._db.execute("UPDATE meta SET value = value + ? WHERE key = 'outbox_count'", (more,))

    # -- commands

    def add_command(
        self,
        *,
        topic: str,
        id: str,
        payload: str,
        minted: bool,
        target: str,
        path: str,
        response_topic: str | None,
        correlation: bytes | None,
        warnings: list[str],
        at: float,
    ) -> int:
        """Accept a command; returns its number."""
        if not minted:  # one older than the callers look back
            self._db.execute("DELETE FROM command WHERE topic = ? AND id = ? AND NOT minted", (topic, id))
        words = json.dumps(warnings)
        cursor = self._db.execute(
            "INSERT INTO command (topic, id, payload, minted, target, path, response_topic, correlation, warnings, at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (topic, id, payload, minted, target, path, response_topic, correlation, words, at),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def command(self, n: int) -> CommandRow | None:
        """An accepted command by number."""
        return self._command("n = ?", n)

    def command_by_id(self, topic: str, id: str, since: float) -> CommandRow | None:
        """An accepted command by its key of idempotency."""
        return self._command("topic = ? AND id = ? AND NOT minted AND at >= ?", topic, id, since)

    def command_by_payload(self, topic: str, payload: str, since: float) -> CommandRow | None:
        """The newest accepted command without an id of its own."""
        return self._command("topic = ? AND payload = ? AND minted AND at >= ? ORDER BY n DESC", topic, payload, since)

    def open_commands(self) -> Iterator[CommandRow]:
        """Accepted commands that have no result yet; what is done to one does not disturb."""
        n = 0
        query = "SELECT * FROM command WHERE result IS NULL AND n > ? ORDER BY n LIMIT 100"
        while page := [CommandRow(*row) for row in self._db.execute(query, (n,)).fetchall()]:
            yield from page
            n = page[-1].n

    def old_commands(self, before: float, limit: int) -> list[int]:
        """Numbers of commands that were answered and came before then."""
        query = "SELECT n FROM command WHERE at < ? AND result IS NOT NULL ORDER BY at LIMIT ?"
        return self._numbers(query, before, limit)

    def delete_command(self, n: int) -> None:
        """Forget a command."""
        self._db.execute("DELETE FROM command WHERE n = ?", (n,))

    def set_result(self, n: int, result: bytes) -> None:
        """Keep a command's result for its repeats."""
        self._db.execute("UPDATE command SET result = ? WHERE n = ?", (result, n))

    def _command(self, where: str, *arguments: object) -> CommandRow | None:
        row = self._db.execute(f"SELECT * FROM command WHERE {where} LIMIT 1", arguments).fetchone()
        return CommandRow(*row) if row else None

    # -- SMS

    def add_job(self, job: str, cmd: str, line: str, total: int, started: float) -> None:
        """Begin a job, at a time as it is told."""
        self._db.execute("INSERT INTO job VALUES (?, ?, ?, ?, ?, NULL)", (job, cmd, line, total, started))

    def add_sms(self, **columns: Any) -> int:
        """Queue one SMS; returns its number."""
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        cursor = self._db.execute(f"INSERT INTO sms ({names}) VALUES ({marks})", tuple(columns.values()))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def sms(self, n: int) -> SmsRow | None:
        """One SMS by number."""
        rows = self._sms("n = ?", n)
        return rows[0] if rows else None

    def update_sms(self, n: int, **columns: Any) -> None:
        """Change columns of one SMS."""
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self._db.execute(f"UPDATE sms SET {assignments} WHERE n = ?", (*columns.values(), n))

    def queued(self, line: str, limit: int, but: tuple[float, int] | None = None) -> list[SmsRow]:
        """What a line should send next: highest priority first, then first come first served; `but` those that expire
        before a time, up to a number.
        """
        where, arguments = "line = ? AND state = 'queued'", [line, *(but or ())]
        if but is not None:
            where += " AND NOT (expires IS NOT NULL AND expires <= ? AND n <= ?)"
        return self._sms(f"{where} ORDER BY priority DESC, n LIMIT ?", *arguments, limit)

    def queued_lines(self) -> list[str]:
        """Lines with something to send."""
        query = "SELECT line FROM line_tally WHERE state = 'queued' AND count > 0"
        return [row[0] for row in self._db.execute(query)]

    def expired(self, after: tuple[float, int], now: float, limit: int) -> list[SmsRow]:
        """Queued SMS whose time is over, behind (time, number)."""
        return self._sms(
            "state = 'queued' AND expires IS NOT NULL AND (expires, n) > (?, ?) AND expires <= ? "
            "ORDER BY expires, n LIMIT ?",
            *after,
            now,
            limit,
        )

    def hasten(self, seconds: float, after: int, upto: int) -> None:
        """SMS that are not sent yet expire so much earlier: of those with the numbers behind `after`, up to `upto`."""
        self._db.execute(
            "UPDATE sms SET expires = expires - ? "
            "WHERE n > ? AND n <= ? AND state IN ('queued', 'sending') AND expires IS NOT NULL",
            (seconds, after, upto),
        )

    def first_sms(self) -> int:
        """The number of the oldest SMS that is remembered; 0 when there is none."""
        row = self._db.execute("SELECT min(n) FROM sms").fetchone()
        return row[0] or 0

    def last_sms(self) -> int:
        """The number of the newest SMS; 0 when there was none."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'sms'").fetchone()
        return row[0] if row else 0

    def sending(self) -> Iterator[SmsRow]:
        """SMS that gateways were given and whose outcome is awaited; what is done to one does not disturb."""
        n = 0
        while page := self._sms("state = 'sending' AND n > ? ORDER BY n LIMIT 500", n):
            yield from page
            n = page[-1].n

    def given_back(self, line: str, since: float, limit: int) -> list[SmsRow]:
        """SMS of a line that were submitted and queued again since then, the newest first: the gateway may yet say what
        became of them.
        """
        return self._sms(
            "state = 'queued' AND sendid IS NOT NULL AND line = ? AND changed >= ? ORDER BY changed DESC LIMIT ?",
            line,
            since,
            limit,
        )

    def unknown(self, line: str, since: float, limit: int) -> list[SmsRow]:
        """SMS of a line that became `unknown` since then, the newest first."""
        return self._sms(
            "state = 'unknown' AND line = ? AND changed >= ? ORDER BY changed DESC LIMIT ?", line, since, limit
        )

    def doubtful(self, after: tuple[float, int], before: float, limit: int) -> list[SmsRow]:
        """SMS that are to arrive at least once and became `unknown` behind (time, number), and before a time."""
        return self._sms(
            "state = 'unknown' AND guarantee = 'at_least_once' AND (changed, n) > (?, ?) AND changed <= ? "
            "ORDER BY changed, n LIMIT ?",
            *after,
            before,
            limit,
        )

    def submitted_before(self, line: str, sendid: int, telid: int, limit: int) -> list[SmsRow]:
        """What a line was given to send before that, the last first."""
        return self._sms(
            "line = ? AND sendid IS NOT NULL AND (sendid, telid) < (?, ?) ORDER BY sendid DESC, telid DESC LIMIT ?",
            line,
            sendid,
            telid,
            limit,
        )

    def has_submitted(self, line: str, after: int, before: int = 2**62) -> bool:
        """Whether a line was given something to send between two sendids."""
        return bool(self._sms("line = ? AND sendid > ? AND sendid < ? LIMIT 1", line, after, before))

    def has_submitted_again(self, line: str, since: float) -> bool:
        """Whether one of a line's SMS that was submitted more than once changed since then."""
        return bool(self._sms("line = ? AND attempt > 1 AND changed >= ? LIMIT 1", line, since))

    def submitted_to(self, line: str, digits: str, since: float, limit: int) -> Iterator[SmsRow]:
        """What a line was given to send to numbers that end so, and that changed since then; the last first."""
        where = "line = ? AND digits = ? AND changed >= ? AND sendid IS NOT NULL ORDER BY changed DESC, n DESC LIMIT ?"
        cursor = self._db.execute(f"SELECT * FROM sms WHERE {where}", (line, digits, since, limit))
        return (SmsRow(*row) for row in cursor)

    def submitted_last(self, line: str, limit: int) -> list[SmsRow]:
        """What a line was given to send last, the last first."""
        where = "line = ? AND sendid IS NOT NULL ORDER BY sendid DESC, telid DESC LIMIT ?"
        return self._sms(where, line, limit)

    def by_sms_no(self, line: str, sms_no: int, digits: str, since: float, limit: int) -> list[SmsRow]:
        """SMS to numbers that end so that a gateway gave this sms_no, and that changed since then; newest first."""
        return self._sms(
            "line = ? AND sms_no = ? AND digits = ? AND changed >= ? ORDER BY changed DESC, n DESC LIMIT ?",
            line,
            sms_no,
            digits,
            since,
            limit,
        )

    def old_sms(self, before: float, limit: int) -> list[int]:
        """Numbers of SMS that belong to no job, are neither queued nor under way, and did not change since then."""
        return self._numbers(
            "SELECT n FROM sms WHERE job IS NULL AND state NOT IN ('queued', 'sending') AND changed < ? "
            "ORDER BY changed LIMIT ?",
            before,
            limit,
        )

    def sms_of_job(self, job: str, limit: int) -> list[int]:
        """Numbers of SMS of a job."""
        return self._numbers("SELECT n FROM sms WHERE job = ? LIMIT ?", job, limit)

    def delete_sms(self, n: int) -> None:
        """Forget an SMS that nothing will become of any more."""
        self._db.execute("DELETE FROM sms WHERE n = ?", (n,))

    def _sms(self, where: str, *arguments: object) -> list[SmsRow]:
        return [SmsRow(*row) for row in self._db.execute(f"SELECT * FROM sms WHERE {where}", arguments)]

    def _numbers(self, query: str, *arguments: object) -> list[int]:
        return [row[0] for row in self._db.execute(query, arguments)]

    def queue_counts(self) -> dict[str, tuple[int, int]]:
        """(queued, active) by line; lines with neither are absent."""
        counts: dict[str, dict[str, int]] = {}
        for line, state, count in self._db.execute("SELECT line, state, count FROM line_tally WHERE count > 0"):
            counts.setdefault(line, {})[state] = count
        return {line: (of.get("queued", 0), of.get("sending", 0)) for line, of in counts.items()}

    # -- jobs

    def job(self, job: str) -> tuple[str, str, int, float, float | None] | None:
        """(command id, line, total, started, ended)."""
        row = self._db.execute("SELECT cmd, line, total, started, ended FROM job WHERE job = ?", (job,)).fetchone()
        return tuple(row) if row else None

    def job_counts(self, job: str) -> dict[str, int]:
        """Recipients of a job by state."""
        query = "SELECT state, count FROM job_tally WHERE job = ? AND count > 0"
        return dict(self._db.execute(query, (job,)).fetchall())

    def end_jobs(self, jobs: Iterable[str], at: float) -> None:
        """Note that nothing of these jobs waits any more, at a time as it is told."""
        rows = ((at, job) for job in jobs)
        self._db.executemany("UPDATE job SET ended = ? WHERE job = ? AND ended IS NULL", rows)

    def reopen_job(self, job: str) -> None:
        """Note that something of a job waits again."""
        self._db.execute("UPDATE job SET ended = NULL WHERE job = ? AND ended IS NOT NULL", (job,))

    def jobs(self, after: str, limit: int) -> list[str]:
        """Jobs that are remembered, in the order of their names."""
        query = "SELECT job FROM job WHERE job > ? ORDER BY job LIMIT ?"
        return [row[0] for row in self._db.execute(query, (after, limit))]

    def old_job(self, before: float) -> str | None:
        """A job that ended before then."""
        row = self._db.execute("SELECT job FROM job WHERE ended < ? ORDER BY ended LIMIT 1", (before,)).fetchone()
        return row[0] if row else None

    def delete_job(self, job: str) -> None:
        """Forget a job, once its SMS are forgotten."""
        self._db.execute("DELETE FROM job WHERE job = ?", (job,))
        self._db.execute("DELETE FROM job_tally WHERE job = ?", (job,))

    # -- delivery reports

    def add_report(self, line: str, sms_no: int | None, state: int, number: str, at: float) -> None:
        """Hold a report that matches nothing yet."""
        self._db.execute(
            "INSERT INTO report (line, sms_no, state, number, at) VALUES (?, ?, ?, ?, ?)",
            (line, sms_no, state, number, at),
        )

    def reports(self, line: str, sms_no: int, limit: int) -> list[tuple[int, int, str]]:
        """(n, state, number) of held reports with this number."""
        query = "SELECT n, state, number FROM report WHERE line = ? AND sms_no = ? LIMIT ?"
        return self._db.execute(query, (line, sms_no, limit)).fetchall()

    def old_reports(self, before: float, limit: int) -> list[tuple[int, str, int | None, int, str]]:
        """(n, line, sms_no, state, number) of reports held since before then, the oldest first."""
        query = "SELECT n, line, sms_no, state, number FROM report WHERE at <= ? ORDER BY at, n LIMIT ?"
        return self._db.execute(query, (before, limit)).fetchall()

    def delete_report(self, n: int) -> None:
        """Let go of a held report."""
        self._db.execute("DELETE FROM report WHERE n = ?", (n,))

    # -- traffic

    def count(self, line: str, day: str, counts: dict[str, int]) -> None:
        """Add to a line's counters of a day."""
        values = [counts.get(name, 0) for name in ("sent", "delivered", "failed", "unknown", "received")]
        self._db.execute(
            "INSERT INTO traffic VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (line, day) DO UPDATE SET "
            "sent = sent + ?3, delivered = delivered + ?4, failed = failed + ?5, unknown = unknown + ?6, "
            "received = received + ?7",
            (line, day, *values),
        )

    def traffic(self, day: str | None = None) -> dict[str, dict[str, int]]:
        """Counters by line: of one day, or since ever."""
        names = ("sent", "delivered", "failed", "unknown", "received")
        sums = ", ".join(f"sum({name})" for name in names)
        if day is None:
            cursor = self._db.execute(f"SELECT line, {sums} FROM traffic GROUP BY line")
        else:
            cursor = self._db.execute(f"SELECT line, {', '.join(names)} FROM traffic WHERE day = ?", (day,))
        return {line: dict(zip(names, counts, strict=True)) for line, *counts in cursor}

    def old_traffic(self, before: str, limit: int) -> list[tuple[str, str]]:
        """(line, day) of counters of days before that one."""
        query = "SELECT line, day FROM traffic WHERE day <> ? AND day < ? LIMIT ?"
        return self._db.execute(query, (EVER, before, limit)).fetchall()

    def fold_traffic(self, line: str, day: str) -> None:
        """Forget a day, but not what it counted."""
        key = (line, day)
        row = self._db.execute(
            "SELECT sent, delivered, failed, unknown, received FROM traffic WHERE line = ? AND day = ?", key
        ).fetchone()
        names = ("sent", "delivered", "failed", "unknown", "received")
        self.count(line, EVER, dict(zip(names, row, strict=True)))
        self._db.execute("DELETE FROM traffic WHERE line = ? AND day = ?", key)


def is_foreign(db: sqlite3.Connection) -> bool:
    """Whether a database was made by another program: it has tables, and not those that every store has."""
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    return bool(tables) and not tables >= {"meta", "line", "outbox", "command", "sms"}


def _number_in(path: Path) -> int | None:
    if path.is_symlink():  # it could not be written, and the store would look restored at every start
        raise StoreUnusable(f"{path}: is a symbolic link, which is not followed: put the file itself there")
    try:
        with os.fdopen(open_private(path, os.O_RDONLY)) as file:
            return int(file.read(100))
    except (OSError, ValueError):
        return None
