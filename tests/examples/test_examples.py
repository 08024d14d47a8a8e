"""The examples do what they say, as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic_ai.messages import ModelResponse, ToolCallPart

from durable import Client, create_durable_agent, fold_text
from durable.chunks import UnknownChunk
from durable.errors import InvalidRequest
from examples import almanac, background_research
from examples.agents import agent, choose_model, to_fahrenheit, usual_temperature
from examples.demo import DemoFailed, Observer, prove
from examples.offline_model import LABEL, MODEL_NAME, offline_model
from tests.deployment import ROOT, Deployment

KEYS = ("EXAMPLE_MODEL", "ANTHROPIC_API_KEY", "OPENAI_API_KEY")


@pytest.fixture(scope="module")
def served(redis_url: str) -> Iterator[Deployment]:
    """A deployment of the example agent, without a provider."""
    with Deployment(redis_url, agents="examples.agents", env=dict.fromkeys(KEYS, "")) as found:
        found.start_api()
        found.start_worker()
        yield found


@pytest.fixture
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is named, and no provider's key is set."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def run_example(name: str, *arguments: str, **env: str) -> str:
    """Run an example as a user would; its output."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(Path("examples") / name), *arguments],
        cwd=ROOT,
        env={**os.environ, **dict.fromkeys(KEYS, ""), **env},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_example_in_one_process_needs_no_redis() -> None:
    told = run_example("in_process.py")

    assert "In October it is usually 18.8 °C in Lisbon, which is 65.8 °F" in told
    assert "6 messages" in told


def test_the_example_of_approvals_uses_what_the_people_say() -> None:
    told = run_example("approvals.py")

    assert "refund waits for approval: {'order': '4711', 'amount': 120}" in told
    assert "refund: approve by ada\n" in told
    assert "apologise: resume by grace\n" in told
    assert "refunded 100 for order 4711; wrote 'We are sorry.'." in told


RESULTS = {
    "search_papers": "A paper dates tea leaves from a tomb to the second century BC.",
    "search_archive": "The archive first has coffee in the fifteenth century.",
    "ask_librarian": "The librarian says that tea is the older one.",
}
ANSWER = " ".join(RESULTS.values())


def test_the_research_in_the_background_is_left_and_observed_until_all_is_idle() -> None:
    before, _, after = run_example("background_research.py").partition("\nleft run ")

    for search in background_research.SEARCHES:
        assert f"[{search} has begun]" in before + after
        assert (before + after).count(f"[{search}: {RESULTS[search]}]") == 1
    assert "3 searches are under way; I shall tell you what they find." in before
    assert after.endswith(f"all is idle; the answer: (This is a script, not a language model.) {ANSWER}\n")


async def test_research_that_workers_do_goes_on_when_the_process_that_asked_has_ended(redis_url: str) -> None:
    with Deployment(redis_url, agents="examples.background_research", env=dict.fromkeys(KEYS, "")) as served:
        served.start_api()
        served.start_worker()
        env = {"DURABLE_REDIS_URL": redis_url, "DURABLE_PREFIX": served.prefix}
        before = run_example("background_research.py", "leave", **env)
        run, chunk = re.findall(r"\nleft run (\S+) after chunk (\d+)\n", before)[0]
        after = run_example("background_research.py", "come-back", run, chunk, **env)
        await check_tree(served.url, run)

    assert "3 searches are under way; I shall tell you what they find." in before
    assert after.endswith(f"all is idle; the answer: (This is a script, not a language model.) {ANSWER}\n")
    for search in background_research.SEARCHES:
        assert (before + after).count(f"[{search}: {RESULTS[search]}]") == 1


