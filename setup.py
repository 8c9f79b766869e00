"""Packaging of dicomweb_io: the connector and its runnable jobs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "dicomweb_io" / "_version.py").read_text(), re.MULTILINE)[1]
README = HERE / "README.md"

TESTING = ["starlette>=0.40", "uvicorn>=0.30"]
IMAGES = [
    "numpy>=1.26",
    "pillow>=10.3",
    "pylibjpeg>=2.0",
    "pylibjpeg-openjpeg>=2.3",
    "pylibjpeg-rle>=2.0",
    "pyjpegls>=1.4",
    "python-gdcm>=3.0.24",
]
# The encoder in imagecodecs came with this version, which needs Python 3.11.
HTJ2K = ["imagecodecs>=2026.1.14; python_version >= '3.11'"]
AWS = ["botocore>=1.34"]
AZURE = ["azure-identity>=1.16"]
# From these versions on, an object can be written only if there is none of its name.
S3 = ["s3fs>=2024.10"]
GCS = ["gcsfs>=2024.10"]
ABFS = ["adlfs>=2024.7"]
YAML = ["apache-beam[yaml]>=2.77,<3"]
REPORT = ["matplotlib>=3.8"]

setup(
    name="dicomweb_io",
    version=VERSION,
    description="DICOMweb archives as Apache Beam sources, transforms and sinks, and a complete DICOMweb client",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["dicomweb_io", "dicomweb_io.*", "pipelines", "pipelines.*"]),
    package_data={
        "dicomweb_io": ["py.typed", "transforms/yaml/*.yaml", "templates/*"],
        "pipelines": ["py.typed", "containers/*", "containers/metadata/*"],
    },
    zip_safe=False,
    install_requires=[
        "apache-beam>=2.77,<3",
        "requests>=2.32.4,<3",
        "urllib3>=2.2,<3",
        "pydicom>=3.0.1,<4",
        "google-auth>=2.29",
        "fsspec>=2024.6",
        "orjson>=3.10",
        "defusedxml>=0.7.1",
        "rich>=13",
        "pyarrow>=14",
        "jinja2>=3.1",
        "platformdirs>=4",
        "tomli>=2; python_version < '3.11'",
        "shtab>=1.7",
    ],
    extras_require={
        "testing": TESTING,
        "images": IMAGES,
        "htj2k": [*IMAGES, *HTJ2K],
        "aws": AWS,
        "azure": AZURE,
        "s3": S3,
        "gcs": GCS,
        "abfs": ABFS,
        "yaml": YAML,
        "report": REPORT,
        "test": [
            *TESTING,
            *AWS,
            *IMAGES,
            *HTJ2K,
            *YAML,
            *REPORT,
            "coverage[toml]>=7.10",
            "duckdb>=1.1",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "trustme>=1.1",
        ],
        "lint": ["ruff>=0.12", "import-linter>=2.1", "mypy>=1.15", "types-requests"],
    },
    entry_points={"console_scripts": ["dicomweb-io=dicomweb_io.cli:main"]},
    classifiers=[
        "Intended Audience :: Healthcare Industry",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
)
