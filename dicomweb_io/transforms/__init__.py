"""The connector: DICOMweb archives and folders of DICOM files as sources, transforms and sinks of Apache Beam.

Search, retrieve, store::

    import apache_beam as beam
    from dicomweb_io.transforms import RetrieveInstances, SearchForInstances, StoreInstances

    with beam.Pipeline() as p:
        (
            p
            | SearchForInstances("https://pacs.example/dicom-web", search_filters={"Modality": "CT"})
            | RetrieveInstances("https://pacs.example/dicom-web")
            | StoreInstances("/data/ct")
        )

An endpoint is a URL, a path, any fsspec URL, or an `Endpoint` with credentials and options. Searches give rows in the
DICOM JSON model; everything that names an object (a row, a `Resource`, a DICOMweb URI) can be retrieved. To move
instances without looking at them, `CopyInstances` is faster and needs less memory.

- **Sources**: `SearchForStudies`, `SearchForSeries`, `SearchForInstances`, `ReadFromDICOMweb`. Applied to a collection,
  the searches run once for each element; `ReadAllFromDICOMweb` reads the instances that each element names.
  `ReadReferences` reads a list of what is wanted.
- **Retrieves**: `RetrieveInstances`, `RetrieveMetadata`, `RetrieveFrames`, `RetrieveRendered`, `RetrieveBulkdata`.
- **Sinks**: `StoreInstances` (also called `WriteToDICOMweb`), `CopyInstances`; their result is a `StoreResult`.
  `DownloadInstances` writes files and emits their paths. `DeleteResources` deletes.
- **Watching**: `WatchForStudies` and `WatchForInstances` emit references to what is new in an archive,
  `WatchForCompleteStudies` to studies of which nothing has arrived for a while; `ParseNotifications` turns
  notifications of archives into references.
- **Comparison**: `CompareArchives` gives what one of two archives has and the other has not.
- **Tables**: `AsRows` makes rows with a schema from elements and from search rows; searches do it with ``columns=``.

A failure that remains after all retries fails the pipeline. With ``.with_error_handler(handler)`` or
``failures="collect"`` it becomes a `Failure` element, and the pipeline continues.

References cross shuffles, pixels never do: do not put a shuffle (GroupByKey, Reshuffle, a Flatten of two retrieves, a
side input made of instances) between a retrieve and the step that uses the bytes.
"""

from dicomweb_io.transforms.coders import ElementCoder, register_coders
from dicomweb_io.transforms.copy import CopyInstances, DownloadInstances, DownloadResult
from dicomweb_io.transforms.delete import DeleteResources, DeleteResult
from dicomweb_io.transforms.frames import (
    RetrieveBulkdata,
    RetrievedBulkdata,
    RetrievedFrames,
    RetrievedRendered,
    RetrieveFrames,
    RetrieveRendered,
)
from dicomweb_io.transforms.read_write import (
    DistinctReferences,
    NamedReferences,
    ReadAllFromDICOMweb,
    ReadFromDICOMweb,
    ReadReferences,
    WriteToDICOMweb,
)
from dicomweb_io.transforms.reconcile import CompareArchives, ComparedArchives
from dicomweb_io.transforms.retrieve import (
    RetrievedInstances,
    RetrievedMetadata,
    RetrieveInstances,
    RetrieveMetadata,
)
from dicomweb_io.transforms.rows import AsRows, bigquery_schema
from dicomweb_io.transforms.search import SearchForInstances, SearchForSeries, SearchForStudies, SearchResult
from dicomweb_io.transforms.store import StoreInstances, StoreResult
from dicomweb_io.transforms.watch import (
    ParsedNotifications,
    ParseNotifications,
    Watched,
    WatchForCompleteStudies,
    WatchForInstances,
    WatchForStudies,
)

register_coders()

__all__ = [
    "AsRows",
    "CompareArchives",
    "ComparedArchives",
    "CopyInstances",
    "DeleteResources",
    "DeleteResult",
    "DistinctReferences",
    "DownloadInstances",
    "DownloadResult",
    "ElementCoder",
    "NamedReferences",
    "ParseNotifications",
    "ParsedNotifications",
    "ReadAllFromDICOMweb",
    "ReadFromDICOMweb",
    "ReadReferences",
    "RetrieveBulkdata",
    "RetrieveFrames",
    "RetrieveInstances",
    "RetrieveMetadata",
    "RetrieveRendered",
    "RetrievedBulkdata",
    "RetrievedFrames",
    "RetrievedInstances",
    "RetrievedMetadata",
    "RetrievedRendered",
    "SearchForInstances",
    "SearchForSeries",
    "SearchForStudies",
    "SearchResult",
    "StoreInstances",
    "StoreResult",
    "WatchForCompleteStudies",
    "WatchForInstances",
    "WatchForStudies",
    "Watched",
    "WriteToDICOMweb",
    "bigquery_schema",
]
