"""Programs in Java, built from Maven Central into one jar each and kept in the user's cache.

Maven downloads them as its user has set it up (``settings.xml``, mirrors, proxies); this module merges them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.go_programs import ProgramUnavailable, cache_directory

OLDEST_JAVA = 11
MAVEN_SECONDS = 900
"""Downloading takes about a minute from a near mirror."""

_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:build-classpath"
_MERGED = ("META-INF/services/", "reference.conf")
"""Files that several jars have, and whose contents belong together."""

_FORM = 1
"""Raised if the same jars are to be merged in another way."""


@dataclass(frozen=True)
class Program:
    """A program made of artifacts of Maven.

    Attributes:
        name: The name of its folder in the cache.
        main: Its main class.
        artifacts: What it consists of, as ``group:artifact:version``; their dependencies come with them.
        pinned: Versions that hold wherever the dependencies name others, in the same form.
    """

    name: str
    main: str
    artifacts: tuple[str, ...]
    pinned: tuple[str, ...] = ()

    def jar(self) -> Path:
        """The path of the jar, which is built if it is not there yet.

        Raises:
            ProgramUnavailable: If there is no Maven, or it cannot get the artifacts.
        """
        key = hashlib.sha256(f"{_FORM} {self}".encode()).hexdigest()[:12]
        directory = cache_directory() / self.name / key
        jar = directory / f"{self.name}.jar"
        # A file that was cut off lacks the directory that ends every jar.
        if zipfile.is_zipfile(jar):
            return jar
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "lock", "wb") as lock:
            # Several test processes may want it at once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not zipfile.is_zipfile(jar):
                with tempfile.TemporaryDirectory(dir=directory) as scratch:
                    self._build(Path(scratch))
                    os.replace(Path(scratch) / "merged.jar", jar)
        return jar

    def _build(self, scratch: Path) -> None:
        program = shutil.which("mvn")
        if program is None:
            raise ProgramUnavailable("there is no 'mvn' (Apache Maven) on the PATH")
        (scratch / "pom.xml").write_text(self.pom(), encoding="utf-8")
        paths = scratch / "paths"
        command = [program, "-B", "-q", "-f", str(scratch / "pom.xml"), _PLUGIN, f"-Dmdep.outputFile={paths}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=MAVEN_SECONDS, cwd=scratch)
        except subprocess.TimeoutExpired as error:
            raise ProgramUnavailable(f"Maven did not get {self.name} within {MAVEN_SECONDS} s") from error
        if done.returncode != 0 or not paths.exists():
            said = without_secrets((done.stdout + done.stderr)[-2000:].strip())
            raise ProgramUnavailable(f"Maven could not get {self.name} ({done.returncode}): {said}")
        merge(paths.read_text(encoding="utf-8").strip().split(os.pathsep), scratch / "merged.jar", self.main)

    def pom(self) -> str:
        """The project that names the artifacts for Maven."""

        def dependencies(artifacts: tuple[str, ...]) -> Iterator[str]:
            for group, artifact, version in (one.split(":") for one in artifacts):
                yield f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
                yield f"<version>{version}</version></dependency>"

        return "\n".join(
            [
                '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>',
                f"<groupId>local</groupId><artifactId>{self.name}</artifactId><version>1</version>",
                "<dependencyManagement><dependencies>",
                *dependencies(self.pinned),
                "</dependencies></dependencyManagement><dependencies>",
                *dependencies(self.artifacts),
                "</dependencies></project>",
            ]
        )


def java() -> str:
    """The path of a Java that is new enough: that of ``JAVA_HOME``, or the one on the PATH.

    Raises:
        ProgramUnavailable: If there is none.
    """
    home = os.environ.get("JAVA_HOME")
    program = shutil.which(os.path.join(home, "bin", "java") if home else "java")
    if program is None:
        raise ProgramUnavailable(
            f"there is no Java in JAVA_HOME ({home})" if home else "there is no 'java' on the PATH"
        )
    said = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=60).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        found = f"is Java {version[1]}" if version else "does not say its version"
        raise ProgramUnavailable(f"{program} {found}, but Java {OLDEST_JAVA} or newer is needed")
    return program


def without_secrets(text: str) -> str:
    """A text in which URLs have lost user names, passwords and queries."""
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1***@", re.sub(r"(\w+://[^\s?]*)\?\S+", r"\1?***", text))


def merge(paths: list[str], target: Path, main: str) -> None:
    """Merges jars into one that starts with `main`. Of files with the same name the first counts, as on a class path.

    Args:
        paths: The jars.
        target: Where to write.
        main: The main class.

    Raises:
        ProgramUnavailable: If a jar is broken.
    """
    seen: set[str] = set()
    merged: dict[str, list[bytes]] = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as jar:
        manifest = f"Manifest-Version: 1.0\nMain-Class: {main}\nMulti-Release: true\n\n"
        jar.writestr("META-INF/MANIFEST.MF", manifest)
        for path in paths:
            try:
                with zipfile.ZipFile(path) as part:
                    for name in part.namelist():
                        if _is_dropped(name) or name in seen:
                            continue
                        if name.startswith(_MERGED):
                            merged.setdefault(name, []).append(part.read(name))
                        else:
                            seen.add(name)
                            jar.writestr(name, part.read(name))
            except (OSError, zipfile.BadZipFile) as error:
                raise ProgramUnavailable(
                    f"{path} is broken ({error}): remove it, so that Maven gets it again"
                ) from error
        for name, contents in merged.items():
            jar.writestr(name, b"\n".join(contents))


def _is_dropped(name: str) -> bool:
    """Whether a file belongs to one jar alone: its manifest and signatures, its module, and folders."""
    signature = name.upper().startswith("META-INF/") and name.upper().endswith((".SF", ".DSA", ".RSA", "/MANIFEST.MF"))
    return signature or name.endswith(("/", "module-info.class"))
