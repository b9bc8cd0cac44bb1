"""The store as a file: migrations, what it refuses, and what survives."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from bridge.goip.server import LineMemory
from bridge.store.database import MIGRATIONS, Store, StoreError, StoreUnusable


def test_a_new_store_has_the_newest_schema(tmp_path: Path) -> None:
    Store(tmp_path / "new" / "bridge.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "new" / "bridge.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "bridge.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "bridge.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreUnusable, match="newer version"):
        Store(tmp_path / "bridge.db")


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bridge.db").write_bytes(b"not a database, but somebody's data" * 100)
    before = (tmp_path / "bridge.db").read_bytes()
    with pytest.raises(StoreUnusable, match=r"bridge\.db"):
        Store(tmp_path / "bridge.db")
    assert (tmp_path / "bridge.db").read_bytes() == before


@pytest.mark.parametrize("version", [0, 2, 99])
def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"CREATE TABLE line (x); INSERT INTO line VALUES (1); PRAGMA user_version = {version};")
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match=r"other\.db: it is the database of another program: name another file"):
        Store(path)
    assert path.read_bytes() == before


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store, store.transaction():
        for number in range(2000):
            store.add_repeats([(number.to_bytes(12, "big"), "goip1", float(number))])
    content = bytearray((tmp_path / "bridge.db").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8192] = b"\xaa" * 8192
    (tmp_path / "bridge.db").write_bytes(content)
    with pytest.raises(StoreUnusable):
        Store(tmp_path / "bridge.db")


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store, store.transaction():
        store.put("a", 1)
        with pytest.raises(StoreUnusable):
            Store(tmp_path / "bridge.db")


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.put("a", 1)
            raise ZeroDivisionError
        assert store.get("a") is None


def test_a_full_store_is_a_store_error_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full"), store.transaction():
            store.put("a", "x" * 100_000)
        store._db.execute("PRAGMA max_page_count = 1000000")
        with store.transaction():
            store.put("a", "x" * 100_000)


def test_outbox_numbers_never_come_again(tmp_path: Path) -> None:
    row = ("t", "s", 1, b"{}", None, 1.0)
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
        with store.transaction():
            assert store.add_outbox([row, row, row]) == 1
        with store.transaction():
            store.delete_outbox([1, 2, 3])
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
        with store.transaction():
            assert store.add_outbox([row]) == 4
        assert [waiting.n for waiting in store.outbox(0, 10)] == [4]
        assert store.outbox_size() == (1, 1.0)


def test_a_line_that_moves_keeps_what_it_said(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
        with store.transaction():
            memory = LineMemory(address=("10.0.0.1", 10991), count=5, reboots=1, fields={"signal": "20"})
            store.save_line("goip1", memory)
            store.move_line("goip1", LineMemory(address=("10.0.0.2", 10992), count=6, reboots=1))
        assert list(store.lines()) == [
            ("goip1", LineMemory(address=("10.0.0.2", 10992), count=6, reboots=1, fields={"signal": "20"}))
        ]


def test_the_queue_is_by_priority_and_then_first_come(tmp_path: Path) -> None:
    def sms(msg: str, priority: int) -> dict[str, object]:
        return {
            "msg": msg, "cmd": "c", "line": "goip1", "number": "1", "text": "x", "priority": priority,
            "guarantee": "at_most_once", "created": 0.0, "state": "queued", "changed": 0.0,
        }  # fmt: skip

    with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
        with store.transaction():
            for msg, priority in (("a", 5), ("b", 9), ("c", 5), ("d", 9), ("e", 0)):
                store.add_sms(**sms(msg, priority))
        assert [row.msg for row in store.queued("goip1", 10)] == ["b", "d", "a", "c", "e"]
        plan = store._db.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM sms WHERE line = 'x' AND state = 'queued' ORDER BY priority DESC, n"
        ).fetchall()
        assert all("TEMP B-TREE" not in step[-1] for step in plan), plan


# -- the epoch


def use(path: Path, times: int = 1) -> None:
    """A run of the bridge, as far as the epoch is concerned."""
    with contextlib.closing(Store(path)) as store:
        for _ in range(times):
            with store.transaction():
                store.advance_epoch()
            store.witness_epoch()


def restored(path: Path) -> bool:
    with contextlib.closing(Store(path)) as store:
        return store.restored


def test_a_store_that_was_only_restarted_is_not_restored(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    assert not restored(path)
    use(path)
    assert not restored(path)
    use(path, 3)
    assert not restored(path)


def test_a_backup_that_was_put_back_is_recognised_until_it_is_the_newest_again(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    use(path)
    backup = path.read_bytes()
    use(path)
    path.write_bytes(backup)
    assert restored(path)
    use(path)
    assert not restored(path)


def test_a_store_that_came_without_its_epoch_file_is_taken_for_restored(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    use(path)
    (tmp_path / "bridge.db-epoch").unlink()
    assert restored(path)


def test_an_epoch_file_that_stayed_behind_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    use(path, 5)
    (tmp_path / "bridge.db-epoch").write_text("2\n")
    assert not restored(path)


def test_a_store_that_was_deleted_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    use(path, 5)
    path.unlink()
    assert not restored(path)
    use(path)
    assert not restored(path)


def test_nobody_else_may_read_a_new_store(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db", ballast=True)) as store, store.transaction():
        store.put("a", 1)
        names = list(tmp_path.iterdir())
        assert {"bridge.db", "bridge.db-epoch", "bridge.db-ballast"} < {path.name for path in names}
        assert {path.stat().st_mode & 0o777 for path in names} == {0o600}


def test_files_of_an_older_version_are_closed_to_others(tmp_path: Path) -> None:
    files = [tmp_path / "bridge.db-epoch", tmp_path / "bridge.db-ballast"]
    use(tmp_path / "bridge.db")
    Store(tmp_path / "bridge.db", ballast=True).close()
    for file in files:
        file.chmod(0o666)
    Store(tmp_path / "bridge.db", ballast=True).close()
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    assert not restored(tmp_path / "bridge.db")


def test_no_file_of_somebody_else_is_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "a.db-ballast").symlink_to(target)
    with contextlib.closing(Store(tmp_path / "a.db", ballast=True)) as store:
        assert not store.low
        assert store._ballast is not None
        store._ballast.give_up()
    assert target.read_text() == "precious"
    empty = tmp_path / "empty"
    empty.touch()
    (tmp_path / "c.db-ballast").symlink_to(empty)
    with contextlib.closing(Store(tmp_path / "c.db", ballast=True)) as store:
        assert not store.low, "an empty file elsewhere says nothing of the disk"

    (tmp_path / "b.db-epoch").symlink_to(target)
    with pytest.raises(StoreUnusable, match=r"b\.db-epoch: is a symbolic link, which is not followed"):
        Store(tmp_path / "b.db")
    assert target.read_text() == "precious"
    # One that comes while the bridge runs is not followed either.
    with contextlib.closing(Store(tmp_path / "d.db")) as store:
        (tmp_path / "d.db-epoch").unlink()
        (tmp_path / "d.db-epoch").symlink_to(target)
        store.witness_epoch()
    assert target.read_text() == "precious"


def test_a_pipe_in_the_place_of_a_file_makes_nobody_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.db-epoch")
    os.mkfifo(tmp_path / "a.db-ballast")
    with contextlib.closing(Store(tmp_path / "a.db", ballast=True)) as store:
        store.witness_epoch()
        assert not store.low
