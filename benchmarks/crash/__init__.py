"""Workers of the outbox are killed, paused and stopped, and the Market's chats are looked at."""
