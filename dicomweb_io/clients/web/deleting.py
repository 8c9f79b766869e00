"""Deleting studies, series and instances (PS3.18 section 10.7), in the way the server's profile tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dicomweb_io.clients.web.service import Service
from dicomweb_io.clients.web.urls import parameters, with_query
from dicomweb_io.dicom import json_model
from dicomweb_io.elements import Resource
from dicomweb_io.wire.errors import DICOMwebError, MalformedResponseError
from dicomweb_io.wire.transport import Answer

_NO_INTERFACE = (404, 405)
_ORTHANC_TYPES = {"study": "Study", "series": "Series", "instance": "Instance"}


class Deleter:
    """Deletes from one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def delete(self, resource: Resource, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study, series or instance.

        Raises:
            ValueError: If the server offers no way to delete by DICOMweb, or the reference is to frames.
            requests.HTTPError: If the server refuses, or does not have the object (404).
        """
        if resource.level == "frame":
            raise ValueError("frames cannot be deleted: delete their instance")
        profile = self._service.profile
        if profile.delete is None:
            raise ValueError(
                f"servers with the profile {profile.name!r} delete nothing by DICOMweb; use the server's own interface"
            )
        # The address alone may make a server look like Orthanc: one without its interface is asked by DICOMweb.
        if profile.delete == "orthanc" and self._delete_in_orthanc(resource):
            return
        url = with_query(self._service.urls.delete(resource), parameters(additional_params))
        answer = self._service.transport.request("DELETE", url, headers={"Accept": "*/*"}, accept_statuses=(404,))
        # A 404 after a lost answer is the proof that the first attempt did it.
        if answer.status == 404 and answer.attempts == 1:
            raise answer.error(f"the server does not have {resource.uri}", DICOMwebError)
        if answer.content_type == "text/html":
            # Portals in front of an archive answer anything with 200 and a page.
            raise answer.error("expected a confirmation, got an HTML page (a login page?)", MalformedResponseError)
        self._service.report_warnings(answer)

    def _delete_in_orthanc(self, resource: Resource) -> bool:
        """By Orthanc's own REST interface, which lies beside the DICOMweb root: look the UID up, then delete.

        Returns:
            Whether there is such an interface.
        """
        urls, transport = self._service.urls, self._service.transport
        root = urls.origin + urls.path.rpartition("/")[0]
        uid = resource.sop_instance_uid or resource.series_instance_uid or resource.study_instance_uid
        answer = transport.request(
            "POST",
            f"{root}/tools/lookup",
            headers={"Content-Type": "text/plain", "Accept": "application/json"},
            body=uid.encode("ascii", "strict"),
            idempotent=True,
            accept_statuses=_NO_INTERFACE,
        )
        if answer.status in _NO_INTERFACE:
            return False
        found = self._json(answer)
        paths = [
            str(item.get("Path"))
            for item in found
            if isinstance(item, dict) and item.get("Type") == _ORTHANC_TYPES[resource.level]
        ]
        # A UID may be in the archive more than once (under several patients or series): only what was meant goes.
        matching = [path for path in paths if self._belongs(root + path, resource)]
        if not matching:
            raise DICOMwebError(
                f"the server does not have {resource.uri}",
                status=404,
                url=answer.url,
                method="POST",
                attempts=answer.attempts,
            )
        for path in matching:
            transport.request("DELETE", root + path, accept_statuses=(404,))
        return True

    def _belongs(self, url: str, resource: Resource) -> bool:
        checks: list[tuple[str, str, str | None]] = []
        if resource.level != "study":
            checks.append(("study", "StudyInstanceUID", resource.study_instance_uid))
        if resource.level == "instance":
            checks.append(("series", "SeriesInstanceUID", resource.series_instance_uid))
        for name, keyword, wanted in checks:
            answer = self._service.transport.request("GET", f"{url}/{name}", headers={"Accept": "application/json"})
            parent = self._json(answer)
            tags = parent.get("MainDicomTags") if isinstance(parent, dict) else None
            if not isinstance(tags, dict) or tags.get(keyword) != wanted:
                return False
        return True

    def _json(self, answer: Answer) -> Any:
        try:
            return json_model.loads(answer.content)
        except ValueError as error:
            raise answer.error("expected JSON of Orthanc's REST interface", MalformedResponseError) from error
