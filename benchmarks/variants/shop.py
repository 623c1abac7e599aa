"""The app that every variant serves: one route with a path parameter and a small JSON answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI


def shop() -> FastAPI:
    """Return the app."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def read_item(item_id: int) -> dict[str, Any]:
        return {"id": item_id, "name": "a ball of thread", "in_stock": True}

    return app
