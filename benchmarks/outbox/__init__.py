"""What the outbox costs, beside other queues on the same PostgreSQL."""
