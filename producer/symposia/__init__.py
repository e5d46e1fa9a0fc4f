"""Symposia: many open-weight language models, one queue, one answer.

    import symposia

    with symposia.Client() as client:
        print(client.ask("What is 17 + 25?", model="smollm2-135m"))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from symposia.client import AsyncClient, Client
    from symposia.handle import AsyncHandle, Handle
    from symposia_shared.errors import (
        BadInput,
        BrokerUnavailable,
        Busy,
        JobCancelled,
        JobFailed,
        NoQuorum,
        NotPlaced,
        NotYet,
        PromptTooLong,
        StoreUnavailable,
        SymposiaError,
        Unavailable,
        UnknownJob,
        UnknownModel,
    )
    from symposia_shared.jobs import Collaboration, Embedding, Inference, Job, Member
    from symposia_shared.patterns import parse_job
    from symposia_shared.patterns.adversarial import Adversarial
    from symposia_shared.patterns.consensus_building import ConsensusBuilding
    from symposia_shared.patterns.debate import Debate
    from symposia_shared.patterns.ensemble import Ensemble
    from symposia_shared.patterns.hierarchical import Hierarchical
    from symposia_shared.patterns.iterative_refinement import IterativeRefinement
    from symposia_shared.patterns.pipeline import Pipeline
    from symposia_shared.patterns.specialist_team import SpecialistTeam
    from symposia_shared.prompts import ChoiceForm, JsonForm, Message, RegexForm, Sampling
    from symposia_shared.rehearsal import rehearse
    from symposia_shared.results import Result, Score
    from symposia_shared.standing import Status
    from symposia_shared.turns import Abstention, Completion, Turn
    from symposia_shared.verdicts import Verdict

__all__ = [
    "Abstention", "Adversarial", "AsyncClient", "AsyncHandle", "BadInput", "BrokerUnavailable", "Busy", "ChoiceForm", "Client", "Collaboration",
    "Completion", "ConsensusBuilding", "Debate", "Embedding", "Ensemble", "Handle", "Hierarchical", "Inference", "IterativeRefinement",
    "Job", "JobCancelled", "JobFailed", "JsonForm", "Member", "Message", "NoQuorum", "NotPlaced", "NotYet", "Pipeline", "PromptTooLong",
    "RegexForm", "Result", "Sampling", "Score", "SpecialistTeam", "Status", "StoreUnavailable", "SymposiaError", "Turn", "Unavailable",
    "UnknownJob", "UnknownModel", "Verdict", "parse_job", "rehearse",
]

#: Where each name lives. A name is imported when it is first asked for: what needs a part of the house does not wait for all of it.
_HOMES = {
    "symposia.client": "AsyncClient Client",
    "symposia.handle": "AsyncHandle Handle",
    "symposia_shared.errors": "BadInput BrokerUnavailable Busy JobCancelled JobFailed NoQuorum NotPlaced "
                              "NotYet PromptTooLong StoreUnavailable SymposiaError Unavailable UnknownJob UnknownModel",
    "symposia_shared.jobs": "Collaboration Embedding Inference Job Member",
    "symposia_shared.patterns": "parse_job",
    "symposia_shared.patterns.adversarial": "Adversarial",
    "symposia_shared.patterns.consensus_building": "ConsensusBuilding",
    "symposia_shared.patterns.debate": "Debate",
    "symposia_shared.patterns.ensemble": "Ensemble",
    "symposia_shared.patterns.hierarchical": "Hierarchical",
    "symposia_shared.patterns.iterative_refinement": "IterativeRefinement",
    "symposia_shared.patterns.pipeline": "Pipeline",
    "symposia_shared.patterns.specialist_team": "SpecialistTeam",
    "symposia_shared.prompts": "ChoiceForm JsonForm Message RegexForm Sampling",
    "symposia_shared.rehearsal": "rehearse",
    "symposia_shared.results": "Result Score",
    "symposia_shared.standing": "Status",
    "symposia_shared.turns": "Abstention Completion Turn",
    "symposia_shared.verdicts": "Verdict",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = found
    return found
