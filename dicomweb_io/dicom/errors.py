"""What can be wrong with DICOM data and with the names that address it: the errors of `dicomweb_io.dicom`.

    DICOMError (a ValueError)
    ├── InvalidIdentifierError  a UID, URI, attribute or media type is not valid
    ├── FilterError             the value of a search filter is not possible
    ├── Part10Error             a file is not usable as a DICOM object
    │   ├── NotDICOMError           its bytes are something else
    │   ├── DICOMDIRError           it is a directory of instances
    │   ├── IncompleteDICOMError    it is cut off or broken
    │   └── MissingUIDError         it lacks a UID
    ├── DatasetError            a dataset cannot be encoded, or the text of one is broken
    │   └── IncompleteJSONError     a JSON text ends too early
    ├── FrameError              a frame is not there, or its place is unknown
    ├── TranscodingError        pixel data cannot be decoded or encoded
    └── RenderingError          an image cannot be rendered
        └── RenderingUnavailableError   because a library is missing

Messages hold tags and UIDs, never other values of a dataset. `dicomweb_io.errors` exports these errors too.
"""

from __future__ import annotations


class DICOMError(ValueError):
    """The data are at fault, or a name is. Any other `ValueError` is a mistake in a program."""


class InvalidIdentifierError(DICOMError):
    """A UID, URI, attribute or media type is not valid."""


class FilterError(DICOMError):
    """A search filter has a value that its attribute cannot have."""


class Part10Error(DICOMError):
    """A file is not usable as a DICOM object.

    Attributes:
        reason: Why, in one sentence, without values of the dataset other than UIDs.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotDICOMError(Part10Error):
    """The bytes are not a DICOM object."""


class DICOMDIRError(Part10Error):
    """The file is a media storage directory (DICOMDIR, PS3.10 section 8.6): it is a list of instances."""


class IncompleteDICOMError(Part10Error):
    """The bytes are DICOM, but they are cut off or broken before what was needed."""


class MissingUIDError(Part10Error):
    """A DICOM object lacks a UID by which it could be addressed.

    Attributes:
        missing: The keywords of the UIDs that are absent or unusable.
        uids: The UIDs that are there, by keyword.
    """

    def __init__(self, reason: str, missing: tuple[str, ...] = (), uids: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.missing = missing
        self.uids = uids or {}

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...], dict[str, str]]]:
        return type(self), (self.reason, self.missing, self.uids)


class DatasetError(DICOMError):
    """A dataset cannot be written in an encoding, or a text does not hold one (Part 10, DICOM JSON, DICOM XML)."""


class IncompleteJSONError(DatasetError):
    """A JSON text ends before its array does."""


class FrameError(DICOMError):
    """A frame is not there, or nothing says where it is."""


class TranscodingError(DICOMError):
    """Pixel data cannot be decoded, or cannot be encoded as asked."""


class RenderingError(DICOMError):
    """An image cannot be rendered."""


class RenderingUnavailableError(RenderingError):
    """A library that rendering needs is not installed."""
