"""Every element survives its coder exactly, and the coder travels as a reference to the class."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from apache_beam.coders import FastPrimitivesCoder, registry
from hypothesis import given, strategies as st

from dicomweb_io.elements import (
    Bulkdata,
    Difference,
    Exclusion,
    Failure,
    Frame,
    Instance,
    RenderedImage,
    Resource,
    SearchQuery,
    StoredInstance,
)
from dicomweb_io.listing import InstanceGroup
from dicomweb_io.paging import Beginning
from dicomweb_io.transforms import ElementCoder
from dicomweb_io.transforms.coders import ELEMENT_TYPES, size_of
from dicomweb_io.transforms.row_range import RowRange, RowRangeProvider
from dicomweb_io.transforms.search import PlannedSearch
from dicomweb_io.transforms.watch import OrthancChange

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
    Difference: st.builds(
        Difference,
        st.sampled_from(["missing", "extra", "different"]),
        RESOURCES,
        st.integers(0, 2**40),
        TEXTS,
        st.lists(TEXTS, max_size=2).map(tuple),
    ),
    InstanceGroup: st.builds(
        InstanceGroup,
        st.builds(Resource, UIDS, UIDS),
        st.lists(UIDS, max_size=3).map(tuple),
        st.one_of(st.none(), st.integers(0, 2**40)),
    ),
}
ROWS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(TEXTS, values, max_size=3)),
)
PLANNED = st.builds(
    PlannedSearch,
    ELEMENTS[SearchQuery],
    st.builds(RowRange, st.integers(0, 9), st.one_of(st.none(), st.integers(9, 2**62)), row_bytes=st.integers(1, 9999)),
    st.one_of(st.none(), st.lists(st.dictionaries(TEXTS, ROWS, max_size=3), max_size=3).map(tuple)),
    st.one_of(st.none(), st.integers(1, 5000)),
    st.one_of(st.none(), st.builds(Beginning, st.binary(max_size=9), st.lists(st.binary(max_size=9)).map(tuple))),
)


def test_every_element_class_has_a_strategy_here():
    assert set(ELEMENTS) == set(ELEMENT_TYPES)


def same(one, two):
    """Equality that also tells a tuple from a list, True from 1 and bytes from their like."""
    if type(one) is not type(two):
        return False
    if isinstance(one, tuple):
        return len(one) == len(two) and all(same(*pair) for pair in zip(one, two, strict=True))
    if isinstance(one, (list, dict)):
        return repr(one) == repr(two)
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, name), getattr(two, name)) for name in one.__dataclass_fields__)
    return one == two


@given(st.one_of(*(st.tuples(st.just(kind), made) for kind, made in [*ELEMENTS.items(), (PlannedSearch, PLANNED)])))
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


ONE = Resource("1.2", "1.3", "1.4")
Q = SearchQuery("series", "1.2", search_filters=(("Modality", "CT"),))
GOLDEN = [
    (ONE, "0006030403312e320403312e330403312e34"),
    (Resource("1.2", "1.3", "1.4", (1, 2)), "0006040403312e320403312e330403312e34060201010102"),
    (
        Instance(ONE, "1.2.840.10008.1.2.1", content=b"x"),
        "00060306040409005265736f757263650403312e320403312e330403312e340413312e322e3834302e31303030382e312e322e31030178",
    ),
    (Q, "00060404067365726965730403312e32000601060204084d6f64616c69747904024354"),
    (
        Frame(ONE, "1.2.840.10008.1.2.1", "image/jpeg", b"x"),
        "00060406040409005265736f757263650403312e320403312e330403312e340413312e322e3834302e31303030382e312e322e31040a696d6167652f6a706567030178",
    ),
    (
        RenderedImage(ONE, "image/png", b"x"),
        "00060306040409005265736f757263650403312e320403312e330403312e340409696d6167652f706e67030178",
    ),
    (Bulkdata("bulk/1", "image/png", None, "/tmp/x"), "000604040662756c6b2f310409696d6167652f706e670004062f746d702f78"),
    (StoredInstance(ONE, size=7), "00060306040409005265736f757263650403312e320403312e330403312e34040673746f7265640107"),
    (
        Failure("Retrieve", "it failed", ONE, (0, 10), status=404),
        "0006070408526574726965766504096974206661696c656406040409005265736f757263650403312e320403312e330403312e3406020100010a0000019403",
    ),
    (
        Failure("Retrieve", "no reference", element="int"),
        "00060c04085265747269657665040c6e6f207265666572656e636500000000000001010900000403696e74",
    ),
    (Exclusion("ignored", "/x", "no DICOM"), "000603040769676e6f72656404022f7804086e6f204449434f4d"),
    (
        Difference("missing", ONE),
        "00060204076d697373696e6706040409005265736f757263650403312e320403312e330403312e34",
    ),
    (
        Difference("extra", ONE.series, 7, "x", ("studies/1.2/series/1.4",)),
        "0006050405657874726106030409005265736f757263650403312e320403312e33010704017806010416737475646965732f312e322f7365726965732f312e34",
    ),
    (
        InstanceGroup(ONE.series, ("1.4", "1.5"), 2),
        "00060306030409005265736f757263650403312e320403312e3306020403312e340403312e350102",
    ),
    (
        InstanceGroup(ONE.series, ("1.4",), named=True),
        "00060506030409005265736f757263650403312e320403312e3306010403312e3400000901",
    ),
    (RowRange(0), "0006010100"),
    (RowRange(10, 20, 100, True, 2048), "000605010a011401640901018010"),
    (Beginning(b"1.2", (b"1.3",), 7, True), "0006040303312e3206010303312e3301070901"),
    (
        PlannedSearch(Q, RowRange(1000, None, 5000), None, 100, Beginning(b"1.2")),
        "0006050605040c00536561726368517565727904067365726965730403312e32000601060204084d6f64616c697479040243540604040900526f7752616e676501e807000188270001640602040a00426567696e6e696e670303312e32",
    ),
    (
        PlannedSearch(Q, RowRange(0, 1), ({"0020000D": {"vr": "UI", "Value": ["1.2"]}},)),
        "0006030605040c00536561726368517565727904067365726965730403312e32000601060204084d6f64616c697479040243540603040900526f7752616e676501000101060107010408303032303030304407020402767204025549040556616c756505010403312e32",
    ),
    (OrthancChange("0a", "study"), "0006020402306104057374756479"),
]
"""What the first release that wrote an element wrote for it; a later one must write and read the same."""


@pytest.mark.parametrize(("element", "encoded"), GOLDEN)
def test_each_class_is_written_and_read_as_it_was(element, encoded):
    coder = registry.get_coder(type(element))
    assert isinstance(coder, ElementCoder)
    assert coder.encode(element).hex() == encoded
    assert same(coder.decode(bytes.fromhex(encoded)), element)


def test_every_class_has_golden_bytes():
    assert set(ELEMENT_TYPES) < {type(element) for element, _ in GOLDEN}


@pytest.mark.parametrize("kind", sorted({type(element) for element, _ in GOLDEN}, key=lambda kind: kind.__name__))
def test_fewer_fields_are_filled_and_more_are_refused(kind):
    """In every class: each field with a default may be missing; one that this release does not know is an error."""
    coder, names = registry.get_coder(kind), [item.name for item in fields(kind)]
    element = next(element for element, _ in GOLDEN if type(element) is kind)
    state = tuple(getattr(element, name) for name in names)
    state = FastPrimitivesCoder().decode(coder.encode(element)[1:])[: len(state)]
    required = sum(item.default is MISSING for item in fields(kind))
    for number in range(required, len(names)):
        read = coder.decode(b"\x00" + FastPrimitivesCoder().encode(state[:number]))
        assert all(getattr(read, item.name) == item.default for item in fields(kind)[number:])
    if required:
        with pytest.raises(ValueError, match=f"an encoded {kind.__name__} has only {required - 1} fields"):
            coder.decode(b"\x00" + FastPrimitivesCoder().encode(state[: required - 1]))
    more = (*state, *[None] * (len(names) - len(state)), "new")
    with pytest.raises(ValueError, match=f"an encoded {kind.__name__} has {len(names) + 1} fields.* newer release"):
        coder.decode(b"\x00" + FastPrimitivesCoder().encode(more))


def test_a_nested_element_of_a_newer_release_is_refused_too():
    nested = ("\x00Resource", "1.2", "1.3", "1.4", (), "new")
    with pytest.raises(ValueError, match=r"an encoded Resource has 5 fields.* newer release"):
        registry.get_coder(StoredInstance).decode(b"\x00" + FastPrimitivesCoder().encode((nested, "stored")))


def test_restrictions_are_written_by_an_element_coder():
    assert RowRangeProvider().restriction_coder() == ElementCoder(RowRange)


def test_an_encoding_is_compact():
    uid = "1.2.826.0.1.3680043.8.1055.1.20111103111148288.98361414"
    reference = Resource(uid, uid, uid)
    assert len(registry.get_coder(Resource).encode(reference)) < 3 * len(uid) + 20


def test_a_size_is_estimated_without_copying_the_bytes():
    instance = Instance(Resource("1.2", "1.3", "1.4"), "1.2.840.10008.1.2.1", content=b"x" * 10_000)
    coder = registry.get_coder(Instance)
    assert 10_000 < coder.estimate_size(instance) <= len(coder.encode(instance)) + 50


def test_the_size_of_rows_is_estimated_from_a_few():
    row = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "A" * 100}]}, "00200013": {"vr": "IS", "Value": [1]}}
    planned = PlannedSearch(Q, RowRange(0, 1000), (row,) * 1000)
    coder = registry.get_coder(PlannedSearch)
    assert 0.5 < coder.estimate_size(planned) / len(coder.encode(planned)) < 2
    assert size_of(()) == size_of(None) == 2


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
