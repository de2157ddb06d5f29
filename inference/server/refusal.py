"""Refusals: one line for a client, as JSON, in the shape of OpenAI's API."""

import errno
import logging
import os
import traceback
from typing import Any

from ..out_of_memory import is_out_of_memory
from ..scheduler import QueueFull
from ..screen import DEBUG, one_line

LONGEST = 400  # characters of a line, which may quote a request

logger = logging.getLogger(__name__)


class Refusal(Exception):
    """status: HTTP's. retry_after: seconds after which it may be tried again."""

    def __init__(self, status: int, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.message, self.retry_after = status, one_line(message)[:LONGEST], retry_after

    def to_dict(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "code": self.status}}

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refusal_of(error: BaseException) -> Refusal:
    """The refusal for an error; one that is not the client's is logged, in a line."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, QueueFull):
        return Refusal(503, "too many requests wait; try again later", 2)
    if is_out_of_memory(error):
        return Refusal(503, "memory is too small for one more request now; try again later", 5)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal(507, "no space is left on the server's disk; try again later", 60)
    if isinstance(error, ValueError):
        return Refusal(400, one_line(error))
    log_error(error)
    if isinstance(error, FloatingPointError):
        return Refusal(500, one_line(error))
    return Refusal(500, "something went wrong in the server; its log says what")


def log_error(error: BaseException) -> None:
    """One line; with CODECLM_DEBUG set the traceback is before it."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    logger.error("%s: %s", type(error).__name__, one_line(error)[:LONGEST])
