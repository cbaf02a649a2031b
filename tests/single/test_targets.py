import subprocess
import sys
from importlib.util import spec_from_file_location

import pytest

from hvd_train.config import targets
from hvd_train.errors import UserError

FILES = {
    "mine.py": "SIZE = 5\ndef build(size=1): return size\n",
    "broken.py": "import sys\n\nx = 1 / 0\n",
    "chained.py": "try:\n    import nowhere\nexcept ImportError as e:\n    raise RuntimeError('needs it') from e\n",
    "unraised.py": "raise RuntimeError('mine') from ValueError('never raised')\n",
    "hidden.py": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise RuntimeError('clear') from None\n",
    "syntax.py": "x = 1\ndef f(:\n",
    "exits.py": "raise SystemExit(3)\n",
    "package/__init__.py": "raise RuntimeError('imported')\n",
    "package/models.py": "",
    "space/inner/deep.py": "def f(): return 'deep'\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.partition(".")[0], raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_current_directory_and_what_is_installed_count():
    assert targets.resolve("mine:build")(3) == 3
    assert targets.resolve("space.inner.deep:f")() == "deep"
    assert targets.resolve("math:sqrt")(4) == 2
    assert targets.resolve("os.path:join")("a", "b") == "a/b"


def test_modules_of_an_import_hook_count(monkeypatch, folder):
    class Hook:
        def find_spec(self, name, path, target=None):
            return spec_from_file_location(name, folder / "mine.py") if name == "hooked" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Hook()])
    targets.check("hooked:build")


@pytest.mark.parametrize(
    "text", ["mine", "mine:", ":build", "mine.build", "mi ne:f", "mine:f()", "a:b:c", "a..b:c", ""]
)
def test_other_syntax_is_refused(text):
    assert f"target '{text}': expected 'package.module:callable'" in refusal(targets.check, text)


@pytest.mark.parametrize(("text", "words"), [
    ("mien:build", ["no module 'mien'", "did you mean 'mine'?"]),
    ("nump:zeros", ["no module 'nump'", "did you mean 'numpy'?"]),
    ("package.model:f", ["no module 'model' in package 'package'", "did you mean 'models'?"]),
    ("mine.build:f", ["no module 'build' in package 'mine'"]),
])  # fmt: skip
@pytest.mark.parametrize("function", [targets.check, targets.resolve])
def test_a_module_that_is_not_there_is_refused_with_the_nearest(function, text, words):
    assert all(word in refusal(function, text) for word in words)


@pytest.mark.parametrize("text", ["package.models:f", "broken:f", "math:sqrt", "space.inner.deep:f", "torch.nn:Linear"])
def test_check_imports_nothing(text):
    code = (
        "import sys; from hvd_train.config import targets; targets.check(sys.argv[1]);"
        "assert not {'torch', 'package', 'broken', 'space', 'numpy'} & set(sys.modules)"
    )
    root = targets.__file__.removesuffix("/hvd_train/config/targets.py")
    subprocess.run([sys.executable, "-c", code, text], check=True, env={"PYTHONPATH": root})


@pytest.mark.parametrize(("text", "words"), [
    ("broken:f", ["ZeroDivisionError: division by zero", "broken.py:3)"]),
    ("chained:f", ["ModuleNotFoundError: No module named 'nowhere'", "chained.py:2)"]),
    ("hidden:f", ["RuntimeError: clear", "hidden.py:4)"]),
    ("unraised:f", ["RuntimeError: mine", "unraised.py:1)"]),
    ("syntax:f", ["SyntaxError: ", "syntax.py:2)"]),
    ("exits:f", ["SystemExit: 3", "exits.py:1)"]),
    ("package.models:f", ["importing 'package.models' failed: RuntimeError: imported", "__init__.py:1)"]),
])  # fmt: skip
def test_a_module_that_raises_gives_the_first_cause_and_its_place(text, words):
    message = refusal(targets.resolve, text)
    assert message.startswith(f"target '{text}': importing ")
    assert all(word in message for word in words)


def test_names_must_be_there_and_callable():
    assert "no 'biuld' in module 'mine'; did you mean 'build'?" in refusal(targets.resolve, "mine:biuld")
    assert "'SIZE' is of type int, expected a callable" in refusal(targets.resolve, "mine:SIZE")


def test_call_passes_arguments_that_fit():
    build = targets.resolve("mine:build")
    assert targets.call("mine:build", build, [], {"size": 4}) == 4
    assert targets.call("mine:build", build, [4], {}) == 4
    assert targets.call("builtins:dict", dict, [], {"a": 1}) == {"a": 1}
    text = refusal(targets.call, "mine:build", build, [], {"sise": 4})
    assert "unexpected keyword argument 'sise'; its parameters are (size=1)" in text
