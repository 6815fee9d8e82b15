"""Declaring tasks: names, places, options, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_taskworker import BackgroundTaskWorker, Cron, Every, Retry
from flask_taskworker.core.hints import importable_name
from flask_taskworker.errors import ArgumentsError, DeclarationError, NotEncodable, TaskExists, TaskNotFound

pytestmark = pytest.mark.both_databases

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "src"


@pytest.fixture
def task_worker() -> BackgroundTaskWorker:
    """Without an app: tasks may be declared before there is one."""
    return BackgroundTaskWorker()


# -- calling -----------------------------------------------------------------------------------------------------------


def test_plain_call_is_a_plain_call(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def add(x: int, y: int = 1) -> int:
        """Adds."""
        return x + y

    assert add(2) == 3
    assert add(2, y=5) == 7
    assert add.__doc__ == "Adds."
    assert add.__name__ == "add"
    assert inspect.signature(add) == inspect.signature(add.function)


async def twice(x: int) -> int:
    return 2 * x


def test_plain_call_of_async_task_gives_the_coroutine(task_worker: BackgroundTaskWorker) -> None:
    assert asyncio.run(task_worker.task(twice)(4)) == 8


# -- names -------------------------------------------------------------------------------------------------------------


def top() -> None: ...


def test_name_is_module_and_qualname(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def inner() -> None: ...

    assert task_worker.task(top).name == f"{__name__}.top"
    assert inner.name == f"{__name__}.{inner.__qualname__}"
    assert "<locals>" in inner.name


def test_name_is_overridden(task_worker: BackgroundTaskWorker) -> None:
    assert task_worker.task(name="reports.nightly")(top).name == "reports.nightly"
    assert task_worker._registry.find("reports.nightly").function is top


@pytest.mark.parametrize("name", ["", "a" * 201, "a\nb", "a\x1b[31m", 7, b"a"])
def test_bad_name_is_refused_with_the_value(task_worker: BackgroundTaskWorker, name: Any) -> None:
    with pytest.raises(DeclarationError, match="name = .* is not allowed. Allowed: a string of 1 to 200 printable"):
        task_worker.task(name=name)(top)
    assert len(task_worker._registry) == 0


def test_unknown_task_names_those_that_exist(task_worker: BackgroundTaskWorker) -> None:
    task_worker.task(name="one")(top)
    with pytest.raises(TaskNotFound, match="No task is registered as 'two'. Registered: one"):
        task_worker._registry.find("two")


SOURCE = """
from flask_taskworker import BackgroundTaskWorker
task_worker = BackgroundTaskWorker()

@task_worker.task
def work() -> None: ...

if __name__ == "__main__":
    before = work
    import {module}
    print(before.name, {module}.work.name)
