"""From the types that are read and written to the schemas of an OpenAPI 3.0.3 document.

The annotations that decode.py reads bodies by, and the structs that answers are encoded from, are the only source:
a field is documented because it works. Knows no route.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from server.api.decode import ReadBy, Width

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number", "format": "float"},
    Any: {},
    type(None): {"nullable": True},
}


class Components:
    """The named schemas of one document, collected as they are referred to.

    `names`: types that are to be components of this name; structs are components by their own.
    """

    def __init__(self, names: Mapping[Any, str]) -> None:
        self._names = names
        self._owners: dict[str, Any] = {}
        self.schemas: dict[str, Schema] = {}

    def schema(self, kind: Any) -> Schema:
        """The schema of an annotation: a reference where it is a component. TypeError for an unknown annotation."""
        if kind in self._names:
            return self._component(self._names[kind], kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._component(kind.__name__, kind)
        return self._inline(kind)

    def _component(self, name: str, kind: Any) -> Schema:
        if self._owners.setdefault(name, kind) is not kind and self._owners[name] != kind:
            raise TypeError(f"two types want to be the component {name}: {kind} and {self._owners[name]}")
        if name not in self.schemas:
            self.schemas[name] = {}  # so that a type may refer to itself
            self.schemas[name] = self._inline(kind)
        return {"$ref": f"#/components/schemas/{name}"}

    def _inline(self, kind: Any) -> Schema:
        origin, args = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._annotated(args[0], args[1])
        if origin in (Union, types.UnionType):
            return self._union(args)
        if origin is Literal:
            return {"type": "string", "enum": list(args)}
        if origin in (tuple, list) or origin is Sequence:
            return {"type": "array", "items": self.schema(args[0])}
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind)
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        raise TypeError(f"no schema for {kind}")

    def _annotated(self, inner: Any, rule: Width | ReadBy) -> Schema:
        if isinstance(rule, ReadBy):
            return self.schema(inner if rule.wire is None else rule.wire)
        low = {"minimum": 0} if rule.low == 0 else {}
        return {"type": "integer", "format": {"i32": "int32", "u32": "int32"}.get(rule.name, "int64"), **low}

    def _union(self, args: tuple[Any, ...]) -> Schema:
        members = [arg for arg in args if arg not in (type(None), msgspec.UnsetType)]
        whole = functools.reduce(operator.or_, members)
        if len(members) == 1 or whole in self._names:
            schema = self.schema(whole)
        else:
            schema = {"anyOf": [self.schema(member) for member in members]}
        if type(None) not in args:
            return schema
        return {"allOf": [schema], "nullable": True} if "$ref" in schema else {**schema, "nullable": True}

    def _struct(self, kind: type[msgspec.Struct]) -> Schema:
        properties: dict[str, Schema] = {}
        required: list[str] = []
        config = kind.__struct_config__
        if config.tag is not None:
            properties[str(config.tag_field)] = {"type": "string", "enum": [config.tag]}
            required.append(str(config.tag_field))
        for field in msgspec.structs.fields(kind):
            schema = self.schema(field.type)
            default = field.default
            if isinstance(default, (bool, int, float, str)) and "$ref" not in schema:
                schema["default"] = default
            properties[field.encode_name] = schema
            if field.required:
                required.append(field.encode_name)
        description = " ".join((kind.__doc__ or "").split())
        schema = {"type": "object", "description": description, "properties": properties}
        return {**schema, "required": required} if required else schema