async def check_tree(url: str, run: str) -> None:
    """A run is seen over HTTP with its three tasks, whole from each cursor, and in a terminal."""
    async with Client(url) as client:
        seen = [chunk async for chunk in client.observe(run, tree=True)]
        for chunk in (seen[0], seen[len(seen) // 2], seen[-2], seen[-1]):
            rest = [chunk.to_wire() async for chunk in client.observe(run, chunk.cursor, tree=True)]
            assert rest == [chunk.to_wire() for chunk in seen[len(seen) - len(rest) :]]
            assert len(rest) == len(seen) - 1 - seen.index(chunk)
        logs = [[chunk.seq for chunk in seen if chunk.run_id == each] for each in {chunk.run_id for chunk in seen}]
        assert len(logs) == 4
        assert [seqs for seqs in logs if seqs != list(range(1, len(seqs) + 1))] == []
        assert (seen[-1].run_id, seen[-1].final) == (run, True)
        for after in ("x", "1(0:1", str(10**6)):
            with pytest.raises(InvalidRequest):
                [_ async for _ in client.observe(run, after, tree=True)]
    await asyncio.to_thread(check_doors, url, run, {chunk.run_id for chunk in seen})


def check_doors(url: str, run: str, members: set[str]) -> None:
    """A tree is shown in a terminal; it has no pages of JSON."""
    page = httpx.get(f"{url}/v1/runs/{run}/chunks?tree=true", trust_env=False)
    assert (page.status_code, page.json()["error"]["code"]) == (400, "invalid_request")
    command = [sys.executable, "-m", "durable.cli", "--url", url, "observe", run, "--tree"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert shown.returncode == 0, shown.stderr
    assert {f"▸ {member}" for member in members} <= set(shown.stdout.splitlines())


def test_the_client_example_leaves_a_run_and_comes_back_for_the_rest(served: Deployment) -> None:
    told = run_example("client.py", DURABLE_URL=served.url)

    assert "left after chunk 5\nchunks 6 to " in told
    assert "So Lisbon is the warmer place; Oslo lies 12.3 degrees Celsius below it." in told
    assert told.endswith("the run is completed\n")


async def test_the_offline_script_calls_the_tools_and_says_what_it_is() -> None:
    durable = create_durable_agent(agent)
    with agent.override(model=offline_model()):
        result = await durable.generate("Compare Oslo and Sydney in January, please.")
    await durable.aclose()

    responses = [message for message in result.messages if isinstance(message, ModelResponse)]
    calls = [[part.args_as_dict() for part in answer.parts if isinstance(part, ToolCallPart)] for answer in responses]
    assert calls == [
        [{"city": "Oslo", "month": "January"}, {"city": "Sydney", "month": "January"}],
        [{"celsius": -2.3}, {"celsius": 23.5}],
        [],
    ]
    assert result.output.startswith(LABEL)
    assert "-2.3 °C in Oslo, which is 27.9 °F" in result.output
    assert {answer.model_name for answer in responses} == {MODEL_NAME}


async def test_the_almanac_looks_each_month_up_once_and_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOKUP_SECONDS", "SECONDS_A_WORD"):
        monkeypatch.setattr(almanac, name, 0)
    async with create_durable_agent(almanac.agent) as durable:
        run = await durable.stream("Oslo, please")
        text = fold_text([chunk async for chunk in run])
        messages = (await run.result()).messages

    looked_up = [part.args_as_dict() for answer in messages for part in answer.parts if isinstance(part, ToolCallPart)]
    assert looked_up == [{"city": "Oslo", "month": month} for month in almanac.MONTHS]
    assert text.startswith("Oslo: In January it is usually -2.3 °C in Oslo. In February")
    assert text.endswith("In December it is usually -1.8 °C in Oslo. ")


async def test_the_almanac_names_the_cities_that_it_knows_when_asked_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(almanac, "SECONDS_A_WORD", 0)
    async with create_durable_agent(almanac.agent) as durable:
        result = await durable.generate("hello")
    assert result.output == "I know Basel, Lisbon, Nairobi, Oslo, Singapore, Sydney. Ask me for one of them."


async def test_the_offline_script_answers_a_question_without_a_city() -> None:
    durable = create_durable_agent(agent)
    with agent.override(model=offline_model()):
        result = await durable.generate("Hello!")
    await durable.aclose()

    assert "please name one of the cities" in result.output


@pytest.mark.parametrize(
    ("env", "model"),
    [
        ({"EXAMPLE_MODEL": "openai:gpt-x", "ANTHROPIC_API_KEY": "k"}, "openai:gpt-x"),
        ({"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}, "anthropic:"),
        ({"ANTHROPIC_API_KEY": "", "OPENAI_API_KEY": "k"}, "openai:"),
    ],
)
@pytest.mark.usefixtures("no_provider")
def test_the_environment_chooses_the_model(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], model: str) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    chosen = choose_model()

    assert isinstance(chosen, str)
    assert chosen.startswith(model)


@pytest.mark.usefixtures("no_provider")
def test_without_a_key_no_provider_is_chosen() -> None:
    chosen = choose_model()

    assert not isinstance(chosen, str)
    assert chosen.model_name == MODEL_NAME


def test_the_tools_look_up_and_convert() -> None:
    assert usual_temperature("Oslo", "December") == -1.8
    assert to_fahrenheit(-40) == -40
    assert to_fahrenheit(100) == 212


def test_the_demo_does_not_take_a_lost_a_changed_or_a_repeated_chunk_for_a_proof() -> None:
    chunks = [UnknownChunk(type="x", seq=seq, payload={"n": seq}) for seq in range(1, 6)]
    chunks[-1].final = True
    whole = Observer("3", 0, list(chunks))
    other = [*chunks[:3], UnknownChunk(type="x", seq=4, payload={"n": 0}), chunks[4]]

    prove(Observer("1", 0, [*chunks[:2]]), Observer("2", 2, [*chunks[2:]]), whole, last_seq=5)
    for second in (chunks[3:], other[2:], chunks[1:], chunks[2:4]):
        with pytest.raises(DemoFailed):
            prove(Observer("1", 0, [*chunks[:2]]), Observer("2", 2, [*second]), whole, last_seq=5)