"""


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": f"{SOURCES}:{folder}", "PATH": "/usr/bin:/bin"}
    return subprocess.Popen([sys.executable, *argv], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_name_is_importable_however_the_module_is_run(tmp_path: Path) -> None:
    """``python shop.py``, ``python -m market.stall`` and ``flask --app market …`` must speak of the same tasks."""
    (tmp_path / "market").mkdir()
    files = {"shop.py": "shop", "market/__init__.py": "market", "market/stall.py": "market.stall"}
    for file, module in files.items():
        (tmp_path / file).write_text(SOURCE.format(module=module))
    (tmp_path / "market" / "__main__.py").write_text(SOURCE.format(module="market"))
    runs = {
        "shop.work shop.work": start(tmp_path, "shop.py"),
        "market.stall.work market.stall.work": start(tmp_path, "-m", "market.stall"),
        "market.work market.work": start(tmp_path, "-m", "market"),
    }
    assert [process.communicate(timeout=30)[0].strip() for process in runs.values()] == list(runs)


def test_main_module_that_is_imported_again_declares_the_same_task(
    task_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``python shop.py`` where something imports ``shop``: twice the same file, one task."""
    (tmp_path / "shop.py").write_text("def work() -> None: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    main = types.ModuleType("__main__")
    main.__file__ = str(tmp_path / "shop.py")
    exec(compile((tmp_path / "shop.py").read_text(), main.__file__, "exec"), main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    first = task_worker.task(main.work)
    again = task_worker.task(importlib.import_module("shop").work)
    assert (first.name, again.name) == ("shop.work", "shop.work")
    assert len(task_worker._registry) == 1


# -- declared twice ----------------------------------------------------------------------------------------------------


def declare(task_worker: BackgroundTaskWorker, **options: Any) -> Any:
    @task_worker.task(**options)
    def work(x: int) -> int:
        return x

    return work


def test_same_place_declared_again_replaces_the_task(task_worker: BackgroundTaskWorker) -> None:
    declare(task_worker)
    again = declare(task_worker, queue="other")
    assert len(task_worker._registry) == 1
    assert task_worker._registry.find(again.name) is again


def test_another_place_with_the_same_name_is_refused_naming_both(task_worker: BackgroundTaskWorker) -> None:
    first = task_worker.task(name="work")(top)
    with pytest.raises(TaskExists) as caught:
        task_worker.task(name="work")(twice)
    assert "'work'" in str(caught.value)
    assert first._place in str(caught.value)
    assert f"{__file__}:{inspect.getsourcelines(twice)[1]}" in str(caught.value)
    assert "name=" in str(caught.value)
    assert task_worker._registry.find("work") is first


def test_two_workers_have_their_own_tasks(task_worker: BackgroundTaskWorker) -> None:
    other = BackgroundTaskWorker()
    task_worker.task(name="work")(top)
    other.task(name="work")(twice)
    assert task_worker._registry.find("work").function is top
    assert other._registry.find("work").function is twice


def scaled(task_worker: BackgroundTaskWorker, factor: int, **options: Any) -> Any:
    @task_worker.task(**options)
    def scale(x: int) -> int:
        return x * factor

    return scale


def test_two_closures_of_one_function_in_use_are_refused(task_worker: BackgroundTaskWorker) -> None:
    double = scaled(task_worker, 2)
    with pytest.raises(TaskExists, match="closures of one function .* a name of its own with name=…"):
        scaled(task_worker, 3)
    assert task_worker._registry.find(double.name) is double
    assert scaled(task_worker, 3, name="triple")(2) == 6


def test_closures_behind_a_decorator_are_told_apart(task_worker: BackgroundTaskWorker) -> None:
    def times(factor: int) -> Any:
        def decorate(function: Any) -> Any:
            @functools.wraps(function)
            def wrapper(x: int) -> int:
                return factor * function(x)

            return wrapper

        return decorate

    def same(x: int) -> int:
        return x

    first = task_worker.task(times(2)(same))
    second = task_worker.task(times(2)(same))
    assert task_worker._registry.find(first.name) is second
    with pytest.raises(TaskExists, match="closures of one function"):
        task_worker.task(times(3)(same))


def test_defaults_tell_functions_of_one_factory_apart(task_worker: BackgroundTaskWorker) -> None:
    def make(factor: int) -> Any:
        @task_worker.task
        def scale(x: int, factor: int = factor) -> int:
            return x * factor

        return scale

    kept = make(2)
    with pytest.raises(TaskExists):
        make(3)
    assert task_worker._registry.find(kept.name) is kept


def test_a_replaced_closure_refuses_to_enqueue(task_worker: BackgroundTaskWorker) -> None:
    """As where an app factory is called again: its earlier app may be gone, or may not."""
    holders = [[scaled(task_worker, factor)] for factor in (2, 3)]
    with pytest.raises(TaskExists, match="closures of one function"):
        holders[0][0]._encode((1,), {})
    assert holders[1][0]._encode((1,), {}) == "[[1],{}]"


def test_module_that_is_loaded_again_takes_the_place_of_its_closures(
    task_worker: BackgroundTaskWorker, tmp_path: Path
) -> None:
    source = "def make(factor):\n    def scale(x):\n        return x * factor\n    return scale\n"
    namespaces: list[dict[str, Any]] = [{"__name__": "shop"}, {"__name__": "shop"}]
    for namespace in namespaces:
        exec(compile(source, str(tmp_path / "shop.py"), "exec"), namespace)
        namespace["task"] = task_worker.task(namespace["make"](2))
    assert len(task_worker._registry) == 1


def test_signature_is_that_of_the_decorator_around_the_function(task_worker: BackgroundTaskWorker) -> None:
    def with_session(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function("session", *args, **kwargs)

        return wrapper

    @task_worker.task
    @with_session
    def rename(session: str, user_id: int, name: str) -> str:
        return f"{session} {user_id} {name}"

    assert rename._encode((1, "Ana"), {}) == '[[1,"Ana"],{}]'
    assert rename(1, "Ana") == "session 1 Ana"


# -- loaded under another name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "module", "name"),
    [
        ("shop.py", "uwsgi_file_shop", "shop"),
        ("shop.wsgi", "_mod_wsgi_0b8e4b5a7f", "shop"),
        ("shop.py", "__mp_main__", "shop"),
        ("market/stall.py", "__main__", "market.stall"),
        ("market/stall.py", "uwsgi_file__srv_market_stall", "market.stall"),
        ("market/__init__.py", "__main__", "market"),
        ("shop.py", "shop", "shop"),
        ("bare/stall.py", "__main__", "stall"),
    ],
)
def test_name_is_importable_whoever_has_loaded_the_module(tmp_path: Path, file: str, module: str, name: str) -> None:
    (tmp_path / "market").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "market" / "__init__.py").write_text("")
    (tmp_path / file).write_text("")
    assert importable_name(module, {"__file__": str(tmp_path / file), "__spec__": None}) == name


@pytest.mark.slow
def test_child_that_multiprocessing_spawned_has_the_names_of_its_parent(tmp_path: Path) -> None:
    (tmp_path / "market").mkdir()
    (tmp_path / "market" / "__init__.py").write_text("")
    (tmp_path / "market" / "stall.py").write_text(
        "import multiprocessing\n"
        "from flask_taskworker import BackgroundTaskWorker\n"
        "task_worker = BackgroundTaskWorker()\n"
        "@task_worker.task\n"
        "def work() -> None: ...\n"
        "def tell(queue):\n    queue.put(work.name)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    context.Process(target=tell, args=(queue,)).start()\n"
        "    print(work.name, queue.get(timeout=60))\n"
    )
    assert start(tmp_path, "market/stall.py").communicate(timeout=60)[0].split() == ["market.stall.work"] * 2


# -- what is not a task ------------------------------------------------------------------------------------------------


def generate() -> Iterator[int]:
    yield 1


async def agenerate() -> AsyncIterator[int]:
    yield 1


class Doer:
    def __call__(self) -> None: ...

    def do(self) -> None: ...

    @classmethod
    def make(cls) -> None: ...


@pytest.mark.parametrize("function", [Doer.do, Doer.make])
def test_method_is_refused_where_it_is_declared(task_worker: BackgroundTaskWorker, function: Any) -> None:
    with pytest.raises(DeclarationError, match="is a method, and a job has no object to call it on"):
        task_worker.task(getattr(function, "__func__", function))


def test_static_method_is_a_task(task_worker: BackgroundTaskWorker) -> None:
    class Tools:
        @staticmethod
        @task_worker.task
        def send(to: str) -> str:
            return f"sent {to}"

    assert Tools.send("bo") == Tools().send("bo") == "sent bo"


def test_lambda_needs_a_name(task_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(DeclarationError, match="A lambda has no name"):
        task_worker.task(lambda: None)
    assert task_worker.task(name="nothing")(lambda: None).name == "nothing"


@pytest.mark.parametrize("function", [generate, agenerate])
def test_generator_is_refused(task_worker: BackgroundTaskWorker, function: Any) -> None:
    with pytest.raises(DeclarationError, match="generator, which would not run. Return a value instead"):
        task_worker.task(function)


@pytest.mark.parametrize("function", [Doer, Doer(), Doer().do, functools.partial(top), print, 7])
def test_what_is_not_a_function_is_refused(task_worker: BackgroundTaskWorker, function: Any) -> None:
    with pytest.raises(DeclarationError, match="is not a function. Decorate a function made with def or async def"):
        task_worker.task(function)


def test_task_of_a_task_is_refused(task_worker: BackgroundTaskWorker) -> None:
    task = task_worker.task(top)
    with pytest.raises(DeclarationError, match="is a task already. Decorate the plain function"):
        task_worker.task(task)


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_are_kept(task_worker: BackgroundTaskWorker) -> None:
    task = declare(task_worker, queue="web", priority=-3, retry=5, timeout=1.5, keep=timedelta(hours=1))
    options = task.options
    assert (options.queue, options.priority, options.keep) == ("web", -3, timedelta(hours=1))
    assert options.timeout == timedelta(seconds=1.5)
    assert options.retries == (Retry(max_attempts=5),)
    assert task.max_attempts == 5


def test_defaults_of_the_options(task_worker: BackgroundTaskWorker) -> None:
    options = declare(task_worker).options
    assert (options.queue, options.priority, options.retries, options.timeout, options.keep) == (
        "default",
        0,
        (),
        None,
        None,
    )


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("queue", "", "queue = '' is not allowed"),
        ("queue", "a\tb", "queue = 'a"),
        ("queue", None, "queue = None is not allowed"),
        ("priority", 1.5, "priority = 1.5 is not allowed. Allowed: a whole number"),
        ("priority", True, "priority = True is not allowed"),
        ("priority", 2**31, "priority = 2147483648 is not allowed"),
        ("timeout", 0, "timeout = .* is not allowed. Allowed: more than 0 seconds"),
        ("timeout", -1, "timeout is -1"),
        ("timeout", "5", "timeout is '5'. Give a number of seconds or a timedelta"),
        ("timeout", float("nan"), "timeout is nan"),
        ("timeout", float("inf"), "timeout is inf"),
        ("keep", -1, "keep is -1"),
        ("keep", "1 day", "keep is '1 day'"),
        ("retry", 0, "max_attempts is 0"),
        ("retry", -1, "max_attempts is -1"),
        ("retry", True, "retry = True is not allowed. Give a Retry"),
        ("retry", "always", "retry = 'always' is not allowed"),
        ("schedule", "0 3 * * *", r"schedule = '0 3 \* \* \*' is not a trigger. Give Cron"),
        ("schedule", [Every(hours=1), 5], "schedule = 5 is not a trigger"),
        ("schedule", Cron, "is not a trigger"),
    ],
)
def test_bad_option_is_refused_with_the_value_and_the_remedy(
    task_worker: BackgroundTaskWorker, option: str, value: Any, words: str
) -> None:
    with pytest.raises(DeclarationError, match=words):
        declare(task_worker, **{option: value})
    assert len(task_worker._registry) == 0


