"""`ElementCoder`: how the elements of `dicomweb_io.elements` travel between workers.

Beam's row coder gives each class a random schema id in each process, so that in another process an element comes back
as an anonymous tuple without its methods (measured with Beam 2.77). This coder pickles as a reference to its class:
every worker that decodes an element imports the class, and gets the real one. It is deterministic, so that every
element can be the key of a GroupByKey.
"""

from __future__ import annotations

import ast
import pickle
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Generic, NoReturn, TypeVar, cast

from apache_beam.coders import Coder, FastPrimitivesCoder
from apache_beam.coders.typecoders import registry

from dicomweb_io import elements
from dicomweb_io.listing import InstanceGroup

T = TypeVar("T")

_PRIMITIVES = FastPrimitivesCoder().get_impl()

# The first byte of an encoding: which form the rest has.
_COMPACT = b"\x00"
_LITERAL = b"\x01"
_PICKLED = b"\x02"


class ElementCoder(Coder, Generic[T]):
    """A compact, deterministic coder for one element class; decoding restores tuples, None and bytes exactly.

    Trailing fields that have their defaults are not written, and filled in when decoding. So what an earlier release
    wrote can be read, and a new field changes no key.

    Args:
        element_type: A frozen dataclass whose fields hold None, bool, int, float, str, bytes, tuples of these, datasets
            in the DICOM JSON model, or elements of registered classes (see `register`).
    """

    def __init__(self, element_type: type[T]) -> None:
        if not is_dataclass(element_type):
            raise TypeError(f"ElementCoder is for dataclasses, not for {element_type!r}")
        self.element_type = element_type
        self._form = _Form(element_type)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.element_type,)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.element_type is cast(Any, other).element_type

    def __hash__(self) -> int:
        return hash((type(self), self.element_type))

    def __repr__(self) -> str:
        return f"ElementCoder({self.element_type.__name__})"

    def encode(self, value: T) -> bytes:
        """Encodes an element.

        Raises:
            TypeError: If the value is not of this coder's class, which means that a type hint is wrong.
        """
        if type(value) is not self.element_type:
            raise TypeError(
                f"a collection of {self.element_type.__name__} holds a {type(value).__name__}: "
                "the type hint of the step that produced it is wrong"
            )
        state = self._form.pack(value)
        try:
            return _COMPACT + cast(bytes, _PRIMITIVES.encode(state))
        except UnicodeEncodeError:
            # File names that are not UTF-8 hold lone surrogates (PEP 383). A literal escapes them, and is exact too.
            literal = ascii(state).encode("ascii")
            try:
                ast.literal_eval(literal.decode("ascii"))
            except ValueError:
                # Infinity, in a row of a server.
                return _PICKLED + pickle.dumps(state, 4)
            return _LITERAL + literal

    def decode(self, encoded: bytes) -> T:
        """Restores an element.

        Raises:
            ValueError: If a newer release wrote it, with fields that this one does not know.
        """
        if encoded[:1] == _COMPACT:
            state = _PRIMITIVES.decode(encoded[1:])
        elif encoded[:1] == _PICKLED:
            state = pickle.loads(encoded[1:])  # noqa: S301 - our own bytes
        else:
            state = ast.literal_eval(encoded[1:].decode("ascii"))
        return cast(T, self._form.unpack(state))

    def estimate_size(self, value: T) -> int:
        """The size of the element without encoding it: runners ask often, and an instance may hold megabytes."""
        return size_of(value)

    def is_deterministic(self) -> bool:
        """True: equal elements have equal encodings."""
        return True

    def to_type_hint(self) -> type[T]:
        """The class."""
        return self.element_type

    @classmethod
    def from_type_hint(cls, typehint: Any, unused_registry: Any) -> Any:
        """Makes the coder of a class, for Beam's registry."""
        return cls(typehint)


class _Form:
    """How the fields of a class are written: as a tuple. That of a nested element begins with a mark of its class."""

    def __init__(self, element_type: type) -> None:
        self.element_type = element_type
        self.names = tuple(item.name for item in fields(cast(Any, element_type)))
        self.defaults = tuple(item.default for item in fields(cast(Any, element_type)))
        # No field of an element starts with it.
        self.mark = f"\x00{element_type.__name__}"

    def pack(self, value: Any) -> tuple[Any, ...]:
        """The values of the fields without trailing defaults."""
        attributes, defaults = value.__dict__, self.defaults
        items = [attributes[name] for name in self.names]
        while type(items[-1]) is type(defaults[len(items) - 1]) and items[-1] == defaults[len(items) - 1]:
            items.pop()
            if not items:
                break
        return tuple(
            (form.mark, *form.pack(item)) if (form := _FORMS.get(type(item))) is not None else item for item in items
        )

    def unpack(self, state: tuple[Any, ...]) -> Any:
        """An element with these fields and the defaults of the others."""
        # The values were checked when the element was made; checking them again at every shuffle would cost most of it.
        value: Any = object.__new__(self.element_type)
        attributes = value.__dict__
        left = self.defaults[len(state) :]
        if len(state) > len(self.names) or MISSING in left:
            self._refuse(len(state))
        for name, item in zip(self.names, (*state, *left), strict=True):
            if type(item) is tuple and item and type(item[0]) is str and item[0] in _MARKS:
                item = _MARKS[item[0]].unpack(item[1:])
            attributes[name] = item
        return value

    def _refuse(self, number: int) -> NoReturn:
        name = self.element_type.__name__
        if number > len(self.names):
            raise ValueError(
                f"an encoded {name} has {number} fields, and this release knows {len(self.names)}: it was written by a "
                f"newer release of dicomweb_io. Go on with that one; this one would lose what the others say"
            )
        raise ValueError(f"an encoded {name} has only {number} fields: it was not written by ElementCoder")


_FORMS: dict[type, _Form] = {}
_MARKS: dict[str, _Form] = {}


def register(*element_types: type) -> None:
    """Tells Beam's registry the coder of some classes. Their elements may be fields of others, too."""
    for element_type in element_types:
        form = _Form(element_type)
        _FORMS[element_type] = _MARKS[form.mark] = form
        registry.register_coder(element_type, ElementCoder)


# Rows of one search are alike, so a few of them tell the size of all.
_SAMPLED = 4


def size_of(value: Any) -> int:
    """About as many bytes as an element or a dataset in the DICOM JSON model takes when it is encoded."""
    if isinstance(value, (bytes, str)):
        return len(value) + 2
    if isinstance(value, dict):
        return 2 + sum(size_of(key) + size_of(item) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        sample = value[:_SAMPLED]
        return 2 + (sum(map(size_of, sample)) * len(value) // len(sample) if sample else 0)
    return 2 + (sum(map(size_of, value.__dict__.values())) if is_dataclass(value) else 0)


ELEMENT_TYPES: tuple[type, ...] = (
    elements.Resource,
    elements.Instance,
    elements.SearchQuery,
    elements.Frame,
    elements.RenderedImage,
    elements.Bulkdata,
    elements.StoredInstance,
    elements.Failure,
    elements.Exclusion,
    elements.Difference,
    InstanceGroup,
)
"""The classes that are elements of collections. (`SearchPage` is a client's answer and never an element.)"""


def register_coders() -> None:
    """Tells Beam's registry the coder of each element class. Importing `dicomweb_io.transforms` does this."""
    register(*ELEMENT_TYPES)
