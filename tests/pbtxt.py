"""A strict reader of config.pbtxt: protocol buffers' text format, as far as a model's configuration uses it."""

import json
import re
from pathlib import Path
from typing import Any

TOKEN = re.compile(r'\s+|#[^\n]*|(?P<token>"(?:[^"\\]|\\.)*"|[A-Za-z_][A-Za-z0-9_]*|-?[0-9]+|[][{}:,])')
MAPS = ("parameters", "inputs")  # fields of entries with `key` and `value`, which may come more than once


def read_config(path: Path) -> dict[str, Any]:
    """The configuration as dictionaries and lists; enumerations stay words. Raises: ValueError for anything unexpected."""
    text, tokens, at = path.read_text(encoding="utf-8"), [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"unexpected {text[at : at + 20]!r}")
        tokens += [match["token"]] if match["token"] else []
        at = match.end()
    tokens.append("}")
    message = _message(tokens)
    if tokens:
        raise ValueError(f"more than one message: {tokens[:5]}")
    return message


def _message(tokens: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    while (name := tokens.pop(0)) != "}":
        if not name.isidentifier():
            raise ValueError(f"expected a field's name, got {name!r}")
        scalar = tokens[0] == ":"
        if scalar:
            tokens.pop(0)
        value = _value(tokens, scalar)
        if name in MAPS:
            entries = fields.setdefault(name, {})
            if value["key"] in entries or set(value) != {"key", "value"}:
                raise ValueError(f"a second entry, or none: {value}")
            entries[value["key"]] = value["value"]
        elif name in fields:
            raise ValueError(f"field {name} comes twice")
        else:
            fields[name] = value
    return fields


def _value(tokens: list[str], scalar: bool) -> Any:
    token = tokens.pop(0)
    if token == "[":
        values = [_value(tokens, scalar)]
        while (separator := tokens.pop(0)) == ",":
            values.append(_value(tokens, scalar))
        if separator != "]":
            raise ValueError(f"expected , or ], got {separator!r}")
        return values
    if token == "{":
        if scalar:
            raise ValueError("a message after a colon")
        return _message(tokens)
    if not scalar:
        raise ValueError(f"expected a message, got {token!r}")
    if token.startswith('"'):
        return json.loads(token)
    if re.fullmatch("-?[0-9]+", token):
        return int(token)
    if token in ("true", "false"):
        return token == "true"
    if not token.isidentifier():
        raise ValueError(f"expected a value, got {token!r}")
    return token
