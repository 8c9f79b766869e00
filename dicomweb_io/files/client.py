"""`DICOMfileClient`: a folder of DICOM files as an archive, with the methods of a DICOMweb client.

The files are the truth. The client keeps an index, a cache in the user's cache directory that can be deleted at any
time; nothing but instances is ever written into the folder. A search sees the folder as it was when the client first
looked or when `DICOMfileClient.refresh` was last called, and what was stored and deleted through the same client.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dicomweb_io.client import DEFAULT_MAX_ELEMENT_BYTES, DICOMClient, MediaTypes, OnExisting, Storable, Verify
from dicomweb_io.dicom.media_types import accepted_for
from dicomweb_io.dicom.uids import check_uid, is_safe_name, is_uid
from dicomweb_io.elements import (
    Bulkdata,
    Exclusion,
    Failure,
    Frame,
    Instance,
    JSONDataset,
    RenderedImage,
    Resource,
    SearchPage,
    SearchQuery,
    StoredInstance,
)
from dicomweb_io.errors import FileClientError, InvalidIdentifierError, http_error
from dicomweb_io.files.database import index_path
from dicomweb_io.files.index import DUPLICATE_RULES, Duplicates, Index, IndexedFile, RefreshCounts, iter_exclusions
from dicomweb_io.files.layout import Layout, NamesInUse
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import MissingBucketError
from dicomweb_io.files.render import FolderRenderer
from dicomweb_io.files.retrieve import FolderReader, PixelAccess
from dicomweb_io.files.search import Searcher
from dicomweb_io.files.store import FolderStore, has_other_layout, layout_path
from dicomweb_io.http.retry import ProcessLock
from dicomweb_io.profiles import ServerProfile
from dicomweb_io.queries import check_limits
from dicomweb_io.spool import SpoolPolicy

if TYPE_CHECKING:
    from typing_extensions import Self

    from dicomweb_io.endpoint import Endpoint


_MAX_PENDING = 100_000
_MAX_OWN = 10_000
_MANY_SERIES = 20
_Series = tuple["str | None", "str | None"]
_BULKDATA = re.compile(r"studies/([^/]+)/series/([^/]+)/instances/([^/]+)/bulkdata/(.+)\Z")


FOLDER = ServerProfile(
    name="folder",
    sources=("this package",),
    page_sizes=(1000, 1000, 1000),
    offset_works=True,
    flat_series=True,
    flat_instances=True,
    study_instances=True,
    count_resources=True,
    retrieve_study=True,
    retrieve_series=True,
    metadata_resource=True,
    same_uid_elsewhere="keeps_both",
    replace="upsert",
    comparison_level="file",
    thumbnails=True,
)
"""The profile of a folder."""


class DICOMfileClient(DICOMClient):
    """A client of a folder of DICOM files: local, or on any filesystem of fsspec. Safe to use from several threads.

    The folder may be laid out in any way. Files are recognised by their content. Study, series and SOP Instance UID
    together name an instance: one SOP Instance UID in two series is two instances. Of files of one instance, identical
    ones count once, and of different ones `duplicates` says which one represents it; `iter_exclusions` lists the
    others, and files that are not DICOM or cannot be read. What is stored goes to ``STUDY/SERIES/SOP.dcm`` or where a
    `layout` says, and any number of clients on any number of computers may store into one folder at once.

    A folder that does not exist yet is made by the first store. To search the whole of it raises `FileNotFoundError`,
    as its name is most likely mistyped; a search within a given study returns no rows.

    It pickles as its arguments; the copy reads the folder again.

    Args:
        url: A local path, ``file:///a%20b``, or an fsspec URL such as ``memory://x``, ``gs://bucket/prefix``.
        update_db: Compare the folder with the index when it is first used. Without it, an index that was complete once
            is used unchanged until `refresh` is called.
        recreate_db: Delete the index first and read all files again.
        in_memory: Keep the index in memory, for this client only.
        db_dir: The same as `index`.
        readonly: Refuse to store and to delete.
        storage_options: Arguments for the fsspec filesystem.
        index: A local directory for the index; by default ``dicomweb_io/index`` in the user's cache directory.
        duplicates: Which of several different files of one instance represents it: ``"first"`` by path, the
            ``"newest"``, ``"all"`` of them (each is a separate row), or ``"error"`` to refuse the folder. A
            truncated file never represents an instance if there is a complete one, nor does one without pixel data if
            another has them.
        permissive_uid: See `dicomweb_io.dicom.uids.is_uid`.
        layout: A template for the paths of what is stored, such as ``{PatientID}/{InstanceNumber:04}.dcm``; see
            `dicomweb_io.files.layout`. An instance that lies elsewhere in the folder is known by its content.

    Raises:
        TypeError, ValueError: If an argument is wrong.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        update_db: bool = True,
        recreate_db: bool = False,
        in_memory: bool = False,
        db_dir: str | os.PathLike[str] | None = None,
        readonly: bool = False,
        *,
        storage_options: Mapping[str, Any] | None = None,
        index: str | os.PathLike[str] | None = None,
        duplicates: Duplicates = "first",
        permissive_uid: bool = False,
        layout: str | None = None,
    ) -> None:
        if duplicates not in DUPLICATE_RULES:
            raise ValueError(f"duplicates must be one of {', '.join(DUPLICATE_RULES)}, not {duplicates!r}")
        if index is not None and db_dir is not None and os.fspath(index) != os.fspath(db_dir):
            raise ValueError("index and db_dir are the same argument and were given different values")
        place = index if index is not None else db_dir
        self._folder = folder_of(url, storage_options)
        if place is not None and os.fspath(place) == ":memory:":
            # SQLite's own word for it; a directory of that name would leave patients' names in an unexpected place.
            place, in_memory = None, True
        self._index_place = None if place is None else os.fspath(place)
        self._update_db = update_db
        self._recreate_db = recreate_db
        self._in_memory = in_memory
        self._readonly = readonly
        self._duplicates: Duplicates = duplicates
        self.permissive_uid = permissive_uid
        self._layout = None if layout is None else Layout(layout)
        self._reset()

    def _reset(self) -> None:
        self._lock = ProcessLock()
        self._index: Index | None = None
        self._searcher: Searcher | None = None
        self._reader = FolderReader(self._folder)
        # The paths that this client has changed, by study and series where these are known; None for too many.
        self._changed: dict[_Series | None, set[str]] | None = {}
        self._changes = 0
        self._absent = False
        self._checked = self._folder.is_local
        self._other_layout: bool | None = None
        self._names: NamesInUse | None = None
        # Where this client has stored what its index does not know yet.
        self._own: dict[Resource, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in (
            "_lock", "_index", "_searcher", "_reader", "_changed", "_changes", "_absent", "_checked",
            "_other_layout", "_names", "_own",
        ):  # fmt: skip
            del state[name]
        # A copy in another process uses the index, it does not throw it away again.
        state["_recreate_db"] = False
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @classmethod
    def from_endpoint(cls, endpoint: Endpoint) -> Self:
        """Makes a client of the description of a folder."""
        return cls(endpoint.url, storage_options=endpoint.storage_options, index=endpoint.index, layout=endpoint.layout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    @property
    def base_url(self) -> str:
        """The folder as a URL, without user information."""
        return self._folder.base_url

    @property
    def profile(self) -> ServerProfile:
        """How a folder behaves: it keeps every byte, and its index answers any page at once."""
        return FOLDER

    def close(self) -> None:
        """Closes the index. The client can be used again: it then opens the index again."""
        with self._lock:
            if self._index is not None:
                self._index.close()
            self._reset()

    # The index ------------------------------------------------------------------------------------------------------

    def refresh(self) -> RefreshCounts:
        """Looks at the folder again: finds files that were added, changed or removed, by any program.

        Returns:
            The number of files in the folder, of files that were read, and of files that are gone.

        Raises:
            FileNotFoundError: If the folder does not exist.
        """
        with self._lock:
            self._changed, self._changes, self._absent = {}, 0, False
            if self._index is None:
                self._index = self._make_index()
            return self._index.refresh()

    def _make_index(self) -> Index:
        place: Path | None = None
        # The files of a filesystem in memory end with their process, so no other process could use their index.
        if not self._in_memory and not self._folder.url.startswith("memory:"):
            place = index_path(
                self._folder.base_url, self._folder.storage_options, f"duplicates={self._duplicates}", self._index_place
            )
        index = Index(
            self._folder,
            place=place,
            in_memory=self._in_memory,
            duplicates=self._duplicates,
            rebuild=self._recreate_db,
            tidy=not self._readonly,
        )
        self._recreate_db = False
        return index

    def _current(self, study: str | None = None, series: str | None = None) -> Index:
        """The index, opened at first use, with what this client has changed since.

        What it has changed in other studies or series than those given is left for later: a copy that asks for each
        series before it stores it would read all that it has stored.
        """
        with self._lock:
            if self._index is None:
                index = self._make_index()
                try:
                    if self._absent and study is not None:
                        index.start_empty()
                    else:
                        index.open(self._update_db)
                        self._changed, self._changes = {}, 0
                except BaseException:
                    index.close()
                    raise
                self._index, self._absent = index, False
            keys = self._pending(study, series)
            if self._changed is None or (len(keys) > _MANY_SERIES and not self._folder.is_local):
                # A listing tells of a thousand files in one request.
                self._changed, self._changes = {}, 0
                self._index.refresh()
            elif keys:
                paths = set().union(*(self._changed.pop(key) for key in keys))
                self._changes -= len(paths)
                self._index.update(paths)
            if not self._changed:
                self._own.clear()
            return self._index

    def _pending(self, study: str | None, series: str | None) -> list[_Series | None]:
        """Under which keys there are changes of a study or series, or of everything, that the index does not know."""
        return [
            key
            for key in self._changed or ()
            if study is None or key is None or (key[0] == study and series in (None, key[1]))
        ]

    def _opened_searcher(self, query: SearchQuery) -> Searcher:
        study, series = query.study_instance_uid, query.series_instance_uid
        for name, value in query.search_filters:
            if study is None and name == "StudyInstanceUID" and is_uid(value):
                study = value
        with self._lock:
            known_empty = self._absent and study is not None and self._changed is not None
            if known_empty and not self._pending(study, series):
                raise FileNotFoundError(errno.ENOENT, "the folder had no files", self.base_url)
            index = self._current(study, series)
            if self._searcher is None:
                self._searcher = Searcher(index, self.base_url)
            return self._searcher

    def _note(self, path: str, reference: Resource | None = None) -> None:
        """Remembers that this client changed a file: the index learns of it before its next use, if there is one.

        Args:
            path: The file.
            reference: The instance that was written; None if it was removed, or written by another client.
        """
        with self._lock:
            if self._layout is not None and reference is not None:
                self._own[reference] = path
            elif self._names is not None:
                self._names.settle(path, taken=False)
            if self._changed is not None:
                key = None if reference is None else (reference.study_instance_uid, reference.series_instance_uid)
                self._changed.setdefault(key, set()).add(path)
                self._changes += 1
                if self._changes > _MAX_PENDING:
                    self._changed, self._changes = None, 0

    # Search ---------------------------------------------------------------------------------------------------------

    def search_page(
        self,
        query: SearchQuery,
        *,
        offset: int = 0,
        limit: int | None = None,
        surplus: bool = True,
        walk: bool = True,
    ) -> SearchPage:
        """The rows of a query from `offset` on, at most `limit`, with the exact total.

        Elements that rows of one answer have in common, such as the patient's, are the same objects in each: copy a row
        deeply before changing what is inside its elements.
        """
        check_limits(limit, offset)
        try:
            return self._opened_searcher(query).page(query, offset, limit)
        except FileNotFoundError:
            if self._is_missing_destination(query):
                return SearchPage([], offset, limit, total=0, more=False)
            raise

    def iter_search(
        self, query: SearchQuery, *, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """Yields every row of a query once."""
        check_limits(limit, offset, page_size)
        try:
            searcher = self._opened_searcher(query)
        except FileNotFoundError:
            if self._is_missing_destination(query):
                none: list[JSONDataset] = []
                return (row for row in none)
            raise
        return searcher.iterate(query, offset, limit, page_size)

    def count(self, query: SearchQuery) -> int:
        """The exact number of rows of a query."""
        try:
            return self._opened_searcher(query).count(query)
        except FileNotFoundError:
            if self._is_missing_destination(query):
                return 0
            raise

    def _is_missing_destination(self, query: SearchQuery) -> bool:
        """Whether a query names objects of a folder that does not exist yet."""
        if query.study_instance_uid is None or self._readonly:
            return False
        missing = self._absent or not self._folder.exists()
        # A look at a local folder costs nothing.
        self._absent = missing and not self._folder.is_local
        return missing

    def iter_exclusions(self, query: SearchQuery | None = None) -> Iterator[Exclusion]:
        """Yields the files that searches do not return, and why.

        Files of one instance are compared byte by byte (by hash) when they are yielded.
        """
        return iter_exclusions(
            self._current(), None if query is None else self._opened_searcher(query).matching_files(query)
        )

    # Retrieve -------------------------------------------------------------------------------------------------------

    def _files(self, resource: Resource) -> list[IndexedFile]:
        """The files of a resource, in order.

        Raises:
            requests.HTTPError: 404 if there are none.
        """
        where, values = _condition(resource, "i.")
        try:
            uids = resource.study_instance_uid, resource.series_instance_uid
            found = list(self._current(*uids).files(where, values))
            if not found and resource.sop_instance_uid is not None and self._notice(resource):
                found = list(self._current().files(where, values))
        except FileNotFoundError:
            found = []
        if not found:
            raise self._not_found(resource)
        return found

    def locations_of(self, resource: Resource) -> list[str]:
        """The files of a study, series or instance, as paths or fsspec URLs; none if there are none."""
        try:
            return [self._folder.location_of(file.path) for file in self._files(resource.instance)]
        except FileClientError:
            return []

    def size_of(self, resource: Resource | None = None) -> int:
        """The bytes of the files of a study, series or instance, or of all that represent an instance."""
        where, values = ("1", []) if resource is None else _condition(resource, "i.")
        try:
            sql = f"SELECT SUM(f.size) FROM instance i JOIN file f ON f.id = i.file WHERE {where}"  # noqa: S608 - columns
            return int(self._current().select(sql, values)[0][0] or 0)
        except FileNotFoundError:
            return 0

    def sizes_of(self, resource: Resource) -> Mapping[Resource, int]:
        """The bytes of each file that represents an instance of a study or series."""
        try:
            return {Resource(file.study, file.series, file.sop): file.size for file in self._files(resource)}
        except FileClientError:
            return {}

    def _notice(self, resource: Resource) -> bool:
        """Looks for an instance where another client would have stored it after this one took its snapshot."""
        if not all(map(is_safe_name, resource.uids.values())):
            return False
        path = layout_path(resource)
        if self._folder.stat(path) is None:
            return False
        self._note(path)
        return True

    def _not_found(self, resource: Resource, method: str = "GET") -> FileClientError:
        return http_error(
            404, f"{resource.uri} is not in {self.base_url}", url=f"{self.base_url}/{resource.uri}", method=method
        )

    def iter_instances(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES,
        spool_directory: str | None = None,
        allow_transcoding: bool = False,
        additional_params: Mapping[str, Any] | None = None,
        borrow: bool = False,
    ) -> Iterator[Instance]:
        """Yields the instances of a study, series or instance, bytes untouched unless `media_types` ask for a change.

        The available transfer syntaxes are those of `dicomweb_io.dicom.pixels.TARGETS`, of what an installed decoder
        reads. Where the filesystem can share blocks between files (Btrfs, XFS), a copy takes next to no time and no
        space. `allow_transcoding` has no effect: the stored encoding is always available.
        """
        if resource.level == "frame":
            raise InvalidIdentifierError("this is a reference to frames: use iter_frames, or reference.instance")
        accepted_types = accepted_for("instances", media_types)
        return (
            self._reader.instance(
                file, accepted_types, max_element_bytes, spool_directory, borrow and self._folder.is_local
            )
            for file in self._lazily(resource)
        )

    def _lazily(self, resource: Resource) -> Iterator[IndexedFile]:
        yield from self._files(resource)

    def iter_metadata(
        self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of instances; binary values above 1 KiB and pixel data as BulkDataURI of this client."""
        return (self._reader.metadata(file) for file in self._lazily(resource.instance))

    def iter_frames(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
        max_element_bytes: int | None = None,
        spool_directory: str | None = None,
    ) -> Iterator[Frame]:
        """Yields frames in the order asked for, read by range; native ones as little-endian octets.

        ``image/dicom-rle``, ``image/jls``, ``image/jp2`` and ``image/jphc`` re-encode without loss what is stored
        otherwise (see `dicomweb_io.dicom.pixels.TARGETS` for the libraries that it takes).
        """
        if resource.level != "frame":
            raise InvalidIdentifierError(f"a reference to frames is needed, not to a {resource.level}")
        accepted_types = accepted_for("frames", media_types)
        return self._frames(resource, accepted_types, SpoolPolicy(max_element_bytes, spool_directory))

    def _frames(self, resource: Resource, accepted_types: Any, spool_policy: SpoolPolicy) -> Iterator[Frame]:
        file = self._files(resource)[0]
        access = PixelAccess(self._reader, self._current())
        with closing(access.frames(file, resource.frames, accepted_types)) as frames:
            for frame in frames:
                yield spool_policy.moved(frame)

    def iter_bulkdata_parts(
        self,
        url: str,
        *,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
        max_element_bytes: int | None = None,
        spool_directory: str | None = None,
    ) -> Iterator[Bulkdata]:
        """Yields the bulk data at a URI that this client's metadata gave, absolute or from ``studies/`` on.

        Values come as little-endian octets whatever `media_types` say, encapsulated pixel data frame by frame.
        """
        relative = (
            url.removeprefix(self.base_url).lstrip("/") if url.startswith(self.base_url + "/") else url.lstrip("/")
        )
        match = _BULKDATA.match(unquote(relative))
        if match is None:
            raise InvalidIdentifierError(
                f"not a bulk data URI of this folder: {url!r} (expected {self.base_url}/studies/…/series/…/instances/…/"
                "bulkdata/…)"
            )
        accepted_for("bulkdata", media_types)
        spool_policy = SpoolPolicy(max_element_bytes, spool_directory)
        return self._bulkdata(Resource(match[1], match[2], match[3]), match[4], byte_range, spool_policy)

    def _bulkdata(
        self, resource: Resource, path: str, byte_range: tuple[int, int | None] | None, spool_policy: SpoolPolicy
    ) -> Iterator[Bulkdata]:
        file = self._files(resource)[0]
        with closing(PixelAccess(self._reader, self._current()).bulkdata(file, path, byte_range)) as parts:
            for part in parts:
                yield spool_policy.moved(part)

    def retrieve_rendered(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
        thumbnail: bool = False,
    ) -> RenderedImage:
        """Renders a study, series, instance or frames, as PS3.18 section 8.3.5 says.

        The types are ``image/jpeg`` (the default), ``image/png``, ``image/gif`` and ``image/jp2``. Structured reports,
        key object selections, presentation states and encapsulated documents are ``text/html``, a page for people; a
        document is returned unchanged if its own type is asked for, a PDF also by default. A study or series is
        rendered as its first image. Several frames, or an instance of several frames, become one moving ``image/gif``;
        the other formats show one frame. See `dicomweb_io.dicom.rendering.RenderingOptions` for `params`. A thumbnail
        has 128 by 128 pixels, unless ``viewport`` says otherwise. The status of the error is 501 if a library is
        missing.
        """
        accepted_for("rendered", media_types)
        renderer = FolderRenderer(self._reader, self._current())
        return renderer.render(self._files(resource), resource, media_types, params, thumbnail)

    # Store and delete -----------------------------------------------------------------------------------------------

    def iter_store_instances(
        self,
        instances: Iterable[Storable],
        *,
        study_instance_uid: str | None = None,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[StoredInstance | Failure]:
        """Stores instances and yields the result of each, in order.

        Each file is written beside its place, flushed to the disk, and then published in one step, so readers never see
        a part of it. Truncated files and files whose UIDs cannot be a path are refused. ``verify="response"`` trusts
        the operating system, ``"uid"`` reads the UID back. The status of the error is 403 if the client is read-only.
        """
        if study_instance_uid is not None:
            check_uid(study_instance_uid, "study_instance_uid", permissive=self.permissive_uid)
        return self.folder_store().store(instances, study_instance_uid, on_existing, verify)

    def folder_store(self) -> FolderStore:
        """What stores into the folder, for those who want the paths of the files.

        Raises:
            requests.HTTPError: 403 if the client is read-only.
        """
        self._check_writable("store into", "POST")
        self.check_place()
        names_in_use = None if self._layout is None else self._names_in_use
        return FolderStore(self._folder, self._elsewhere, self._note, self._layout, names_in_use)

    def _names_in_use(self) -> NamesInUse:
        """The names of the files that were there when the index was opened, and of this client's own."""
        with self._lock:
            if self._names is None:
                try:
                    paths: Iterable[str] = self._current().iter_paths()
                except FileNotFoundError:
                    paths = self._own.values()
                self._names = NamesInUse(paths)
            return self._names

    def _elsewhere(self, reference: Resource) -> list[str]:
        """The paths at which the index knows files of an instance, in a folder with another layout."""
        with self._lock:
            if self._layout is not None:
                return self._known_paths(reference)
            if self._other_layout is None and self._absent:
                self._other_layout = False
            if self._other_layout is None:
                self._other_layout = has_other_layout(self._folder)
            if not self._other_layout:
                return []
            if self._index is None:
                self._current()
            index = self._index
        condition, values = _condition(reference)
        return [] if index is None else index.paths_of(f"{condition} AND kind = 0", values)

    def _known_paths(self, reference: Resource) -> list[str]:
        """The paths of an instance in a folder with a layout, which its UIDs do not tell."""
        if (self._index is None and not self._absent) or len(self._own) >= _MAX_OWN:
            try:
                self._current()
            except FileNotFoundError:
                # The first store makes the folder.
                self._absent = not self._folder.is_local and not self._folder.exists()
        condition, values = _condition(reference)
        known = [] if self._index is None else self._index.paths_of(f"{condition} AND kind = 0", values)
        own = self._own.get(reference)
        return known if own is None else [own, *known]

    def delete_resource(self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None) -> None:
        """Removes all files of a study, series or instance, duplicates too."""
        self._check_writable("delete from", "DELETE")
        condition, values = _condition(resource)
        try:
            paths = self._current().paths_of(condition, values)
            if resource.level != "instance" or not paths:
                # Others may have stored parts of it since the snapshot was taken.
                self.refresh()
                paths = self._current().paths_of(condition, values)
        except FileNotFoundError:
            paths = []
        if not paths:
            raise self._not_found(resource, "DELETE")
        for path in paths:
            try:
                self._folder.remove(path)
            except OSError as error:
                raise http_error(
                    403,
                    f"{self._folder.shown(path)} cannot be removed: {error.strerror or type(error).__name__}",
                    url=f"{self.base_url}/{resource.uri}",
                    method="DELETE",
                ) from None
            finally:
                self._note(path)

    def check_place(self) -> None:
        """Asks the server of a remote folder once whether the folder can be used; it may have no files yet.

        Raises:
            requests.HTTPError: 404 if its bucket is not there, 403 if access is denied, 500 if it cannot be asked.
        """
        if self._checked:
            return
        try:
            self._folder.check()
        except OSError as error:
            status = 404 if isinstance(error, MissingBucketError) else 403 if error.errno == errno.EACCES else 500
            detail = f"{error.filename}: {error.strerror}"
            retryable = bool(getattr(error, "retryable", False))
            raise http_error(status, detail, url=self.base_url, retryable=retryable) from None
        self._checked = True

    def _check_writable(self, what: str, method: str) -> None:
        if self._readonly:
            raise http_error(
                403, f"the client cannot {what} the folder, because it is read-only", url=self.base_url, method=method
            )


def _condition(resource: Resource, table: str = "") -> tuple[str, list[str]]:
    """The condition that files of a resource meet in the index, and its values."""
    uids = {
        "study": resource.study_instance_uid,
        "series": resource.series_instance_uid,
        "sop": resource.sop_instance_uid,
    }
    known = {column: uid for column, uid in uids.items() if uid is not None}
    return " AND ".join(f"{table}{column} = ?" for column in known), list(known.values())
