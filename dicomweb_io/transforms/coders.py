"""`ElementCoder`: how the elements of `dicomweb_io.elements` travel between workers.

Beam's row coder gives each class a random schema id in each process, so that in another process an element comes back
as an anonymous tuple without its methods (measured with Beam 2.77). This coder pickles as a reference to its class:
every worker that decodes an element imports the class, and gets the real one. It is deterministic, so that every
element can be the key of a GroupByKey.
"""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar, cast

from apache_beam.coders import Coder, FastPrimitivesCoder
from apache_beam.coders.typecoders import registry

from dicomweb_io import elements

T = TypeVar("T")

_PRIMITIVES = FastPrimitivesCoder().get_impl()

# The first byte of an encoding: which form the rest has.
_COMPACT = b"\x00"
_LITERAL = b"\x01"


class ElementCoder(Coder, Generic[T]):
    """A compact, deterministic coder for one element class; decoding restores tuples, None and bytes exactly.

    Trailing fields that have their defaults are not written, and filled in when decoding.

    Args:
        element_type: A frozen dataclass whose fields hold None, bool, int, float, str, bytes, tuples of these, or a
            `Resource`.
    """

    def __init__(self, element_type: type[T]) -> None:
        if not is_dataclass(element_type):
            raise TypeError(f"ElementCoder is for dataclasses, not for {element_type!r}")
        self.element_type = element_type
        self._names = _names_of(element_type)
        self._defaults = _defaults_of(element_type)

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
        state = _pack(self._names, self._defaults, value)
        try:
            return _COMPACT + cast(bytes, _PRIMITIVES.encode(state))
        except UnicodeEncodeError:
            # File names that are not UTF-8 hold lone surrogates (PEP 383). A literal escapes them, and is exact too.
            return _LITERAL + ascii(state).encode("ascii")

    def decode(self, encoded: bytes) -> T:
        """Restores an element."""
        if encoded[:1] == _COMPACT:
            state = _PRIMITIVES.decode(encoded[1:])
        else:
            state = ast.literal_eval(encoded[1:].decode("ascii"))
        return cast(T, _unpack(self.element_type, self._names, self._defaults, state))

    def estimate_size(self, value: T) -> int:
        """The size of the element without encoding it: runners ask often, and an instance may hold megabytes."""
        return _size(value)

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


# A nested reference is a tuple marked by this text, which no field of an element starts with.
_NESTED = "\x00Resource"


def _names_of(element_type: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(cast(Any, element_type)))


def _defaults_of(element_type: type) -> tuple[Any, ...]:
    return tuple(item.default for item in fields(cast(Any, element_type)))


_RESOURCE_NAMES = _names_of(elements.Resource)
_RESOURCE_DEFAULTS = _defaults_of(elements.Resource)


def _pack(names: tuple[str, ...], defaults: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    attributes = value.__dict__
    items = [attributes[name] for name in names]
    # Trailing defaults are left out, so that a new field changes no key that an earlier release wrote.
    while type(items[-1]) is type(defaults[len(items) - 1]) and items[-1] == defaults[len(items) - 1]:
        items.pop()
    return tuple(
        (_NESTED, *_pack(_RESOURCE_NAMES, _RESOURCE_DEFAULTS, item)) if type(item) is elements.Resource else item
        for item in items
    )


def _unpack(element_type: type, names: tuple[str, ...], defaults: tuple[Any, ...], state: tuple[Any, ...]) -> Any:
    # The values were checked when the element was made; checking them again at every shuffle would cost most of it.
    value: Any = object.__new__(element_type)
    attributes = value.__dict__
    for name, item in zip(names, (*state, *defaults[len(state) :]), strict=True):
        if type(item) is tuple and item and item[0] == _NESTED:
            item = _unpack(elements.Resource, _RESOURCE_NAMES, _RESOURCE_DEFAULTS, item[1:])
        attributes[name] = item
    return value


def _size(value: Any) -> int:
    total = 2
    for item in value.__dict__.values():
        if isinstance(item, (bytes, str)):
            total += len(item) + 2
        elif isinstance(item, elements.Resource):
            total += _size(item)
        else:
            total += 2
    return total


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
)
"""The classes that are elements of collections. (`SearchPage` is a client's answer and never an element.)"""


def register_coders() -> None:
    """Tells Beam's registry the coder of each element class. Importing `dicomweb_io.transforms` does this."""
    for element_type in ELEMENT_TYPES:
        registry.register_coder(element_type, ElementCoder)
