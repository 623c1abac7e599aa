"""Reading a request's body no further than a limit."""

from __future__ import annotations

from starlette.requests import Request


class BodyTooLargeError(Exception):
    """A body has more bytes than are taken; the text is one sentence for the sender."""


async def read_bounded(request: Request, max_bytes: int) -> bytes:
    """Return a request's body.

    Args:
        request: the request; its body has not been read yet.
        max_bytes: the most that is taken.

    Raises:
        BodyTooLargeError: there is more. What was announced as too large is not read at all.
    """
    announced = request.headers.get("content-length", "")
    # Longer than any length that can be meant: int() would read it digit by digit
    if announced.isascii() and announced.isdecimal() and (len(announced) > 18 or int(announced) > max_bytes):
        raise BodyTooLargeError(_sentence(max_bytes))
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError(_sentence(max_bytes))
    return bytes(body)


def _sentence(max_bytes: int) -> str:
    return f"the body is larger than {max_bytes} bytes, the most that is taken: send less"
