"""Stories of an outbox: workers that deliver from one database, in virtual time."""
