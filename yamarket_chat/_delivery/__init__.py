"""What becomes of a message: retries, order within a chat, and unknown outcomes."""
