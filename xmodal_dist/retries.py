"""Which faults of remote stores pass in a moment, and trying again while they may.

The libraries of stores retry by themselves, but for seconds: a store that is overloaded or being repaired needs longer.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import tenacity

from xmodal_dist.errors import StorageError, UsageError, XmodalError

__all__ = ["RETRY_FOR_S", "http_status", "is_unsupported", "patient"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

RETRY_FOR_S = 120.0
"""How long a call is tried again before it fails, in seconds."""

_MAX_WAIT_S = 15.0
_PASSING_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Connections that broke, by the names that optional libraries give them: they need not be imported to be known.
_PASSING_CLASSES = frozenset(
    {
        "aiohttp.client_exceptions.ClientError",
        "azure.core.exceptions.ServiceRequestError",
        "azure.core.exceptions.ServiceResponseError",
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.HTTPClientError",
        "botocore.parsers.ResponseParserError",
        "requests.exceptions.ConnectionError",
    }
)
_NOT_IMPLEMENTED = 501


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was made of; not what was being handled meanwhile."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def http_status(error: BaseException) -> int | None:
    """The HTTP status of a store's reply: botocore, azure and gcsfs each keep it elsewhere."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            names = ("status_code", "status", "code")
            status = next((s for s in (getattr(link, name, None) for name in names) if s is not None), None)
        if str(status).isdigit():
            return int(str(status))
    return None


def _is_passing(error: BaseException) -> bool:
    """Whether a fault of a remote store may be gone in a moment."""
    if isinstance(error, XmodalError | FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError | asyncio.TimeoutError | ConnectionError | BlockingIOError):
        return True
    status = http_status(error)
    if status is not None:
        return status in _PASSING_STATUSES
    return any(
        f"{kind.__module__}.{kind.__qualname__}" in _PASSING_CLASSES
        for link in _chain(error)
        for kind in type(link).__mro__
    )


def is_unsupported(error: BaseException) -> bool:
    """Whether a store, or the library that speaks to it, does not know how to create exclusively."""
    return isinstance(error, NotImplementedError) or http_status(error) == _NOT_IMPLEMENTED


def patient(verb: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Try again what fails for a moment, and say of which path the rest is; the first argument is the path.

    What does not exist, or is a folder in the place of a file, becomes a UsageError; what else fails, a StorageError.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def trying(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            again = tenacity.Retrying(
                retry=tenacity.retry_if_exception(_is_passing),
                stop=tenacity.stop_after_delay(RETRY_FOR_S),
                wait=tenacity.wait_random_exponential(multiplier=0.2, max=_MAX_WAIT_S),
                reraise=True,
            )
            try:
                return again(function, *args, **kwargs)
            except (XmodalError, TypeError, AttributeError):
                raise
            except FileNotFoundError as error:
                raise UsageError(
                    f"cannot {verb} {args[0]!r}: the file, its folder or its bucket does not exist"
                ) from error
            except (IsADirectoryError, NotADirectoryError) as error:
                raise UsageError(f"cannot {verb} {args[0]!r}: {error.strerror or 'not a file'}") from error
            except Exception as error:  # the libraries of stores raise classes of their own
                tries = again.statistics["attempt_number"]
                often = f" (tried {tries} times; give the same command again later)" if tries > 1 else ""
                raise StorageError(f"cannot {verb} {args[0]!r}: {error}{often}") from error

        return trying

    return decorate
