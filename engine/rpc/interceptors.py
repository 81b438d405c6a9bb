"""What every call passes through: who calls, errors as statuses, a line in the log."""

from __future__ import annotations

import contextvars
import ipaddress
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_status import rpc_status

from engine.errors import MagicflowError, Unauthenticated
from engine.rpc.status import to_status
from engine.security.tokens import LOCAL, Identity, Tokens

_caller: contextvars.ContextVar[Identity] = contextvars.ContextVar("magicflow_caller")
_log = structlog.get_logger(__name__)

OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")


def caller() -> Identity:
    """Who makes the call that is being served."""
    return _caller.get()


class Gate(grpc.aio.ServerInterceptor):
    """Checks the token and turns errors into statuses. With `local`, calls from this host may
    come without a token; one that is given is checked all the same."""

    def __init__(self, tokens: Tokens, local: bool) -> None:
        self._tokens = tokens
        self._local = local

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        method = details.method or ""
        if handler is None or method.startswith(OPEN_SERVICES):
            return handler
        header = dict(details.invocation_metadata or ()).get("authorization", "")
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler.stream_stream, method, header),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(handler.unary_stream, method, header),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, method, header),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, behaviour: Any, method: str, header: str | bytes) -> Any:
        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                _caller.set(self._identify(header, context))
                return await behaviour(request, context)
            except MagicflowError as error:
                await _abort(context, error)
            except Exception as error:
                await _abort(context, _masked(method, error))

        return serve

    def _streaming(self, behaviour: Any, method: str, header: str | bytes) -> Any:
        async def serve(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                _caller.set(self._identify(header, context))
                async for response in behaviour(request, context):
                    yield response
            except MagicflowError as error:
                await _abort(context, error)
            except Exception as error:
                await _abort(context, _masked(method, error))

        return serve

    def _identify(
        self, header: str | bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Identity:
        text = header.decode() if isinstance(header, bytes) else header
        if not text:
            if self._local and _is_local(context.peer()):
                return LOCAL
            raise Unauthenticated(
                "the call carries no token",
                reason="TOKEN_INVALID",
                mend="get one with `magicflow app token APP` and pass it in MAGICFLOW_TOKEN",
            )
        scheme, _, token = text.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(
                "the authorization metadata is not `Bearer <token>`", reason="TOKEN_INVALID"
            )
        return self._tokens.check(token.strip())


def _is_local(peer: str) -> bool:
    """`ipv4:127.0.0.1:5`, `ipv6:[::1]:5`, `unix:`."""
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return True
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: MagicflowError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def _masked(method: str, error: Exception) -> MagicflowError:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    number = secrets.token_hex(6)
    _log.exception("call failed", method=method, id=number)
    return MagicflowError(
        f"a fault in magicflow itself; its server log has the details under {number}",
        reason="INTERNAL",
    )