def test_unknown_option_is_refused(task_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(
        ArgumentsError, match="A task takes no priorty. It takes name, queue, priority, .*, sensitive.$"
    ):
        declare(task_worker, priorty=3)


# -- schedules of the decorator ----------------------------------------------------------------------------------------


def test_schedule_arguments_are_checked_at_once(task_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(ArgumentsError, match=": missing a required argument: 'x'"):
        declare(task_worker, schedule=Every(hours=1))
    with pytest.raises(NotEncodable, match=r"args\[0\]"):
        declare(task_worker, schedule=Every(hours=1), schedule_args=(object(),))
    with pytest.raises(ArgumentsError, match=r"schedule_args = 'ab' is not allowed. Allowed: .*, as \('ab',\)"):
        declare(task_worker, schedule=Every(hours=1), schedule_args="ab")
    with pytest.raises(ArgumentsError, match="schedule_kwargs = 3 is not allowed. Allowed: a dict"):
        declare(task_worker, schedule=Every(hours=1), schedule_kwargs=3)
    assert len(task_worker._registry) == 0


def test_several_schedules_are_numbered_from_the_second_on(task_worker: BackgroundTaskWorker) -> None:
    task = declare(
        task_worker,
        name="report",
        schedule=[Cron("0 3 * * *"), Every(hours=1), Every(hours=2)],
        schedule_kwargs={"x": 4},
    )
    declared = task._declared_schedules()
    assert [schedule.name for schedule in declared] == ["report", "report#2", "report#3"]
    assert {schedule.args for schedule in declared} == {'[[],{"x":4}]'}


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_types_follow_the_function() -> None:
    """``tests/project/typing/api.py`` says what a type checker must accept and what it must refuse."""
    pytest.importorskip("mypy", reason="mypy is not installed here; the main environment has it")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "tests/project/typing/api.py"]
    environment = {"MYPYPATH": str(SOURCES), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=55, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_tasks_of_a_decorator_that_lacks_wraps_are_told_apart(task_worker: BackgroundTaskWorker) -> None:
    def careless(function: Any) -> Any:
        def wrapper() -> str:
            return function()

        return wrapper

    def a() -> str:
        return "a"

    def b() -> str:
        return "b"

    task_worker.task(careless(a))
    with pytest.raises(TaskExists, match=r"functools\.wraps"):
        task_worker.task(careless(b))
