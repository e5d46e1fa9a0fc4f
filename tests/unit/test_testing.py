from __future__ import annotations

import pytest

from symposia import Ensemble, Inference, JobFailed, Member
from symposia.testing import ScriptedClient


def test_models_say_what_the_test_tells_them_to(scripted_client: ScriptedClient) -> None:
    scripted_client.say("smollm2-135m", "refund", "billing")
    assert [scripted_client.ask("?", model="smollm2-135m") for _ in range(3)] == ["refund", "billing", "billing"]
    assert [j.prompt for j in scripted_client.jobs if isinstance(j, Inference)] == ["?"] * 3


def test_a_failure_is_a_reply_and_votes_are_real(scripted_client: ScriptedClient) -> None:
    scripted_client.fail("a", "out_of_memory")
    scripted_client.say("b", "The answer is 3.")
    found = scripted_client.submit(Ensemble(prompt="?", members=[Member(model="a"), Member(model="b"), Member(model="b")])).result()
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.n) == ("3", 2)


def test_an_unscripted_model_abstains_and_says_what_to_call(scripted_client: ScriptedClient) -> None:
    with pytest.raises(JobFailed, match=r"say\('unknown', ...\)"):
        scripted_client.ask("?", model="unknown")


def test_a_scripted_client_embeds_and_scores(scripted_client: ScriptedClient) -> None:
    vectors = scripted_client.embed(["a b", "a b", "c"], model="test/echo")
    assert vectors[0] == vectors[1] != vectors[2]
    assert scripted_client.score("a", model="test/echo", given="a b").total == -0.25
