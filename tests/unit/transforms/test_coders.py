"""Every element survives its coder exactly, and the coder travels as a reference to the class."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from apache_beam.coders import FastPrimitivesCoder, registry
from hypothesis import given, strategies as st

from dicomweb_io.elements import (
    Bulkdata,
    Exclusion,
    Failure,
    Frame,
    Instance,
    RenderedImage,
    Resource,
    SearchQuery,
    StoredInstance,
)
from dicomweb_io.transforms import ElementCoder
from dicomweb_io.transforms.coders import ELEMENT_TYPES

UIDS = st.from_regex(r"[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){1,4}", fullmatch=True)
# Anything that Python's text can hold, lone surrogates of undecodable file names included.
TEXTS = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None), max_size=20)
OPTIONAL_TEXTS = st.one_of(st.none(), TEXTS)
OPTIONAL_INTEGERS = st.one_of(st.none(), st.integers(-(2**70), 2**70))
INSTANCES = st.builds(Resource, UIDS, UIDS, UIDS)
RESOURCES = st.one_of(
    st.builds(Resource, UIDS),
    st.builds(Resource, UIDS, UIDS),
    INSTANCES,
    st.builds(Resource, UIDS, UIDS, UIDS, st.lists(st.integers(1, 10**6), min_size=1, max_size=5).map(tuple)),
)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple)
ELEMENTS = {
    Resource: RESOURCES,
    Instance: st.one_of(
        st.builds(Instance, INSTANCES, UIDS, content=st.binary(max_size=100)),
        st.builds(Instance, INSTANCES, UIDS, path=TEXTS, sop_class_uid=OPTIONAL_TEXTS),
    ),
    SearchQuery: st.builds(
        SearchQuery,
        st.just("instance"),
        st.one_of(st.none(), UIDS),
        search_filters=PAIRS,
        fields=st.lists(TEXTS, max_size=3).map(tuple),
        fuzzymatching=st.one_of(st.none(), st.booleans()),
        additional_params=PAIRS,
    ),
    Frame: st.builds(Frame, RESOURCES, OPTIONAL_TEXTS, TEXTS, st.one_of(st.none(), st.binary(max_size=50))),
    RenderedImage: st.builds(RenderedImage, RESOURCES, TEXTS, st.binary(max_size=50)),
    Bulkdata: st.builds(Bulkdata, TEXTS, TEXTS, st.one_of(st.none(), st.binary(max_size=50)), OPTIONAL_TEXTS),
    StoredInstance: st.builds(
        StoredInstance,
        INSTANCES,
        st.sampled_from(["stored", "exists", "replaced"]),
        st.integers(0, 2**40),
        OPTIONAL_TEXTS,
        OPTIONAL_TEXTS,
        OPTIONAL_INTEGERS,
        warnings=st.lists(TEXTS, max_size=2).map(tuple),
    ),
    Failure: st.builds(
        Failure,
        TEXTS,
        TEXTS,
        st.one_of(st.none(), RESOURCES),
        st.one_of(st.none(), st.tuples(st.integers(0, 2**62), st.integers(0, 2**62))),
        OPTIONAL_TEXTS,
        OPTIONAL_TEXTS,
        OPTIONAL_INTEGERS,
        OPTIONAL_INTEGERS,
        st.integers(0, 9),
        st.booleans(),
    ),
    Exclusion: st.builds(
        Exclusion,
        st.sampled_from(["duplicate", "ignored", "unreadable"]),
        TEXTS,
        TEXTS,
        st.one_of(st.none(), RESOURCES),
        OPTIONAL_TEXTS,
    ),
}


def test_every_element_class_has_a_strategy_here():
    assert set(ELEMENTS) == set(ELEMENT_TYPES)


def same(one, two):
    """Equality that also tells a tuple from a list, True from 1 and bytes from their like."""
    if type(one) is not type(two):
        return False
    if isinstance(one, tuple):
        return len(one) == len(two) and all(same(*pair) for pair in zip(one, two, strict=True))
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, name), getattr(two, name)) for name in one.__dataclass_fields__)
    return one == two


@given(st.one_of(*(st.tuples(st.just(kind), elements) for kind, elements in ELEMENTS.items())))
def test_elements_come_back_exactly(case):
    kind, element = case
    coder = registry.get_coder(kind)
    assert isinstance(coder, ElementCoder)
    encoded = coder.encode(element)
    assert same(coder.decode(encoded), element)
    assert coder.encode(coder.decode(encoded)) == encoded
    # Inside other values, as in keys and grouped values.
    impl = coder.get_impl()
    assert same(impl.decode_nested(impl.encode_nested(element)), element)


@pytest.mark.parametrize("kind", ELEMENT_TYPES)
def test_coders_are_deterministic_and_pickle_as_a_reference(kind):
    coder = registry.get_coder(kind)
    assert coder.is_deterministic()
    assert coder.to_type_hint() is kind
    copy = pickle.loads(pickle.dumps(coder))
    assert copy == coder
    assert copy.element_type is kind
    assert hash(copy) == hash(coder)
    assert len(pickle.dumps(coder)) < 150


def test_equal_elements_have_equal_encodings_however_they_were_made():
    coder = registry.get_coder(Resource)
    made = Resource("1.2", "1.3", "1.4", (1, 2))
    parsed = Resource.of("studies/1.2/series/1.3/instances/1.4/frames/1,2")
    assert coder.encode(made) == coder.encode(parsed)


def test_encodings_of_an_earlier_release_are_read_and_a_new_field_changes_no_key():
    """Bytes as they were written once, with and without the trailing fields that have their defaults."""
    reference = Resource("1.2", "1.3", "1.4")
    stored = StoredInstance(reference, "stored", 7)
    nested = ("\x00Resource", "1.2", "1.3", "1.4")
    written = {
        stored: (nested, "stored", 7),
        Instance(reference, "1.2.840.10008.1.2.1", b"x"): (nested, "1.2.840.10008.1.2.1", b"x"),
        reference: ("1.2", "1.3", "1.4"),
    }
    for element, state in written.items():
        coder = registry.get_coder(type(element))
        assert coder.encode(element) == b"\x00" + FastPrimitivesCoder().encode(state)
    earlier = ((*nested, ()), "stored", 7, None, None, None, "response")
    assert registry.get_coder(StoredInstance).decode(b"\x00" + FastPrimitivesCoder().encode(earlier)) == stored
    assert registry.get_coder(Resource).encode(reference).hex() == "0006030403312e320403312e330403312e34"


def test_an_encoding_is_compact():
    uid = "1.2.826.0.1.3680043.8.1055.1.20111103111148288.98361414"
    reference = Resource(uid, uid, uid)
    assert len(registry.get_coder(Resource).encode(reference)) < 3 * len(uid) + 20


def test_a_size_is_estimated_without_copying_the_bytes():
    instance = Instance(Resource("1.2", "1.3", "1.4"), "1.2.840.10008.1.2.1", content=b"x" * 10_000)
    coder = registry.get_coder(Instance)
    assert 10_000 < coder.estimate_size(instance) <= len(coder.encode(instance)) + 50


def test_a_wrong_type_hint_is_explained():
    with pytest.raises(TypeError, match=r"a collection of Resource holds a Failure: the type hint .* is wrong"):
        registry.get_coder(Resource).encode(Failure("Retrieve", "message"))


def test_decoding_needs_no_import_of_ours():
    """What a worker gets: the pickled coder and bytes."""
    element = Resource("1.2", "1.3", "1.4", (3,))
    coder = registry.get_coder(Resource)
    program = (
        "import pickle, sys\n"
        f"coder = pickle.loads({pickle.dumps(coder)!r})\n"
        f"element = coder.decode({coder.encode(element)!r})\n"
        "print(type(element).__module__, type(element).__name__, element.level, element.frames)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "dicomweb_io.elements Resource frame (3,)"
