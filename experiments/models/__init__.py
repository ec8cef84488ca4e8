"""The tables, one noun a file."""

from experiments.models.calls import Batch, Budget, LedgerLine, Pace, PendingCall
from experiments.models.checkpoint import BenchmarkAnswer, BenchmarkScore, Checkpoint, Metric
from experiments.models.completion import Completion
from experiments.models.endpoint import Endpoint
from experiments.models.errand import Errand, ErrandKind
from experiments.models.experiment import Experiment
from experiments.models.imitation import Imitation
from experiments.models.instruction import Candidate, Instruction
from experiments.models.playground import Answer, Question, Speaker
from experiments.models.pool import SeedInstruction, SeedPool
from experiments.models.review import Review
from experiments.models.run import Iteration, Job, Run, Stage, Threshold
from experiments.models.verdict import Judgement, Response, Role, Verdict

__all__ = [
    "Answer",
    "Batch",
    "BenchmarkAnswer",
    "BenchmarkScore",
    "Budget",
    "Candidate",
    "Checkpoint",
    "Completion",
    "Endpoint",
    "Errand",
    "ErrandKind",
    "Experiment",
    "Imitation",
    "Instruction",
    "Iteration",
    "Job",
    "Judgement",
    "LedgerLine",
    "Metric",
    "Pace",
    "PendingCall",
    "Question",
    "Response",
    "Review",
    "Role",
    "Run",
    "SeedInstruction",
    "SeedPool",
    "Speaker",
    "Stage",
    "Threshold",
    "Verdict",
]
