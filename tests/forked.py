"""Scripts in processes of their own that start in a tenth of a second: forks of one process that has made the imports.

Such a process has its own memory, output, exit code and process group, and can be killed like any other. It is not
one for tests of a process's title or of what a script imports: those need `subprocess`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["heavy_imports"])


class Forked:
    """A running script, with what the tests use of `subprocess.Popen`."""

    def __init__(self, words: list, cwd: Path, env: dict, stdout: Path | str, stderr: Path | str) -> None:
        words, files = [str(word) for word in words], (str(stdout), str(stderr))
        # Daemons end with the tests, whatever a failed one has left running.
        self._process = CONTEXT.Process(target=_run, args=(words, str(cwd), dict(env), *files), daemon=True)
        with pytest.MonkeyPatch.context() as patch:  # the first start makes the process that is forked
            patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked script", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def run(words: list, cwd: Path, env: dict, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a script to its end, as `subprocess.run` with its output as text."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = Forked(words, cwd, env, *files)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, *(file.read_text() for file in files))


def _run(words: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    assert "heavy_imports" in sys.modules, "the process that is forked could not import it"
    multiprocessing.current_process()._config["daemon"] = False  # it may have workers of its own
    os.setsid()
    os.chdir(cwd)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    if "HF_HOME" in env:  # read when datasets was imported
        import datasets

        datasets.config.HF_DATASETS_CACHE = Path(env["HF_HOME"]) / "datasets"
    real = subprocess.run  # fine-tuning trains in a process of its own, which would make all imports again
    subprocess.run = lambda command, **options: (_run_module if _is_own(command) else real)(command, **options)
    _run_main(words)


def _is_own(command: list[str]) -> bool:
    """Whether this is ``python -m`` with a module of the project, which then is forked too."""
    return command[:2] == [sys.executable, "-m"] and command[2].startswith("utils.")


def _run_module(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess:
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.environ.update(env)
            _run_main(command[1:])
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _run_main(words: list[str]) -> None:
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / words[0]), *words[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
