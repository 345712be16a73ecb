"""uvicorn django_app:application --timeout-graceful-shutdown 7

Settings, view and ASGI application in one file. In a project of yours, `application` belongs into
`asgi.py`, and `outgoing()` into a module that the views import.
"""

import math
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from outgoing import Outgoing

from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    InvalidArgumentError,
    MaxWaitExceededError,
)

LEFT = Path(os.environ.get("LEFT", "left.json"))
settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY=os.environ["SECRET_KEY"]
)

_outgoing: list[Outgoing] = []


def outgoing() -> Outgoing:
    """Return the Outgoing of this process. Call it from async views."""
    return _outgoing[0]


class Reply(msgspec.Struct):
    chat_id: int
    text: str


@csrf_exempt
async def reply(request: HttpRequest) -> JsonResponse:
    try:
        reply = msgspec.json.decode(request.body, type=Reply)
        receipt = await outgoing().send(reply.chat_id, reply.text)
    except (msgspec.DecodeError, InvalidArgumentError) as error:
        return JsonResponse({"error": str(error)}, status=422)
    except MaxWaitExceededError as error:  # the limit is used up; nothing was sent
        retry_after = {"Retry-After": str(math.ceil(error.retry_after or 1))}
        return JsonResponse({"error": str(error)}, status=429, headers=retry_after)
    except DeliveryUnknownError:
        return JsonResponse({"status": "unknown"}, status=202)  # the next start settles it
    except ChatError as error:  # refused: surely not carried out
        return JsonResponse({"error": str(error)}, status=502)
    if receipt is None:
        return JsonResponse({"status": "sending"}, status=202)
    return JsonResponse({"status": "sent", "trace_id": receipt.trace_id})


urlpatterns = [path("replies", reply)]
django = get_asgi_application()


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[Mapping[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """Django, and the lifespan that Django does not have."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    await receive()  # lifespan.startup
    _outgoing.append(Outgoing(ChatSession(max_wait=3), LEFT))
    await send({"type": "lifespan.startup.complete"})
    await receive()  # lifespan.shutdown, when the handlers have ended
    await _outgoing.pop().close(grace=20)
    await send({"type": "lifespan.shutdown.complete"})
