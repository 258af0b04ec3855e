"""Requests that may be sent again: a POST with an `Idempotency-Key` is done once, however often it comes.

Its answer is kept and given again. What was refused or failed was not done, so it is not kept: the same
request is tried anew. A request that comes while its like is under way waits for that one's answer. Of one
that was under way when the daemon was killed nobody can say whether it was done, and so it is answered.
"""

import hashlib
import re
from http import HTTPStatus
from typing import Final, Protocol

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.api.archives import is_archive
from ramet.api.auth import SUBJECT
from ramet.api.errors import answer, answer_to, refusal
from ramet.core.answers import Answer, Asked
from ramet.core.errors import Conflict, Invalid, RametError

HEADER: Final = "idempotency-key"
REPLAYED_HEADER: Final = "idempotent-replayed"
ANSWER_BYTES_MAX: Final = 8 << 20

_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")


class InvalidKey(Invalid):
    """The text is no idempotency key."""

    code = "invalid_idempotency_key"
    remedy_default = "send 1 to 255 printable ASCII characters, such as a random UUID"


class KeyReused(Conflict):
    """Another request came with this key."""

    code = "idempotency_key_reused"
    remedy_default = "send each request with a key of its own"


class OutcomeUnknown(Conflict):
    """The request came before, and its answer was never sent: the daemon ended, or failed."""

    code = "idempotency_outcome_unknown"
    remedy_default = "look whether it was done; if not, send it with another key"


class AnswersPort(Protocol):
    """What was answered: `ramet.store.answers.AnswerStore`."""

    def find(self, key: str) -> Asked | None: ...

    def begin(self, key: str, request: str) -> None: ...

    def keep(self, key: str, answer: Answer) -> None: ...

    def forget(self, key: str) -> None: ...


class KeptAnswers:
    """What was answered and what is under way, of all apps of one daemon."""

    def __init__(self, store: AnswersPort) -> None:
        self.store = store
        self.under_way: dict[str, anyio.Event] = {}


class Idempotency:
    """ASGI middleware that passes a POST with a key on to `app` once."""

    def __init__(self, app: ASGIApp, *, answers: KeptAnswers) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get(HEADER) if scope["type"] == "http" else None
        if key is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            if _KEY.fullmatch(key) is None:
                raise InvalidKey("The idempotency key is empty, too long, or not of printable ASCII")
            body = b""
            if not is_archive(scope):  # What is streamed is told apart by its path alone.
                body = await _read(receive)
                receive = _again(body, receive)
            # Keys of one subject mean nothing to another.
            name = _hash(str(scope.get(SUBJECT, "")), key)
            known = await self._find(name, request := _request(scope, body))
            if known is None:
                self._answers.store.begin(name, request)
        except RametError as error:
            await answer_to(error)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        except HTTPException as error:  # Too large.
            refused = refusal(error.status_code, error.detail)
            await answer(error.status_code, refused)(scope, receive, send)
            return
        if known is not None:
            headers = {"content-type": known.content_type, REPLAYED_HEADER: "true"}
            await Response(known.body, known.status, headers)(scope, receive, send)
            return
        await self._do(name, scope, receive, send)

    async def _find(self, name: str, request: str) -> Answer | None:
        """Return the answer that was given; None if the request is to be done now.

        Raises:
            KeyReused, OutcomeUnknown
        """
        while True:
            asked = self._answers.store.find(name)
            if asked is None:
                return None
            if asked.request != request:
                raise KeyReused("Another request came with this idempotency key")
            if asked.answer is not None:
                return asked.answer
            ended = self._answers.under_way.get(name)
            if ended is None:
                raise OutcomeUnknown("This request came before, and nobody knows what became of it")
            await ended.wait()

    async def _do(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        ended = self._answers.under_way[name] = anyio.Event()
        kept = _Kept(send)
        try:
            await self._app(scope, receive, kept.send)
            if kept.answer is None:
                self._answers.store.forget(name)
            elif len(kept.answer.body) <= ANSWER_BYTES_MAX:
                self._answers.store.keep(name, kept.answer)
        except ClientDisconnect:  # Before it had sent all.
            self._answers.store.forget(name)
            raise
        finally:
            del self._answers.under_way[name]
            ended.set()


class _Kept:
    """What was sent; `answer` is None unless it says that all was done."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._content_type = ""
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._content_type = Headers(raw=message["headers"]).get("content-type", "")
        elif message["type"] == "http.response.body" and len(self._body) <= ANSWER_BYTES_MAX:
            self._body += message.get("body", b"")
        await self._send(message)

    @property
    def answer(self) -> Answer | None:
        if not HTTPStatus.OK <= self._status < HTTPStatus.MULTIPLE_CHOICES:
            return None
        return Answer(self._status, self._content_type, self._body)


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what receives `body` whole, and then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again


def _request(scope: Scope, body: bytes) -> str:
    return _hash(scope["method"], scope["path"], scope["query_string"].decode("latin-1"), body.hex())


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
