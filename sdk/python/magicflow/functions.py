"""A Python function as a function of magicflow: how its input becomes arguments.

The rules, in order:
- a parameter annotated with `Context`, or called `ctx`, receives the context;
- a single other parameter that is called `input`, or annotated with a dataclass, a `TypedDict`,
  a msgspec `Struct` or a pydantic model, receives the whole input;
- otherwise the input is an object and parameters are taken from it by name: one with a default
  may be missing, one that nobody knows is refused unless the function has `**kwargs`.

Annotations are checked, those of parameters before the call and that of the result after it, and
become the JSON Schemas that the worker registers: playbooks are checked against them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from magicflow.context import Context
from magicflow.errors import TaskError
from magicflow.v1.payload_pb2 import Payload

AnyFunction = Callable[..., Any]


class NotAFunction(TypeError):
    """What was decorated cannot be offered to a playbook."""


@dataclasses.dataclass(frozen=True, slots=True)
class BoundFunction:
    """A function with the plan of its arguments."""

    name: str
    call: AnyFunction
    description: str
    is_async: bool
    context_parameter: str
    whole_parameter: str
    input_type: Any
    takes_rest: bool
    input_schema: bytes
    output_schema: bytes
    output_type: Any = Any

    def arguments(self, value: Any, context: Context) -> dict[str, Any]:
        """Keyword arguments for an input.

        Errors: `TaskError` with the code INPUT_INVALID, not retryable.
        """
        arguments = self._from_input(value)
        if self.context_parameter:
            arguments[self.context_parameter] = context
        return arguments

    def _from_input(self, value: Any) -> dict[str, Any]:
        if self.whole_parameter:
            return {self.whole_parameter: self._convert(value)}
        if not isinstance(value, dict):
            if self.input_type is None and value is None:
                return {}
            raise _invalid(self.name, f"an object is expected, {_kind(value)} came")
        if self.input_type is None:
            return dict(value) if self.takes_rest else self._no_input(value)
        converted = self._convert(value)
        known = {f: getattr(converted, f) for f in self.input_type.__struct_fields__}
        given = {f: v for f, v in known.items() if v is not msgspec.UNSET}
        if self.takes_rest:
            given.update({key: item for key, item in value.items() if key not in known})
        return given

    def _no_input(self, value: dict[str, Any]) -> dict[str, Any]:
        if value:
            raise _invalid(self.name, f"it takes no input, {', '.join(value)} came")
        return {}

    def _convert(self, value: Any) -> Any:
        if self.input_type is Any:
            return value
        validate = getattr(self.input_type, "model_validate", None)
        try:
            if validate is not None:
                return validate(value)
            return msgspec.convert(value, self.input_type, str_keys=True)
        except (msgspec.ValidationError, ValueError) as error:
            raise _invalid(self.name, str(error)) from error

    def check_result(self, value: Any, written: Payload) -> None:
        """Whether the result, as it is written, is what the return annotation promises.

        Errors: `TaskError` with the code OUTPUT_INVALID, not retryable.
        """
        if not self.output_schema:
            return
        model = getattr(self.output_type, "model_validate_json", None)
        if model is not None and isinstance(value, self.output_type):
            return
        try:
            if written.content_type not in ("", "application/json"):
                raise ValueError(f"bytes of type {written.content_type} came")
            if model is not None:
                model(written.data)
            else:
                _decoder(self.output_type).decode(written.data or b"null")
        except (msgspec.ValidationError, ValueError) as error:
            message = f"the result of {self.name} does not fit its annotation: {error}"
            raise TaskError("OUTPUT_INVALID", message, retryable=False) from error


@functools.lru_cache(maxsize=1_024)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _invalid(name: str, message: str) -> TaskError:
    text = f"the input of {name} does not fit: {message}"
    return TaskError("INPUT_INVALID", text, retryable=False)


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(value), type(value).__name__
    )


def bind(name: str, function: AnyFunction, description: str = "") -> BoundFunction:
    """The plan for a function. Errors: `NotAFunction` for positional-only or `*args` parameters,
    or annotations that cannot be checked."""
    hints = _hints(function)
    context_parameter, others, takes_rest = _parameters(name, function, hints)
    whole = _whole(others, hints)
    if whole:
        input_type: Any = hints.get(whole, Any)
    elif others:
        input_type = _object_type(name, others, hints, takes_rest)
    else:
        input_type = None
    return BoundFunction(
        name=name,
        call=function,
        description=description or (inspect.getdoc(function) or "").split("\n\n")[0],
        is_async=_is_async(function),
        context_parameter=context_parameter,
        whole_parameter=whole,
        input_type=input_type,
        takes_rest=takes_rest,
        input_schema=_schema(name, input_type) if input_type not in (None, Any) else b"",
        output_schema=_output_schema(hints.get("return", Any)),
        output_type=hints.get("return", Any),
    )


def _is_async(function: AnyFunction) -> bool:
    """Whether a call returns a coroutine. Of a decorated function either the decorator or what
    it decorates may say so."""
    return any(
        inspect.iscoroutinefunction(part) for part in (function, _signed(inspect.unwrap(function)))
    )


def _signed(function: Any) -> AnyFunction:
    """What carries the annotations: for a partial its function, for an object its `__call__`."""
    if isinstance(function, functools.partial):
        return _signed(inspect.unwrap(function.func))
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return function.__call__  # type: ignore[no-any-return]


def _hints(function: AnyFunction) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(_signed(inspect.unwrap(function)))
        return {name: Any if kind is object else kind for name, kind in hints.items()}
    except NameError as error:
        raise NotAFunction(
            f"an annotation of {function!r} cannot be read: {error}; "
            "types must be importable where the function is defined"
        ) from error


def _parameters(
    name: str, function: AnyFunction, hints: dict[str, Any]
) -> tuple[str, list[inspect.Parameter], bool]:
    context, others, takes_rest = "", [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            takes_rest = True
        elif parameter.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            raise NotAFunction(
                f"{name}: parameter {parameter.name} has no name in an input; "
                "make it an ordinary parameter"
            )
        elif hints.get(parameter.name) is Context or parameter.name == "ctx":
            context = parameter.name
        else:
            others.append(parameter)
    return context, others, takes_rest


def _whole(others: list[inspect.Parameter], hints: dict[str, Any]) -> str:
    if len(others) != 1:
        return ""
    parameter = others[0]
    kind = hints.get(parameter.name)
    if parameter.name == "input" or _is_record(kind):
        return parameter.name
    return ""


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (
        dataclasses.is_dataclass(kind)
        or typing.is_typeddict(kind)
        or issubclass(kind, msgspec.Struct)
        or hasattr(kind, "model_validate")
    )


def _object_type(
    name: str, others: list[inspect.Parameter], hints: dict[str, Any], takes_rest: bool
) -> Any:
    fields: list[Any] = []
    for parameter in others:
        kind = hints.get(parameter.name, Any)
        if parameter.default is inspect.Parameter.empty:
            fields.append((parameter.name, kind))
        else:
            # Left out of the call when missing, so that the function's own default applies.
            fields.append((parameter.name, kind | msgspec.UnsetType, msgspec.UNSET))
    try:
        return msgspec.defstruct(
            name.replace("/", "_").replace("-", "_"),
            fields,
            kw_only=True,
            forbid_unknown_fields=not takes_rest,
        )
    except TypeError as error:
        raise NotAFunction(f"{name}: {error}") from error


def _schema(name: str, kind: Any) -> bytes:
    own = getattr(kind, "model_json_schema", None)
    try:
        schema = own() if own is not None else msgspec.json.schema(kind)
        return json.dumps(schema, separators=(",", ":")).encode()
    except TypeError as error:
        raise NotAFunction(
            f"{name}: an annotation cannot be checked: {str(error).splitlines()[-1]}; use plain "
            "types, dataclasses, TypedDicts, msgspec Structs or pydantic models"
        ) from error


def _output_schema(kind: Any) -> bytes:
    """What the return annotation promises; nothing where it says nothing that JSON can say."""
    if kind is Any or kind is bytes:
        return b""
    try:
        return _schema("return", type(None) if kind is None else kind)
    except NotAFunction:
        return b""


@functools.lru_cache(maxsize=1)
def sdk_version() -> str:
    """`python/<version>`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"python/{version('magicflow')}"
    except PackageNotFoundError:
        return "python/unknown"
