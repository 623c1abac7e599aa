"""Agents: who works on a task, and who handed it to whom."""
