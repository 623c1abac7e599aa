"""Queues: messages between processes."""
