"""Handoffs on the wire: what was written is read, and nonsense is passed over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clew
from clew.engine.context import arrived, extract, going_to
from clew.engine.transfer import (
    HEADER,
    MAX_AGENTS,
    MAX_NAME_LENGTH,
    Offer,
    Passage,
    agent_name,
    passage,
    read,
    waited_s,
    written,
)
from clew.testing import CapturedTelemetry

names = st.text(min_size=1, max_size=200).map(agent_name).filter(bool)
offers = st.builds(
    Offer,
    id=st.text(alphabet="0123456789abcdef", min_size=32, max_size=32),
    target=names,
    mode=st.sampled_from(["return_to_caller", "pass_control"]),
    handed_ns=st.integers(0, 2**62),
    task_id=st.none() | names,
)


@given(st.lists(names, max_size=60), st.integers(0, 2**40), st.none() | offers)
def test_what_is_written_is_read(agents: list[str], depth: int, offer: Offer | None) -> None:
    text = written(Passage(agents=tuple(agents), depth=depth, offer=offer))
    if text is None:
        assert (agents, depth, offer) == ([], 0, None)
        return
    assert len(text) <= 2_048
    assert text.isascii()
    assert text.isprintable()
    found = read(text)
    assert found is not None
    if offer is not None and found.offer is not None and found.offer.task_id != offer.task_id:
        # There was no room for it
        assert len(text) + 12 * MAX_NAME_LENGTH > 2_000
        offer = replace(offer, task_id=None)
    assert found.offer == offer
    # Of a chain that is too long to travel, its end
    assert list(found.agents) == agents[len(agents) - len(found.agents) :]
    assert len(found.agents) == min(len(agents), MAX_AGENTS) or len(text) > 400


@given(
    st.text(max_size=3_000)
    | st.from_regex(r"1;[0-9]{1,3};[a-z%,]{0,50}(;[0-9a-f]{32};[0-9]{1,19};[rp];[a-z%]{1,9}(;[a-z%]{1,9})?)?")
)
def test_anything_is_read_or_passed_over(text: str) -> None:
    found = read(text)
    if found is not None:
        assert len(found.agents) <= MAX_AGENTS
        everyone = (*found.agents, found.offer.target if found.offer else "")
        assert all(len(name) <= MAX_NAME_LENGTH and (not name or name.isprintable()) for name in everyone)
        assert found.offer is None or waited_s(found.offer, 10**18) >= 0
        assert written(found) is None or read(written(found) or "") is not None


@given(st.binary(max_size=300) | st.text(max_size=300) | st.lists(st.integers()) | st.none())
def test_a_carrier_may_say_anything(value: object) -> None:
    assert extract({HEADER: value}).span_context.is_valid is False


def test_it_goes_with_carriers_and_queues_and_to_no_strange_host(captured_telemetry: CapturedTelemetry) -> None:
    with clew.agent_task("giver"), clew.handoff(to="taker") as passing:
        assert passage(extract(clew.inject({})).context).offer is not None
        for host, expected in ((None, True), ("api.openai.com", False)):
            token = going_to(host)
            try:
                assert (HEADER in clew.inject({})) is expected
            finally:
                arrived(token)
        carried = extract(passing.carrier)
    found = passage(carried.context)
    assert (found.agents, found.depth, found.offer and found.offer.target) == (("giver",), 1, "taker")
    assert captured_telemetry.span("invoke_agent giver").status == "unset"


@pytest.mark.parametrize("within", ["soon", -1, float("nan"), float("inf")])
def test_a_bad_time_is_passed_over(captured_telemetry: CapturedTelemetry, within: object) -> None:
    from clew import diagnostics

    diagnostics.set_strict(strict=False)
    with clew.handoff(to="taker", claim_within_s=within, mode="sideways"):  # type: ignore[arg-type]
        pass
    assert (
        captured_telemetry.span("execute_tool transfer_to_taker").attributes["gen_ai.transfer.mode"]
        == "return_to_caller"
    )
