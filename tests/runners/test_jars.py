"""How a program in Java is built, kept and refused."""

from __future__ import annotations

import os
import re
import sys
import zipfile

import pytest

from tests.go_programs import ProgramUnavailable
from tests.runners.jars import Program, java, merge

PROGRAM = Program("program", "example.Main", ("example:program:1",), pinned=("example:library:2",))


def jar_of(path, **files):
    with zipfile.ZipFile(path, "w") as jar:
        for name, text in files.items():
            jar.writestr(name.replace("__", "/").replace("_", "."), text)
    return str(path)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a program on the PATH that does what a few lines of Python say; nothing else is there."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)

    def tool(name, lines):
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\nimport sys\n{lines}\n")
        path.chmod(0o700)

    return tool


def test_jars_are_merged_as_a_class_path_is_searched(tmp_path):
    signed = {"META-INF__A_SF": "signature", "META-INF__MANIFEST_MF": "Sealed: true\n", "module-info_class": ""}
    first = jar_of(tmp_path / "1.jar", A_class="first", META__none="", **{"META-INF__services__S": "one"}, **signed)
    second = jar_of(tmp_path / "2.jar", A_class="second", B_class="B", **{"META-INF__services__S": "two"})
    merge([first, second], tmp_path / "merged.jar", "example.Main")
    with zipfile.ZipFile(tmp_path / "merged.jar") as jar:
        contents = {name: jar.read(name).decode() for name in jar.namelist()}
    assert "Main-Class: example.Main\n" in contents.pop("META-INF/MANIFEST.MF")
    assert contents == {"A.class": "first", "B.class": "B", "META/none": "", "META-INF/services/S": "one\ntwo"}
    with open(first, "r+b") as file:
        file.truncate(50)
    with pytest.raises(ProgramUnavailable, match=f"{re.escape(first)} is broken .*: remove it"):
        merge([second, first], tmp_path / "merged.jar", "example.Main")


def test_a_jar_is_built_once_and_again_if_it_was_cut_off(tmp_path, tool):
    part = jar_of(tmp_path / "part.jar", A_class="A")
    built = tmp_path / "built"
    said = f"[print({part!r}, file=open(word.partition('=')[2], 'w')) for word in sys.argv if 'outputFile' in word]"
    tool("mvn", f"{said}\nopen({str(built)!r}, 'a').write('.')")
    jar = PROGRAM.jar()
    assert zipfile.ZipFile(jar).read("A.class") == b"A"
    assert PROGRAM.jar() == jar
    assert built.read_text() == "."
    os.truncate(jar, jar.stat().st_size - 10)
    assert zipfile.is_zipfile(PROGRAM.jar())
    assert built.read_text() == ".."
    assert sorted(path.name for path in jar.parent.iterdir()) == ["lock", "program.jar"]
    assert "<artifactId>library</artifactId>\n<version>2</version>" in PROGRAM.pom()


def test_what_is_missing_is_named(tool, tmp_path, monkeypatch):
    with pytest.raises(ProgramUnavailable, match="there is no 'java' on the PATH"):
        java()
    tool("java", """print('openjdk version "1.8.0_402"', file=sys.stderr)""")
    with pytest.raises(ProgramUnavailable, match="bin/java is Java 8, but Java 11 or newer is needed"):
        java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    tool("java", """print('openjdk version "17.0.15" 2025-04-15', file=sys.stderr)""")
    assert java() == str(tmp_path / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(ProgramUnavailable, match=r"there is no Java in JAVA_HOME \(/nowhere\)"):
        java()
    with pytest.raises(ProgramUnavailable, match=r"there is no 'mvn' \(Apache Maven\) on the PATH"):
        PROGRAM.jar()
    tool("mvn", "sys.exit('cannot reach https://me:secret@repo.example/maven?token=secret')")
    with pytest.raises(ProgramUnavailable, match=r"\(1\): cannot reach https://\*\*\*@repo.example/maven\?\*\*\*$"):
        PROGRAM.jar()
