"""What --analyse takes, what it says where it does not, and the document of it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.analysers import parameters
from flowmon.analysers.__main__ import markdown
from flowmon.analysers.parameters import KINDS, Kind, analysers, check, parameter
from flowmon.errors import ConfigError

DOCUMENT = Path(__file__).parents[2] / "docs" / "analysers.md"


@dataclass(frozen=True)
class TaskParameters:
    """One of each type."""

    number: int = parameter(3, "a number", least=1, most=9)
    share: float = parameter(0.5, "a share", above=0, below=1)
    window: float = parameter(2.0, "a time", above=0)
    exact: bool = parameter(default=False, meaning="whether")
    ports: str = parameter("1-9", "a list")

    def __post_init__(self) -> None:
        check(self)


class Task:
    """Remembers what it was made of."""

    name = "task"

    def __init__(self, given: TaskParameters) -> None:
        self.given = given


class Other(Task):
    """Another one."""

    name = "other"


OtherParameters = TaskParameters


@pytest.fixture
def two_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"task": Kind(__name__, "Task"), "other": Kind(__name__, "Other")}
    monkeypatch.setattr(parameters, "KINDS", kinds)


def made(text: str) -> TaskParameters:
    (analyser,) = analysers([text])
    assert isinstance(analyser, Task)
    return analyser.given


@pytest.mark.usefixtures("two_kinds")
def test_values_by_their_types() -> None:
    assert made("task") == TaskParameters()
    assert made("task:number=4") == TaskParameters(number=4)
    every = made("task:number=9,share=1e-3,window=7,exact=true,ports=22+80+8000-8100")
    assert every == TaskParameters(number=9, share=0.001, window=7.0, exact=True, ports="22+80+8000-8100")
    assert [type(getattr(every, one.name)).__name__ for one in fields(every)] == [
        "int",
        "float",
        "float",
        "bool",
        "str",
    ]
    assert made("task:ports=").ports == ""
    assert made("task:ports=a=b:c").ports == "a=b:c"


@pytest.mark.usefixtures("two_kinds")
def test_in_the_order_given_and_all_of_them() -> None:
    assert [one.name for one in analysers(["other", "task:number=2"])] == ["other", "task"]
    assert [one.name for one in analysers(["all"])] == ["task", "other"]
    assert analysers([]) == []


@pytest.mark.usefixtures("two_kinds")
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["tusk"], "--analyse 'tusk': is task meant? There are task, other, and all"),
        ([""], "--analyse '': There are task, other, and all"),
        (["a\nb"], "--analyse 'a\\nb': There are task, other, and all"),
        (["task", "task:number=4"], "--analyse task is given twice: give it once, with all its parameters"),
        (["task", "all"], "--analyse task is given twice: give it once, with all its parameters"),
        (["all:number=4"], "--analyse all takes no parameters: name the analyser that 'number=4' is for"),
        (["task:"], "--analyse task: expected key=value, not ''"),
        (["task:ports=22,80"], "--analyse task: expected key=value, not '80'"),
        (
            ["task:numbr=4"],
            "--analyse task: no parameter 'numbr': is number meant? There are number, share, window, exact, ports",
        ),
        (["task:x=4"], "--analyse task: no parameter 'x': There are number, share, window, exact, ports"),
        (["task:number=4,number=5"], "--analyse task: number: given twice"),
        (
            ["task:number=x"],
            "--analyse task: number: expected a whole number of at least 1 and of at most 9, not 'x'",
        ),
        (
            ["task:number=1.5"],
            "--analyse task: number: expected a whole number of at least 1 and of at most 9, not '1.5'",
        ),
        (
            ["task:number=0"],
            "--analyse task: number: expected a whole number of at least 1 and of at most 9, not 0",
        ),
        (
            ["task:number=10"],
            "--analyse task: number: expected a whole number of at least 1 and of at most 9, not 10",
        ),
        (["task:share=0"], "--analyse task: share: expected a number above 0 and below 1, not 0.0"),
        (["task:share=1"], "--analyse task: share: expected a number above 0 and below 1, not 1.0"),
        (["task:window=x"], "--analyse task: window: expected a number above 0, not 'x'"),
        (["task:window="], "--analyse task: window: expected a number above 0, not ''"),
        (["task:window=nan"], "--analyse task: window: expected a number above 0, not nan"),
        (["task:window=inf"], "--analyse task: window: expected a number above 0, not inf"),
        (["task:window=-1"], "--analyse task: window: expected a number above 0, not -1.0"),
        (["task:exact=1"], "--analyse task: exact: expected true or false, not '1'"),
    ],
)
def test_what_cannot_be(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        analysers(texts)
    assert str(raised.value) == message


@given(
    st.lists(
        st.text()
        | st.sampled_from(["syn-rate:", "active-peers:"]).flatmap(lambda n: st.text().map(n.__add__))
    )
)
def test_whatever_is_said_is_taken_or_refused_in_one_line(texts: list[str]) -> None:
    try:
        analysers(texts)
        complaint = ""
    except ConfigError as error:
        complaint = str(error)
    assert len(complaint.splitlines()) <= 1


@pytest.mark.parametrize("name", KINDS)
def test_every_analyser(name: str) -> None:
    (analyser,) = analysers([name])
    assert analyser.name == name
    assert set(analyser.gauges().values()) == {0}
    assert analyser.assess(1) == analyser.finish(1) == []
    settings: Any = KINDS[name].parameters_class()()
    with pytest.raises(FrozenInstanceError):
        settings.most = 1
    texts = [
        f"{one.name}={getattr(settings, one.name)}".replace("False", "false") for one in fields(settings)
    ]
    assert analysers([f"{name}:{','.join(texts)}"])
    for one in fields(settings):
        assert {"int": int, "float": float, "bool": bool, "str": str}[one.type] is type(one.default)
        assert one.metadata["meaning"]
        if isinstance(one.default, float):
            for impossible in (float("nan"), float("inf"), -1.0):
                with pytest.raises(ValueError, match=f"^{one.name}: expected "):
                    replace(settings, **{one.name: impossible})


def test_all_of_them() -> None:
    assert [one.name for one in analysers(["all"])] == list(KINDS)


def test_document_is_what_is_generated() -> None:
    assert DOCUMENT.read_text() == markdown(), "run `make docs`"
