"""What produces the telemetry: the service, its instance and its process."""

from __future__ import annotations

import os
import sys
import uuid

from opentelemetry.sdk.resources import Resource

from clew.catalog import semconv
from clew.settings import Settings


def build_resource(settings: Settings) -> Resource:
    """Return the resource that every span, metric and log record of this process carries.

    Each process has an instance id of its own: a forked child calls this again.

    Source: https://opentelemetry.io/docs/specs/semconv/resource/
    """
    attributes = dict(settings.resource_attributes)
    name = settings.service_name or attributes.get(semconv.SERVICE_NAME) or "unknown_service:python"
    attributes[semconv.SERVICE_NAME] = name
    given_instance = attributes.get(semconv.SERVICE_INSTANCE_ID)
    attributes[semconv.SERVICE_INSTANCE_ID] = given_instance or str(uuid.uuid4())
    return Resource.create(
        {
            **attributes,
            "process.pid": os.getpid(),
            "process.runtime.name": sys.implementation.name,
            "process.runtime.version": ".".join(str(part) for part in sys.version_info[:3]),
        }
    )
