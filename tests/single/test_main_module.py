"""A script or module under `ddl run` runs as under `python FILE` and `python -m MODULE`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cli.launch.target import check_module
from hvd_train.errors import UserError
from hvd_train.rank import events, internal, script_options
from hvd_train.rank.script_options import ScriptOptions

ROOT = Path(__file__).parents[2]

SHOWS = """\
import __main__, json, os, pickle, sys
if __package__:
    from .beside import NAME
else:
    from beside import NAME

class Thing:
    pass

print(json.dumps({
    "path": sys.path, "argv": sys.argv, "file": __file__, "name": __name__, "package": __package__,
    "spec": __spec__ and __spec__.name, "loader": type(__loader__).__name__, "cached": __cached__, "doc": __doc__,
    "main": sys.modules["__main__"].__dict__ is globals() and __main__.Thing is Thing, "beside": NAME,
    "pickled": type(pickle.loads(pickle.dumps(Thing()))) is Thing, "builtins": __builtins__.__name__,
    "flags": sys.flags.optimize, "future": "annotations" in globals(), "cwd": os.getcwd(),
}))
"""

WAYS = [
    ["{here}/plain.py", "--a", "-m", ""],
    ["{here}/link.py"],
    ["{here}/folder/../plain.py", "x"],
    ["-m", "package", "--b"],
    ["-m", "package.inner", "c d"],
    ["-m", "zipped"],
]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a script, a link to another, a package and a zip file on the path."""
    package = tmp_path / "package"
    elsewhere = tmp_path / "else where"
    for folder in (package, elsewhere, tmp_path / "folder"):
        folder.mkdir()
        (folder / "beside.py").write_text(f"NAME = {folder.name!r}\n")
    (tmp_path / "beside.py").write_text("NAME = 'here'\n")
    (tmp_path / "plain.py").write_text(SHOWS)
    (elsewhere / "target.py").write_text(f'"""Words."""\n{SHOWS}')
    (tmp_path / "link.py").symlink_to(elsewhere / "target.py")
    (package / "__init__.py").write_text("")
    for name in ("__main__", "inner"):
        (package / f"{name}.py").write_text(SHOWS)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", SHOWS)
    return tmp_path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}/archive.zip", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_program_has_the_path_and_names_of_python(way: list[str], here: Path) -> None:
    words = [word.format(here=here) for word in way]
    expected, found = run(words, here), run([internal.PROGRAM, "hvd_train", "--script", *words], here)
    assert expected.returncode == found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == json.loads(expected.stdout)


ENDS = {
    "none": "sys.exit()",
    "three": "sys.exit(3)",
    "words": "sys.exit('no more')",
    "above a byte": "sys.exit(259)",
    "below": "sys.exit(-1)",
    "true": "sys.exit(True)",
    "atexit": "atexit.register(print, 'first'); atexit.register(print, 'second')",
    "atexit and words": "atexit.register(print, 'last'); sys.exit('no')",
    "os._exit": "print('said', flush=True); os._exit(7)",
    "a thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join(); print('on')",
    "a thread that goes on": "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    "spawn": "print(multiprocessing.get_context('spawn').Pool(1).map(twice, [4]))",
    "fork": "print(multiprocessing.get_context('fork').Pool(1).map(twice, [5]))",
    "a child that exits": "pid = os.fork(); sys.exit(4) if not pid else print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
    "waits for all": "os.fork() or os._exit(0); os.wait()\n    try: os.wait()\n    except ChildProcessError: print('alone')",
    "a hook": "sys.excepthook = lambda kind, error, trace: print('hooked', error); raise KeyError(1)",
    "raises": "raise ValueError('why')",
}


@pytest.mark.parametrize("way", ENDS)
def test_a_program_ends_as_under_python(way: str, here: Path) -> None:
    imports = "import atexit, multiprocessing, os, sys, threading, time\n"
    text = f"{imports}def twice(x):\n    return 2 * x\nif __name__ == '__main__':\n    {ENDS[way]}\n"
    (here / "ends.py").write_text(text)
    file = str(here / "ends.py")
    expected = run([file], here)
    found = run([internal.PROGRAM, "hvd_train", "--script", f"--output={here}/out", file], here)
    log = (here / "out/logs/rank-0.log").read_text()
    said = events.split(found.stderr.encode())[1].decode()
    assert (found.returncode, found.stdout, said) == (expected.returncode, expected.stdout, expected.stderr)
    assert sorted(log.splitlines()) == sorted((expected.stdout + expected.stderr).splitlines())


@pytest.mark.parametrize(
    "options",
    [
        ScriptOptions(),
        ScriptOptions("mpi", Path("/a b/=c"), (0, 2), tag=True),
        ScriptOptions(None, Path("/x"), ()),
        ScriptOptions("horovod"),
    ],
)
def test_options_survive_the_command_line(options: ScriptOptions) -> None:
    for script in (["/x.py", "--tee=1"], ["-m", "mine", "--output=y"]):
        assert script_options.split([*options.words(), *script]) == (options, script)


@pytest.mark.parametrize(
    "name", ["mine", "package", "package.inner", "json.tool", "extra", "hvd_train.bench", "horovod.x"]
)
def test_a_module_that_ranks_find_is_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for file in ("mine.py", "package/__init__.py", "package/inner.py", "elsewhere/extra.py"):
        (tmp_path / file).write_text("raise AssertionError('the command imports nothing')")
    monkeypatch.chdir(tmp_path)
    check_module(name, {"PYTHONPATH": f"{tmp_path}/elsewhere"})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no.such.module", "no module 'no' in {here} or installed"),
        ("package.iner", "no module 'iner' in package 'package'; did you mean 'inner'?"),
        ("extra", "no module 'extra' in {here} or installed"),
    ],
)
def test_a_module_that_no_rank_finds_is_refused(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    for file in ("package/__init__.py", "package/inner.py"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        check_module(name, {})
    assert str(refused.value).startswith(f"-m {name}: {problem.format(here=tmp_path)}")
