"""SQLite: the database, and what keeps its disk usable."""
