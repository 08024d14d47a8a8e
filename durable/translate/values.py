"""Python values as JSON values. Whatever comes in, the result can be written to the log, and nothing is raised.

What has no JSON form is replaced by `{"notSerializable": "<class name>"}`, where it stands if the value around it is
sound, else as a whole. The text of such an object is never used: its `repr` may hold what no observer should see.
"""

from __future__ import annotations

from pydantic_core import from_json, to_jsonable_python

from durable.chunks import Json


def to_json_value(value: object) -> Json:
    """The value as JSON: models by alias, bytes as URL-safe base64, dates as ISO 8601, NaN and infinity as null."""
    try:
        return to_jsonable_python(value, by_alias=True, bytes_mode="base64", inf_nan_mode="null", fallback=_placeholder)
    except Exception:  # noqa: BLE001 - a serializer of the user's own may raise anything; cycles end here too
        return _placeholder(value)


def to_args(args: object) -> dict[str, Json] | None:
    """A tool call's arguments as an object; None when what the model wrote is not one.

    No arguments at all are an empty object.
    """
    if args is None or args == "":
        return {}
    if isinstance(args, str):
        try:
            args = from_json(args)
        except ValueError:
            return None
    if not isinstance(args, dict):
        return None
    value: dict[str, Json] = to_json_value(args)
    return value


def _placeholder(value: object) -> Json:
    return {"notSerializable": type(value).__name__}
