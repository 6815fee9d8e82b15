"""The verifier of the chaos suite finds what is wrong, in evidence made up for it."""

from __future__ import annotations

from tests.system.chaos.journal import ACCEPTED, BEGAN, CANCELLED, ENDED, RAISED, Entry
from tests.system.chaos.verifier import DIED, FROZEN, TOLD_TO_END, Fault, Final, Judgement, Rules, judge, percentile

DONE = Final(state="succeeded")
A, B = 100, 200
"""Two processes."""


def lines(text: str) -> list[Entry]:
    """ "began 1 100 5.0": word, claim, pid and moment of the one job there is, which was accepted."""
    made = [Entry(ACCEPTED, "j", 0, 1, 0.0)]
    for line in text.splitlines():
        if words := line.split():
            made.append(Entry(words[0], "j", int(words[1]), int(words[2]), float(words[3])))
    return made


def verdict(text: str, *faults: Fault, final: Final | None = DONE, rules: Rules | None = None) -> Judgement:
    return judge(lines(text), faults, {} if final is None else {"j": final}, rules)


ONCE = f"""
    {BEGAN} 1 {A} 1.0
    {ENDED} 1 {A} 2.0
"""


def test_job_that_ran_once_is_clean() -> None:
    found = verdict(ONCE)
    assert found.clean
    assert (found.accepted, found.executions, found.excused) == (1, 1, [])


# -- lost and stuck ----------------------------------------------------------------------------------------------------


def test_accepted_job_without_a_row_is_lost() -> None:
    assert verdict(ONCE, final=None).lost == ["j"]


def test_success_that_no_one_ran_is_lost() -> None:
    assert verdict("").lost == ["j succeeded"]


def test_success_whose_only_execution_died_is_lost() -> None:
    assert verdict(f"{BEGAN} 1 {A} 1.0", Fault(kind=DIED, pid=A, at=1.5, until=1.5)).lost == ["j succeeded"]


def test_failure_of_a_job_that_never_raised_is_lost() -> None:
    assert verdict(ONCE, final=Final(state="failed", failure_kind="exception")).lost == ["j failed"]
    raised = ONCE.replace(ENDED, RAISED)
    assert verdict(raised, final=Final(state="failed", failure_kind="exception", failures=1)).clean


def test_cancelled_job_that_no_one_cancelled_is_lost() -> None:
    assert verdict(ONCE, final=Final(state="cancelled")).lost == ["j cancelled"]


def test_unfinished_job_is_stuck() -> None:
    for state in ("scheduled", "ready", "running"):
        assert verdict(ONCE, final=Final(state=state)).stuck == [f"j {state}"]


def test_attempt_counted_for_a_job_that_never_raised_is_found() -> None:
    found = verdict(ONCE, final=Final(state="succeeded", failures=1))
    assert found.counted == ["j 1"]
    assert not found.clean


def test_job_killed_from_outside_while_it_ran_alone_is_left_out() -> None:
    text = "".join(f"{BEGAN} {claim} {claim} {claim}.0\n" for claim in range(1, 6))
    kills = [Fault(kind=DIED, pid=claim, at=claim + 0.5, until=claim + 0.5) for claim in range(1, 6)]
    blamed = Final(state="failed", failure_kind="crashed", solo_crashes=3)
    assert verdict(text, *kills, final=blamed).left_out == ["j"]
    assert verdict(text, *kills[:2], final=blamed).lost == ["j failed"]


# -- doubled -----------------------------------------------------------------------------------------------------------

TWICE = f"""
    {BEGAN} 1 {A} 1.0
    {ENDED} 1 {A} 2.0
    {BEGAN} 2 {B} 5.0
    {ENDED} 2 {B} 6.0
"""
BROKEN_OFF = TWICE.replace(f"{ENDED} 1 {A} 2.0\n", "")


def kill(pid: int, at: float) -> Fault:
    return Fault(kind=DIED, pid=pid, at=at, until=at)


def test_second_execution_without_a_reason_is_unexcused() -> None:
    found = verdict(TWICE)
    assert found.unexcused == ["j claim 2 after ended"]
    assert not found.clean


def test_second_execution_after_a_death_in_the_middle_is_excused() -> None:
    found = verdict(BROKEN_OFF, kill(A, 1.5))
    assert found.clean
    assert found.excused == ["j died"]


