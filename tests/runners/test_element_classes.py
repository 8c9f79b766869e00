"""Elements keep their class across processes, in consumers that import nothing of ours."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.transforms import DistinctReferences

REFERENCES = [
    Resource("1.2"),
    Resource("1.2", "1.3"),
    Resource("1.2", "1.3", "1.4"),
    Resource("1.2", "1.3", "1.4", (2,)),
]
LEVELS = ["study", "series", "instance", "frame"]


def test_classes_hold_after_reshuffle_and_group_by_key(engine):
    with beam.Pipeline(options=PipelineOptions(engine)) as p:
        references = p | beam.Create(REFERENCES).with_output_types(Resource)
        seen = (
            references
            | beam.Reshuffle()
            | beam.Map(
                lambda x: (
                    x.level,
                    __import__("sys").modules["dicomweb_io.elements"].Resource is type(x),
                    type(x.frames).__name__,
                )
            )
        )
        assert_that(seen, equal_to([(level, True, "tuple") for level in LEVELS]), label="Reshuffle")
        keys = (
            references
            | beam.Map(lambda x: (x, 1))
            | beam.GroupByKey()
            | beam.MapTuple(lambda key, ones: (key.level, hash(key) == hash(key.instance) or key.level == "frame"))
        )
        assert_that(keys, equal_to([(level, True) for level in LEVELS]), label="Keys")
        values = (
            references
            | beam.Map(lambda x: (x.study_instance_uid, x))
            | "ByStudy" >> beam.GroupByKey()
            | beam.FlatMapTuple(lambda study, members: [(study, member.level, member.uri) for member in members])
        )
        expected = [("1.2", item.level, item.uri) for item in REFERENCES]
        assert_that(values, equal_to(expected), label="Values")
        twice = (references, references) | beam.Flatten() | DistinctReferences() | "URIs" >> beam.Map(lambda x: x.uri)
        assert_that(twice, equal_to([item.uri for item in REFERENCES]), label="Distinct")


def test_other_elements_hold_too(engine):
    reference = Resource("1.2", "1.3", "1.4")
    instance = Instance(reference, "1.2.840.10008.1.2.1", content=b"\x00\xff" * 50)
    stored = StoredInstance(reference, "exists", size=7, warning_reason=None)
    failure = Failure("Retrieve", "no", reference=reference, rows=(1, 2), status=503)
    with beam.Pipeline(options=PipelineOptions(engine)) as p:
        for element, look in (
            (instance, lambda x: (x.reference.level, x.content, x.path, x.size)),
            (stored, lambda x: (x.reference.level, x.outcome, x.size, x.warning_reason)),
            (failure, lambda x: (x.reference.uri, x.rows, x.status, x.to_dict()["rows"])),
        ):
            name = type(element).__name__
            seen = (
                p
                | name >> beam.Create([element]).with_output_types(type(element))
                | f"Reshuffle{name}" >> beam.Reshuffle()
                | f"Look{name}" >> beam.Map(look)
            )
            assert_that(seen, equal_to([look(element)]), label=f"Check{name}")
