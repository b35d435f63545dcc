"""What is learned from steps and jobs, and what follows for the next job."""

from __future__ import annotations

import pytest

from guard.engine.cost import CostModel, Done, Work


def learned(jobs: int = 30, computed: float = 1.0, steps: float = 1.0) -> CostModel:
    """2 ms a prefilled token, 50 ms a decode step of 4 rows; jobs that needed these parts of 1000 tokens each."""
    cost = CostModel()
    for _ in range(60):
        cost.note_prefill(100, 0.2)
        cost.note_decode(4, 0.05)
    for _ in range(jobs):
        cost.note_job(Work(1000, 1000), Done(round(1000 * computed), round(1000 * steps)))
    return cost


def test_nothing_is_known_at_first() -> None:
    cost = CostModel()
    assert cost.own_s(Work(1000, 1000)) == cost.engine_s(Work(1000, 1000), Done()) == 0.0
    assert not cost.known
    assert not learned(7).known and learned(8).known


def test_a_job_costs_its_prompt_and_its_steps() -> None:
    cost = learned()
    assert cost.own_s(Work(1000)) == pytest.approx(2.0)
    assert cost.own_s(Work(0, 100)) == pytest.approx(5.0)
    assert cost.own_s(Work(0, 100, choices=3)) == pytest.approx(5.0)  # they decode together


def test_the_engine_shares_decode_steps() -> None:
    cost = learned()
    assert cost.engine_s(Work(1000, 100), Done()) == pytest.approx(2.0 + 5.0 / 4)
    assert cost.engine_s(Work(1000, 100, choices=2), Done()) == pytest.approx(2.0 + 5.0 / 2)
    assert cost.engine_s(Work(1000, 100), Done(500, 60)) == pytest.approx(1.0 + 2.0 / 4)
    assert cost.engine_s(Work(1000, 100), Done(2000, 200)) == 0.0


def test_a_job_waits_for_those_that_cannot_run_beside_it() -> None:
    cost = learned()
    assert cost.wait_s(Work(1000), [], 8) == 0.0
    assert cost.wait_s(Work(1000), [3.0] * 7, 8) == pytest.approx(7 * 2.0)  # each gets as much as it does: 2 s
    assert cost.wait_s(Work(1000), [0.5] * 7, 8) == pytest.approx(7 * 0.5)
    assert cost.wait_s(Work(1000), [0.5] * 40, 8) == pytest.approx(40 * 0.5)
    assert cost.wait_s(Work(0, 100), [3.0] * 10, 8) == pytest.approx(3 * 3.0)  # three must end; steps are shared


def test_what_jobs_did_not_need_is_not_expected() -> None:
    """Caches save most of a prompt, and texts end before they must."""
    cost = learned(computed=0.25, steps=0.1)
    assert cost.own_s(Work(1000, 100)) == pytest.approx(0.5 + 0.5)
    for _ in range(100):
        cost.note_job(Work(1000, 1000), Done(1000, 1000))
    assert cost.own_s(Work(1000, 100)) == pytest.approx(2.0 + 5.0, rel=0.05)


def test_short_chunks_do_not_tell_what_a_token_costs() -> None:
    cost = CostModel()
    cost.note_prefill(4, 0.1)
    assert cost.token_s == pytest.approx(0.025)  # better than nothing
    for _ in range(50):
        cost.note_prefill(100, 0.1)
    cost.note_prefill(4, 0.1)
    assert cost.token_s == pytest.approx(0.001, rel=0.01)


def test_a_step_that_was_held_up_does_not_count() -> None:
    cost = learned()
    cost.note_prefill(100, 30.0)
    cost.note_decode(4, 30.0)
    assert cost.own_s(Work(1000, 100)) == pytest.approx(2.0 + 5.0)
    for _ in range(15):
        cost.note_prefill(100, 0.4)  # but a machine that is slower now is noticed
    assert cost.own_s(Work(1000)) == pytest.approx(4.0)
