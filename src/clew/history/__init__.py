"""The durable records: rows about jobs, messages, agents and health, in SQLite or PostgreSQL."""
