"""Jobs as a Flex Template gives them their options, and the metadata of such templates."""

from __future__ import annotations

import json

import pytest

from dicomweb_io.options import UsageError
from pipelines import export_metadata, reconcile, transfer
from pipelines._common import job_options, parse
from tests.pipelines.write_metadata import FOLDER, TEMPLATES, metadata

BOTH = ["--source=/a", "--destination=/b"]
JOBS = [transfer.TransferOptions, reconcile.ReconcileOptions, export_metadata.ExportOptions]


def parsed(*arguments, options=transfer.TransferOptions):
    return parse(options, "job", "", [*(BOTH if options is not JOBS[2] else BOTH[:1]), *arguments])


@pytest.mark.parametrize("options", JOBS)
def test_each_option_is_taken_as_a_template_gives_it(options):
    """As ``--NAME=VALUE`` with underscores; the values arrive as if they had been given the usual way."""
    for name, action in job_options(options).items():
        if name in ("source", "destination"):
            continue
        option = action.option_strings[-1]
        value = str(next(iter(action.choices))) if action.choices else "7" if action.type else "A=1"
        usual = [option] if action.nargs == 0 else [option, value]
        given = f"--{name}={'true' if action.nargs == 0 else value}"
        assert vars(parsed(given, options=options)[0]) == vars(parsed(*usual, options=options)[0])
        if action.nargs == 0:
            assert vars(parsed(f"--{name}=false", options=options)[0]) == vars(parsed(options=options)[0])


def test_what_may_be_repeated_may_be_a_json_list():
    args, _ = parsed('--filter=["Modality=CT","PatientName=DOE, JANE"]', "--filter=StudyDate=20260101")
    assert args.filters == ["Modality=CT", "PatientName=DOE, JANE", "StudyDate=20260101"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--allow_patterns=yes", "--allow-patterns takes no value but true or false, and 'yes' is neither"),
        ('--filter=["Modality=CT"', "--filter: a value that begins with"),
        ("--filter=[1]", "--filter: a value that begins with"),
    ],
)
def test_other_values_are_refused(argument, message):
    with pytest.raises(UsageError, match=message):
        parsed(argument)


@pytest.mark.parametrize("job", TEMPLATES)
def test_the_metadata_are_up_to_date(job):
    assert (FOLDER / f"{job}.json").read_text(encoding="utf-8") == metadata(job), (
        "python -m tests.pipelines.write_metadata"
    )
    parameters = json.loads(metadata(job))["parameters"]
    assert {item["name"] for item in parameters if not item["isOptional"]} == {"source", "destination"}
    assert {file.stem for file in FOLDER.iterdir()} == set(TEMPLATES)
