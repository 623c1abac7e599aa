"""Work that every app has: documents, caches, other people's services, and errors that are handled."""
