"""Every feature of an agent, with the run given back after every step and rebuilt from what is stored.

`make test-resume` runs the functional suite as a whole in this mode.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from durable.settings import Settings
from tests.integration.test_parity import OF_A_RUN
from tests.parity.case import Case, run_bare, run_wrapped


@pytest.mark.parametrize("build", OF_A_RUN, ids=lambda build: build.__name__)
async def test_a_run_that_resumes_after_every_step_gives_what_the_bare_agent_gives(
    build: Callable[[], Case], settings: Settings
) -> None:
    bare = await run_bare(build(), streamed=True)
    wrapped, chunks = await run_wrapped(build(), settings.model_copy(update={"always_resume": True}))

    assert (wrapped.output, wrapped.kind) == (bare.output, bare.kind)
    assert wrapped.messages == bare.messages
    assert wrapped.new_messages == bare.new_messages
    assert wrapped.usage == bare.usage
    assert wrapped.notes == bare.notes
    assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert [chunk.seq for chunk in chunks if chunk.final] == [len(chunks)]
    checkpoints = [chunk for chunk in chunks if chunk.type == "response-metadata"]
    assert chunks[-1].attempt >= 1 + bool(checkpoints), "it was given back"
