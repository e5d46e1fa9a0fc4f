"""Symposia: many open-weight language models, one queue, one answer.

    import symposia

    with symposia.Client() as client:
        print(client.ask("What is 17 + 25?", model="smollm2-135m"))
"""

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
