"""uvicorn fastapi_app:app --loop uvloop --timeout-graceful-shutdown 7"""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypedDict

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from outgoing import Outgoing
from pydantic import BaseModel

from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    InvalidArgumentError,
    MaxWaitExceededError,
)

LEFT = Path(os.environ.get("LEFT", "left.json"))


class State(TypedDict):
    outgoing: Outgoing


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    outgoing = Outgoing(ChatSession(max_wait=3), LEFT)
    yield {"outgoing": outgoing}
    # uvicorn has let the handlers end by now, for at most --timeout-graceful-shutdown seconds. It
    # waits for this line as long as it takes, so this bounds it.
    await outgoing.close(grace=20)


def get_outgoing(request: Request) -> Outgoing:
    outgoing: Outgoing = request.state.outgoing
    return outgoing


app = FastAPI(lifespan=lifespan)


class Reply(BaseModel):
    chat_id: int
    text: str


@app.post("/replies")
async def reply(reply: Reply, outgoing: Annotated[Outgoing, Depends(get_outgoing)]) -> JSONResponse:
    try:
        receipt = await outgoing.send(reply.chat_id, reply.text)
    except InvalidArgumentError as error:
        return JSONResponse({"error": str(error)}, 422)
    except MaxWaitExceededError as error:  # the limit is used up; nothing was sent
        retry_after = {"Retry-After": str(math.ceil(error.retry_after or 1))}
        return JSONResponse({"error": str(error)}, 429, retry_after)
    except DeliveryUnknownError:
        return JSONResponse({"status": "unknown"}, 202)  # the next start settles it
    except ChatError as error:  # refused: surely not carried out
        return JSONResponse({"error": str(error)}, 502)
    if receipt is None:
        return JSONResponse({"status": "sending"}, 202)
    return JSONResponse({"status": "sent", "trace_id": receipt.trace_id})
