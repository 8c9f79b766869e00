"""docs/transforms.md: it names every public transform and every metric, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pydicom
import pytest

from dicomweb_io import DICOMfileClient, transforms
from dicomweb_io.elements import Instance
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import metrics

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/transforms.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_every_public_name_is_in_the_document():
    missing = [name for name in transforms.__all__ if not re.search(rf"`[^`]*\b{name}\b[^`]*`", TEXT)]
    assert missing == []


def test_every_metric_that_is_counted_is_in_the_document():
    counted = set()
    for path in (ROOT / "dicomweb_io/transforms").glob("*.py"):
        counted |= set(re.findall(r"\b(?:count|observe)\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
    assert {"requests", "failures"} <= set(re.findall(r"`(\w+)`", TEXT))
    assert [name for name in sorted(counted) if f"`{name}`" not in TEXT] == []
    own = sorted(counted - {"cumulativeThrottlingSeconds"})
    assert [name for name in own if f"``{name}``" not in str(metrics.__doc__)] == []


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number, serve, tmp_path, capfd, monkeypatch):
    make_study(tmp_path / "archive", instances=2, size=200)
    one = next((tmp_path / "archive").rglob("*.dcm"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/one.dcm").write_bytes(one.read_bytes())
    (tmp_path / "data/copy").mkdir()
    (tmp_path / "data/copy/any.dcm").write_bytes(one.read_bytes())
    study = DICOMfileClient(tmp_path / "archive").search_for_studies()[0]
    (tmp_path / "data/accessions.csv").write_text(f"AccessionNumber\n{study['00080050']['Value'][0]}\n")
    server = serve(tmp_path / "archive")
    code = EXAMPLES[number].replace("https://pacs.example/dicom-web", server.url)
    code = code.replace('[{"PatientID": "1"}, {"PatientID": "2"}]', '[{"PatientID": "SYNTHETIC"}]')
    code = code.replace('"/data/', f'"{tmp_path}/data/').replace(
        "beam.Pipeline()", 'beam.Pipeline(runner="FnApiRunner")'
    )
    assert code != EXAMPLES[number]
    # The functions of an example belong to a module that workers need not import.
    exec(compile(code, f"example {number + 1}", "exec"), {"__name__": "__main__"})


def test_the_model_scores_every_frame(serve, tmp_path, capfd):
    """The scores are those of the pixels, by the references of their frames."""
    (code,) = [example for example in EXAMPLES if "RunInference" in example]
    paths = make_study(tmp_path, instances=5, size=200)
    code = code.replace("https://pacs.example/dicom-web", serve(tmp_path).url)
    code = code.replace("beam.Pipeline()", 'beam.Pipeline(runner="FnApiRunner")')
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    shown = dict(line.split() for line in capfd.readouterr().out.splitlines() if line.startswith("studies/"))
    expected = {
        f"{Instance.from_path(path).reference.uri}/frames/1": 0.5 + 2 * pydicom.dcmread(path).pixel_array.mean()
        for path in paths
    }
    assert {uri: float(score) for uri, score in shown.items()} == pytest.approx(expected)


def test_there_is_an_example_of_every_transform():
    shown = "\n".join(EXAMPLES)
    public = [name for name in transforms.__all__ if hasattr(getattr(transforms, name), "expand")]
    assert [name for name in public if f"{name}(" not in shown] == []
