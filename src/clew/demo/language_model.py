"""What the agents ask of a language model, through the OpenAI client: the stand-in, or whatever OPENAI_BASE_URL points to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from openai import AsyncOpenAI, OpenAIError
from pydantic import BaseModel, ValidationError

import clew
from clew.demo.settings import STAND_IN_MODEL, DemoError, DemoSettings
from clew.demo.topics import Topic

_SUMMARISE: Final = "Summarise the text that follows in at most {most} sentences. Answer with the summary alone."
_TOPICS: Final = (
    "Name at most {most} topics of the text that follows, the weightiest first, in the words of the text. Answer with JSON "
    'alone: {{"topics": [{{"name": "...", "weight": 1.0}}]}}, each weight above 0 and at most 1.'
)
_IN_USE: Final = " Of these names, use those that fit: {names}."
_FENCE: Final = re.compile(r"^\s*```\w*\s*|\s*```\s*$")
# Together less than DEMO_REDELIVER_AFTER_S, after which another consumer would begin the same work
_TIMEOUT_S: Final = 25.0
_MAX_RETRIES: Final = 1


class _Topics(BaseModel):
    topics: list[Topic]


class LanguageModel:
    """A model that summarises texts and names their topics.

    Args:
        settings: which model is asked, and for how many topics.

    Raises:
        DemoError: there is no API key.
    """

    def __init__(self, settings: DemoSettings) -> None:
        self._settings = settings
        try:
            # OPENAI_BASE_URL and OPENAI_API_KEY are read by the client itself
            client = AsyncOpenAI(timeout=_TIMEOUT_S, max_retries=_MAX_RETRIES)
        except OpenAIError as error:
            raise DemoError(f"OPENAI_API_KEY: {error}") from error
        self._client: AsyncOpenAI = clew.instrument(client)
        # What the stand-in does would cost about this at a provider's small model
        clew.llm_prices({STAND_IN_MODEL: {"input": 0.15, "output": 0.6}})
        clew.llm_budget("demo", usd=settings.budget_usd)

    @property
    def base_url(self) -> str:
        """Where the model is asked, with a slash at the end."""
        return str(self._client.base_url)

    async def summarise(self, text: str, *, most: int = 3) -> str:
        """Return a summary, received as a stream.

        Args:
            text: what is summarised.
            most: at most so many sentences.
        """
        stream = await self._client.chat.completions.create(
            model=self._settings.model,
            messages=[{"role": "system", "content": _SUMMARISE.format(most=most)}, {"role": "user", "content": text}],
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        return "".join(parts).strip()

    async def topics(self, text: str, *, known: Sequence[str] = ()) -> list[Topic]:
        """Return the topics of a text, the weightiest first.

        Args:
            text: what it is about.
            known: names that are in use.

        Raises:
            DemoError: the model answered something else.
        """
        most = self._settings.topics_per_document
        instructions = _TOPICS.format(most=most) + (_IN_USE.format(names=", ".join(known)) if known else "")
        completion = await self._client.chat.completions.create(
            model=self._settings.model,
            messages=[{"role": "system", "content": instructions}, {"role": "user", "content": text}],
            response_format={"type": "json_object"},
        )
        content = completion.choices[0].message.content or ""
        try:
            found = _Topics.model_validate(json.loads(_FENCE.sub("", content)))
        except (ValidationError, ValueError) as error:
            raise DemoError(
                f"the model {self._settings.model} answered no topics in JSON: ask another by DEMO_MODEL"
            ) from error
        by_name = {topic.name.strip().lower(): topic for topic in reversed(found.topics)}
        return sorted(by_name.values(), key=lambda topic: (-topic.weight, topic.name))[:most]

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()
