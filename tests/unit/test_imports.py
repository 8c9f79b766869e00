"""What importing the package costs and what it brings along."""

import subprocess
import sys

import pytest

from dicomweb_io.testing.samples import make_study


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import dicomweb_io",
        "from dicomweb_io import DICOMwebClient, DICOMfileClient, DICOMClient, Endpoint, Resource, Instance",
        "import dicomweb_io.api, dicomweb_io.session_utils, dicomweb_io.uri",
        "import dicomweb_io.cli.run",
        "import dicomweb_io.testing",
    ],
)
def test_everything_but_the_transforms_does_without_beam(statement: str) -> None:
    assert not any(name.partition(".")[0] == "apache_beam" for name in _modules_after(statement))


def test_the_package_itself_loads_nothing_heavy() -> None:
    loaded = _modules_after("import dicomweb_io")
    assert not loaded & {"pydicom", "requests", "numpy", "fsspec", "apache_beam"}


def test_a_copy_between_folders_and_the_start_of_a_command_do_without_pydicom(tmp_path) -> None:
    """It takes longer to import than all the rest."""
    make_study(tmp_path / "source", instances=2, size=100)
    arguments = ["copy", str(tmp_path / "source"), str(tmp_path / "copy")]
    loaded = _modules_after(f"from dicomweb_io.cli import main\nassert main({arguments!r}) == 0")
    assert not loaded & {"pydicom", "numpy"}
    assert len(list((tmp_path / "copy").rglob("*.dcm"))) == 2


FIRST_USES = """
import io, threading
from dicomweb_io.dicom.attributes import entry_of
from dicomweb_io.dicom.json_decode import load_json_dataset
from dicomweb_io.dicom.json_encode import _private_standard_vr
from dicomweb_io.dicom.uids import is_image_class, name_of_uid
from dicomweb_io.dicom.values import character_set

def use(function, *arguments):
    start.wait()
    try:
        function(*arguments)
    except BaseException as error:
        problems.append(error)

uses = [(is_image_class, "1.2"), (name_of_uid, "1.2"), (entry_of, 0x60003000), (load_json_dataset, {}),
        (_private_standard_vr, 0x00091001, b"GEMS_IDEN_01"), (character_set, ("ISO_IR 100",))]
problems, start = [], threading.Barrier(len(uses))
threads = [threading.Thread(target=use, args=one) for one in uses]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not problems, problems
"""


def test_threads_can_be_the_first_to_need_pydicom() -> None:
    """To import its modules before it, from two threads, fails: each waits for the other."""
    _modules_after(FIRST_USES)


def test_public_names_can_be_loaded_and_listed() -> None:
    import dicomweb_io

    for name in dicomweb_io.__all__:
        assert getattr(dicomweb_io, name) is not None
        assert name in dir(dicomweb_io)
    with pytest.raises(AttributeError, match="no_such_name"):
        dicomweb_io.no_such_name  # noqa: B018
