"""A whole small system that uses only the facade: it reads documents, finds their topics, and shows the one thread through it.

A gateway, an orchestrator, an agent in a process of its own, a scheduler and a stand-in for a language model, over a real
Valkey and SQLite. ``clew demo`` starts them all; each is started alone by ``python -m clew.demo.gateway`` and the like, with its
settings in the environment, as ``settings.py`` lists them.
"""
