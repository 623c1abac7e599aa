"""How the tables change from one version to the next, for Alembic."""

from typing import Final

HEAD: Final = "0005"
"""The newest revision; here as well as in its file, so that a process whose tables are right need not import Alembic."""
