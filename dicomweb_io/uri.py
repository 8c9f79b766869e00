"""DICOMweb URIs and query strings, under the import path of the original library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dicomweb_io.dicom.uris import URI, GoogleCloudHealthcareURL, URISuffix, URIType
from dicomweb_io.queries import check_limits, make_query
from dicomweb_io.web.urls import parameters

__all__ = [
    "URI",
    "GoogleCloudHealthcareURL",
    "URISuffix",
    "URIType",
    "build_query_string",
    "parse_query_parameters",
]


def build_query_string(params: Mapping[str, Any] | None) -> str:
    """The query string of parameters, with its question mark; empty without parameters.

    Args:
        params: Parameters in order. A list gives the parameter once for each value.
    """
    text = parameters(params)
    return f"?{text}" if text else ""


def parse_query_parameters(
    fuzzymatching: bool | None = None,
    limit: int | None = None,
    offset: int | None = None,
    fields: Sequence[str] | None = None,
    search_filters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The query parameters of a search, checked, in the order they are sent.

    Args:
        fuzzymatching: Ask for fuzzy matching of names.
        limit: The maximum number of rows.
        offset: Rows to skip.
        fields: Further attributes to return.
        search_filters: Attribute (keyword, tag or dotted path) to value.

    Raises:
        TypeError, ValueError: If an argument is not valid.
    """
    check_limits(limit, offset)
    query = make_query("study", fuzzymatching=fuzzymatching, fields=fields, search_filters=search_filters)
    params: dict[str, Any] = {}
    if limit is not None:
        params["limit"] = limit
    if offset is not None:
        params["offset"] = offset
    if query.fuzzymatching is not None:
        params["fuzzymatching"] = "true" if query.fuzzymatching else "false"
    if query.fields:
        params["includefield"] = list(query.fields)
    params.update(query.search_filters)
    return params
