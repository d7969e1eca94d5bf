"""From a model record back to the document that it was read from, by the reader's own tables."""

from __future__ import annotations

from shimd.oci import tables
from shimd.oci.fields import ListOf, MapOf, ObjectOf
from shimd.oci.model import Resources
from shimd.typed import Any


def resources_document(resources: Resources) -> dict[str, Any]:
    """What ``read_resources`` reads as ``resources``; what is not given is left out."""
    document: dict[str, Any] = _document(tables.RESOURCES, resources)
    return document


def _document(reader: object, value: Any) -> Any:
    match reader:
        case ObjectOf():
            members = zip(reader.fields.items(), value, strict=True)
            pairs = ((name, _document(field, member)) for (name, field), member in members if member is not None)
            return {name: member for name, member in pairs if member not in ({}, [])}
        case ListOf():
            return [_document(reader.item, item) for item in value]
        case MapOf():
            return {name: _document(reader.item, item) for name, item in value.items()}
    return value