def test_second_execution_after_a_death_before_the_commit_is_excused() -> None:
    found = verdict(TWICE, kill(A, 2.1))
    assert found.clean
    assert round(found.unrecorded, 3) == 0.1


def test_death_long_after_the_end_excuses_nothing() -> None:
    assert verdict(TWICE, kill(A, 4.0), rules=Rules(commit=1.0)).unexcused


def test_death_of_another_process_excuses_nothing() -> None:
    assert verdict(BROKEN_OFF, kill(B, 1.5)).unexcused


def test_second_execution_before_the_death_is_unexcused() -> None:
    assert verdict(BROKEN_OFF, kill(A, 5.5)).unexcused


def test_one_claim_that_ran_twice_is_unexcused_even_after_a_death() -> None:
    assert verdict(BROKEN_OFF.replace(f" 2 {B}", f" 1 {B}"), kill(A, 1.5)).unexcused == ["j claim 1 twice"]


def test_execution_after_one_that_raised_is_a_retry_and_none_too_many() -> None:
    found = verdict(TWICE.replace(f"{ENDED} 1", f"{RAISED} 1"), final=Final(state="succeeded", failures=1))
    assert found.clean
    assert found.excused == []


def test_stop_for_longer_than_the_lease_excuses_and_a_shorter_one_does_not() -> None:
    text = BROKEN_OFF.replace(f"{BEGAN} 2 {B} 5.0", f"{BEGAN} 2 {B} 33.0").replace(f"{ENDED} 2 {B} 6.0", "")
    text += f"{ENDED} 1 {A} 91.0\n{ENDED} 2 {B} 34.0\n"
    assert verdict(text, Fault(kind=FROZEN, pid=A, at=1.5, until=90.0)).excused == ["j frozen"]
    assert verdict(text, Fault(kind=FROZEN, pid=A, at=1.5, until=90.0)).clean
    assert verdict(text, Fault(kind=FROZEN, pid=A, at=1.5, until=20.0)).unexcused
    assert verdict(text, Fault(kind=FROZEN, pid=A, at=20.0, until=90.0)).unexcused


def test_job_cut_off_at_the_end_of_the_grace_is_excused_and_one_that_ended_before_is_not() -> None:
    told = Fault(kind=TOLD_TO_END, pid=A, at=1.5, until=3.0)
    assert verdict(BROKEN_OFF, told, kill(A, 3.2)).clean
    cancelled = TWICE.replace(f"{ENDED} 1 {A} 2.0", f"{CANCELLED} 1 {A} 3.0")
    assert verdict(cancelled, told).excused == ["j told to end"]
    assert verdict(cancelled).unexcused
    assert verdict(TWICE, told).unexcused


def test_uid_accepted_twice_is_unexcused() -> None:
    entries = lines(ONCE)
    assert judge([*entries, entries[0]], [], {"j": DONE}).unexcused == ["j accepted twice"]


# -- overlapping -------------------------------------------------------------------------------------------------------


def test_two_executions_at_once_overlap() -> None:
    text = TWICE.replace(f"{ENDED} 1 {A} 2.0", f"{ENDED} 1 {A} 5.5")
    assert verdict(text).overlapping == ["j claims 1 and 2 by 0.500 s"]
    assert verdict(text, Fault(kind=FROZEN, pid=A, at=1.5, until=20.0)).overlapping


def test_execution_that_died_is_over_with_its_process() -> None:
    assert verdict(BROKEN_OFF, kill(A, 1.5)).overlapping == []
    assert verdict(BROKEN_OFF).overlapping == ["j claims 1 and 2 by inf s"]


def test_thread_that_was_handed_back_may_end_with_its_process_a_moment_later_only() -> None:
    told = Fault(kind=TOLD_TO_END, pid=A, at=1.5, until=3.0)
    assert verdict(BROKEN_OFF, told, kill(A, 5.05)).clean
    assert verdict(BROKEN_OFF, told, kill(A, 5.5)).overlapping == ["j claims 1 and 2 by 0.500 s"]


# -- recovery ----------------------------------------------------------------------------------------------------------


def test_recovery_is_counted_from_the_death_to_the_next_start() -> None:
    assert verdict(BROKEN_OFF, kill(A, 1.5)).recovery == [3.5]


def test_percentiles() -> None:
    values = [float(number) for number in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile([7.0], 0.95)) == (49.0, 94.0, 7.0)
    assert percentile([], 0.95) == 0.0
