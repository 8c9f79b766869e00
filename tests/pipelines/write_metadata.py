"""The metadata of Flex Templates, made of the jobs' own options: ``python -m tests.pipelines.write_metadata``.

Fields: https://cloud.google.com/dataflow/docs/guides/templates/configuring-flex-templates (Metadata parameters).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pipelines
from pipelines import reconcile, transfer
from pipelines._common import job_options

FOLDER = Path(pipelines.__file__).parent / "containers" / "metadata"
TEMPLATES: dict[str, tuple[Any, Any]] = {
    "transfer": (transfer, transfer.TransferOptions),
    "reconcile": (reconcile, reconcile.ReconcileOptions),
}
"""The jobs that are complete without the process that starts them. The others end with work of their own there."""
OF_THE_SUBMITTER = {"summary", "report"}
"""What a launched template cannot do: it ends when the job starts, on a machine that nobody sees again."""
PATTERNS = {int: r"^\d+$", float: r"^\d+(\.\d+)?$"}


def _parameter(name: str, action: argparse.Action) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": (action.help or "").replace("%%", "%"),
        "isOptional": name not in ("source", "destination"),
        "paramType": "TEXT",
    }
    if action.nargs == 0:
        made |= {"paramType": "BOOLEAN", "regexes": ["^(true|false)$"]}
    elif action.choices:
        made |= {
            "paramType": "ENUM",
            "regexes": [f"^({'|'.join(map(str, action.choices))})$"],
            "enumOptions": [{"value": str(choice), "label": str(choice)} for choice in action.choices],
        }
    elif action.type in PATTERNS:
        made |= {"paramType": "NUMBER", "regexes": [PATTERNS[action.type]]}
    elif isinstance(action, argparse._AppendAction):
        made["helpText"] += '; several as a JSON list: ["Modality=CT","PatientID=1"]'
    return made


def metadata(job: str) -> str:
    """The text of a job's ``metadata.json``."""
    module, options = TEMPLATES[job]
    wanted = {name: action for name, action in job_options(options).items() if name not in OF_THE_SUBMITTER}
    document = {
        "name": f"DICOMweb: {job}",
        "description": module.__doc__.partition(" ``")[0],
        "streaming": False,
        "parameters": [_parameter(name, action) for name, action in wanted.items()],
    }
    return json.dumps(document, indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for job in TEMPLATES:
        (FOLDER / f"{job}.json").write_text(metadata(job), encoding="utf-8")
